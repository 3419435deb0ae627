"""Networks of other libraries by name."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from otdml._checks import argument_error

__all__ = ["LIBRARIES", "check_importable", "num_features"]


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


def _timm(name: str, *, pretrained: bool = True, weights: str | Path | None = None, **options: Any) -> nn.Module:
    timm = _library(MODULES["timm"])
    if weights is not None:
        # Published weights include the classifier, which is ignored.
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
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails with a RuntimeError.
        library = name.partition(".")[0]
        remedy = f"pip install {library}, or use a network of otdml such as resnet50."
        raise ModuleNotFoundError(f"this backbone needs {library}, which does not import: {error}. {remedy}") from error


MODULES = {"timm": "timm", "torchvision": "torchvision.models", "hf": "transformers"}
LIBRARIES: Mapping[str, Callable[..., nn.Module]] = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}
