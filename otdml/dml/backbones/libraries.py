"""Networks of other libraries by name."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_known
from otdml._training import evaluating

__all__ = ["LIBRARIES", "OfTransformers", "check_importable", "num_features", "without_classifier"]


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
    # Some have a hidden layer after the features that `num_features` counts.
    network.num_features = getattr(network, "head_hidden_size", num_features(network))
    return network


def _torchvision(name: str, *, pretrained: bool = True) -> nn.Module:
    models = _library(MODULES["torchvision"])
    # Those for detection, segmentation and video fetch the weights of a part even where none are asked for.
    check_known("classifier of torchvision", name, models.list_models(module=models))
    return without_classifier(models.get_model(name, weights="DEFAULT" if pretrained else None))


def without_classifier(network: Any) -> nn.Module:
    """A classifier built as those of torchvision, without its last layer, the dropout before it, and auxiliary outputs.

    What comes before them stays, as the normalisation of a ConvNeXt and the hidden layers of a VGG.

    Args:
        network: A module, changed in place. Its classifier is called ``fc``, ``classifier``, ``heads`` or ``head``.

    Raises:
        ValueError: If it does not end in a linear layer.
    """
    place = next((key for key in ("fc", "classifier", "heads", "head") if hasattr(network, key)), "")
    head = getattr(network, place, nn.Sequential())
    layers = [*head.named_children()] if isinstance(head, nn.Sequential) else [("last", head)]
    last = layers.pop()[1] if layers else None
    if not isinstance(last, nn.Linear):
        raise argument_error("backbone", "end in a linear layer", type(network).__name__)
    while layers and isinstance(layers[-1][1], nn.Dropout):
        layers.pop()
    setattr(network, place, nn.Sequential(OrderedDict(layers)))
    network.num_features = last.in_features
    # In Inception networks dropout stands beside the classifier, and other classifiers learn too.
    if isinstance(getattr(network, "dropout", None), nn.Dropout):
        network.dropout = nn.Identity()
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for name in ("AuxLogits", "aux1", "aux2"):
            setattr(network, name, None)
    return network


class OfTransformers(nn.Module):
    """Features of images by a transformers model: its pooled output; its maps or its first token where it has none.

    Args:
        model: Of a model of images and texts, the part for images is taken.
        pooler: Whether its pooled output is taken; a pooler without published weights is a random layer.

    Raises:
        ValueError: If it does not map images to features.
    """

    def __init__(self, model: Any, *, pooler: bool = True) -> None:
        super().__init__()
        self.model, self.pooler = getattr(model, "vision_model", model), pooler
        # A masked autoencoder hides most of an image in evaluation as well.
        if hasattr(self.model.config, "mask_ratio"):
            self.model.config.mask_ratio = 0.0
        self.num_features = self._width()

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(pixel_values=images)
        pooled = getattr(found, "pooler_output", None) if self.pooler else None
        if pooled is not None:
            return pooled.flatten(2).mean(2) if pooled.ndim == 4 else pooled
        hidden = found.last_hidden_state
        return hidden if hidden.ndim == 4 else hidden[:, 0]

    def _width(self) -> int:
        """Features of one black image: each configuration has another word for their number, and some have none."""
        config, weight = self.model.config, next(self.model.parameters())
        if getattr(config, "is_encoder_decoder", False):
            raise self._no_features("its decoder makes objects or words of them")
        size = getattr(config, "image_size", None) or 224
        sides = (size, size) if isinstance(size, int) else tuple(size)
        images = weight.new_zeros(1, getattr(config, "num_channels", 3), *sides)
        try:
            with evaluating(self), torch.no_grad(), torch.random.fork_rng(devices=[]):
                return self(images).shape[1]
        # A model of words, video or masks fails in a way of its own.
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise self._no_features(error) from error

    def _no_features(self, reason: object) -> Exception:
        remedy = "Name a model of images, as vit, dinov2 and clip are."
        return argument_error("backbone", f"map images to features ({reason})", type(self.model).__name__, remedy)


def _hugging_face(
    name: str, *, pretrained: bool = True, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    transformers = _library(MODULES["hf"])
    if weights is not None:
        return _published(transformers, str(weights), local_files_only=True, **options)
    if pretrained:
        return _published(transformers, name, **options)
    known = name in transformers.CONFIG_MAPPING
    auto = transformers.AutoConfig
    config = auto.for_model(name, **options) if known else auto.from_pretrained(name, **options)
    return OfTransformers(transformers.AutoModel.from_config(config))


def _published(transformers: Any, name: str, **options: Any) -> nn.Module:
    """In single precision unless asked for another, as weights may be published in half."""
    model, info = transformers.AutoModel.from_pretrained(name, output_loading_info=True, **options)
    own = model if {"dtype", "torch_dtype"} & set(options) else model.float()
    # The part for texts may have a pooler of its own.
    part = "vision_model" if hasattr(model, "vision_model") else ""
    return OfTransformers(own, pooler=not any(part in key and "pooler" in key for key in info["missing_keys"]))


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
