"""Networks that turn images into features: small ones, ResNets, and those of other libraries by name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import argument_error, check_integer, check_known
from otdml.dml.checkpoint import read_tensors

__all__ = [
    "BACKBONES",
    "ConvNet",
    "ResNet",
    "backbone",
    "conv4",
    "num_features",
    "resnet18",
    "resnet50",
]


def backbone(network: str | nn.Module, options: Mapping[str, Any] | None = None) -> nn.Module:
    r"""Network by name, or the one given; its ``num_features`` says how many features or channels it returns.

    ===================== =============================================================================================
    name                  network
    ===================== =============================================================================================
    ``conv4``             :func:`conv4`, 388,320 parameters, for small grey images
    ``resnet``            :class:`ResNet` of any size
    ``resnet18``          :func:`resnet18`
    ``resnet50``          :func:`resnet50`
    ``timm/NAME``         ``timm.create_model(NAME)`` without its classifier, where timm is installed
    ``torchvision/NAME``  ``torchvision.models.get_model(NAME)`` without its classifier, where torchvision is installed
    ``hf/NAME``           ``transformers.AutoModel``, where it is installed; NAME is a model of the hub or a folder, and
                          with ``pretrained=False`` also a type such as ``vit``, whose configuration the options set
    ===================== =============================================================================================

    Args:
        network: A name of the table, or a module that maps images (n, c, h, w) to features (n, num_features) or to
            maps (n, num_features, height, width).
        options: Arguments of the named network, e.g. ``{"in_channels": 3}``. Of other libraries' networks,
            ``pretrained`` (default True) loads published weights; ``weights`` is a file of them for timm, a folder for
            transformers.

    Returns:
        The network; a module given is returned as it is.

    Raises:
        ValueError: If the name is unknown, or a module has no ``num_features``.
        ModuleNotFoundError: If the network's library is not installed.

    Example:
        >>> import torch
        >>> network = backbone("conv4", {"widths": (8, 16)})
        >>> network(torch.zeros(2, 1, 28, 28)).shape, network.num_features
        (torch.Size([2, 16, 14, 14]), 16)
    """
    if isinstance(network, nn.Module):
        if options:
            raise argument_error("backbone_options", "be empty where the backbone is a module", dict(options))
        num_features(network)
        return network
    library, _, name = network.partition("/")
    if name and library in LIBRARIES:
        return LIBRARIES[library](name, **dict(options or {}))
    return BACKBONES[check_known("backbone", network, [*BACKBONES, *(f"{key}/NAME" for key in LIBRARIES)])](
        **dict(options or {})
    )


def num_features(network: nn.Module) -> int:
    """How many features, or channels of maps, a backbone returns.

    Raises:
        ValueError: If it does not say so.
    """
    count = getattr(network, "num_features", None)
    if not isinstance(count, int):
        remedy = "Set `network.num_features` to the number of features or channels that it returns."
        raise argument_error("backbone", "have an attribute `num_features`", type(network).__name__, remedy)
    return count


class ConvNet(nn.Module):
    """Plain convolutional network: per width a 3 × 3 convolution, batch norm, ReLU, and 2 × 2 max-pooling in between.

    Args:
        widths: Channels of each layer.
        in_channels: Channels of the images.

    Attributes:
        num_features: Channels of the maps it returns.

    Example:
        >>> import torch
        >>> ConvNet((8, 16, 32))(torch.zeros(1, 1, 28, 28)).shape  # halved twice
        torch.Size([1, 32, 7, 7])

    Source: the embedding network of few-shot classification on Omniglot :cite:p:`vinyals:16`.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), *, in_channels: int = 1) -> None:
        super().__init__()
        if not widths:
            raise argument_error("widths", "name the channels of one layer or more", tuple(widths))
        check_integer("in_channels", in_channels)
        self.num_features = widths[-1]
        layers: list[nn.Module] = []
        for fan_in, width in zip([in_channels, *widths], widths, strict=False):
            layers += [nn.MaxPool2d(2)] if layers else []
            layers += [nn.Conv2d(fan_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def conv4(*, widths: Sequence[int] = (32, 64, 128, 256), in_channels: int = 1) -> ConvNet:
    """:class:`ConvNet` of four layers, for small grey images such as digits and characters."""
    return ConvNet(widths, in_channels=in_channels)


class ResNet(nn.Module):
    """Residual network whose state has the key names of torchvision's, so that published weights load.

    Args:
        block: ``"basic"``, two 3 × 3 convolutions, or ``"bottleneck"``, 1 × 1, 3 × 3 (with the stride), 1 × 1.
        depths: Blocks of each stage.
        widths: Channels of each stage's 3 × 3 convolutions.
        in_channels: Channels of the images.
        small_images: Whether to start with a 3 × 3 convolution of stride one and no pooling, for images of some 32
            pixels; published weights need the 7 × 7 start.
        weights: File of a state dictionary as torchvision publishes it; its classifier is left out.

    Attributes:
        num_features: Channels of the maps it returns.

    Raises:
        ValueError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = ResNet(widths=(8, 16), depths=(1, 1), small_images=True)
        >>> network(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 16, 16, 16])

    Source: :cite:p:`he:16`; the stride in the 3 × 3 convolution is torchvision's.
    """

    def __init__(
        self,
        *,
        block: str = "basic",
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        in_channels: int = 3,
        small_images: bool = False,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        kind = BLOCKS[check_known("block", block, BLOCKS)]
        if len(depths) != len(widths) or not depths:
            raise argument_error("depths", f"name one number per width, {len(widths)}", tuple(depths))
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        self.stages = len(widths)
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(kind(channels, width, stride))
                channels = width * kind.expansion
            # Not a list: torchvision's keys are layer1, layer2, ...
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        _initialise(self)
        if weights is not None:
            _load_published(self, Path(weights))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        for stage in range(self.stages):
            maps = self.get_submodule(f"layer{stage + 1}")(maps)
        return maps


class _Basic(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(fan_in, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(maps), inplace=True)


class _Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(fan_in, 4 * width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(maps), inplace=True)


def _shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    if stride == 1 and fan_in == fan_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))


BLOCKS: Mapping[str, type[_Basic] | type[_Bottleneck]] = {"basic": _Basic, "bottleneck": _Bottleneck}


def resnet18(*, in_channels: int = 3, small_images: bool = False, weights: str | Path | None = None) -> ResNet:
    """:class:`ResNet` with 18 layers: 11,176,512 parameters, 512 features."""
    return ResNet(in_channels=in_channels, small_images=small_images, weights=weights)


def resnet50(*, in_channels: int = 3, small_images: bool = False, weights: str | Path | None = None) -> ResNet:
    """:class:`ResNet` with 50 layers: 23,508,032 parameters, 2048 features."""
    return ResNet(
        block="bottleneck", depths=(3, 4, 6, 3), in_channels=in_channels, small_images=small_images, weights=weights
    )


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # Convolutions follow the format of their weights, and this one is the faster by a third or more.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _load_published(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise argument_error("weights", "be a file of weights", path)
    state = read_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no weights by name, as torchvision publishes them.")
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} are of another network: {error}") from error


def _timm(name: str, *, pretrained: bool = True, weights: str | Path | None = None, **options: Any) -> nn.Module:
    timm = _library(MODULES["timm"])
    if weights is not None:
        # As published, with a classifier, which this leaves out.
        pretrained, options["pretrained_cfg_overlay"] = True, {"file": str(weights)}
    network = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    num_features(network)
    return network


def _torchvision(name: str, *, pretrained: bool = True) -> nn.Module:
    models = _library(MODULES["torchvision"])
    network = models.get_model(name, weights="DEFAULT" if pretrained else None)
    # Every classifier of torchvision ends in one of these attributes, and in a linear layer.
    place = next(key for key in ("fc", "classifier", "heads", "head") if hasattr(network, key))
    linear = [module for module in getattr(network, place).modules() if isinstance(module, nn.Linear)]
    setattr(network, place, nn.Identity())
    network.num_features = linear[0].in_features
    return network


class _Transformers(nn.Module):
    """The pooled output of a transformers model, or the first token where it has none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.num_features = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(pixel_values=images)
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _hugging_face(
    name: str, *, pretrained: bool = True, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    transformers = _library(MODULES["hf"])
    if weights is not None:
        return _Transformers(transformers.AutoModel.from_pretrained(str(weights), local_files_only=True, **options))
    if pretrained:
        return _Transformers(transformers.AutoModel.from_pretrained(name, **options))
    known = name in transformers.CONFIG_MAPPING
    auto = transformers.AutoConfig
    config = auto.for_model(name, **options) if known else auto.from_pretrained(name, **options)
    return _Transformers(transformers.AutoModel.from_config(config))


def check_importable(network: str) -> None:
    """Raise if ``network`` names one of another library, and that does not import.

    Raises:
        ModuleNotFoundError: The message says what to install.
    """
    library, slash, _ = network.partition("/")
    if slash and library in LIBRARIES:
        _library(MODULES[library])


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails with a RuntimeError.
        library = name.partition(".")[0]
        remedy = f"pip install {library}, or use a network of this library: {', '.join(BACKBONES)}."
        raise ModuleNotFoundError(f"this backbone needs {library}, which does not import: {error}. {remedy}") from error


BACKBONES: Mapping[str, Callable[..., nn.Module]] = {
    "conv4": conv4,
    "resnet": ResNet,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
MODULES = {"timm": "timm", "torchvision": "torchvision.models", "hf": "transformers"}
LIBRARIES: Mapping[str, Callable[..., nn.Module]] = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}
