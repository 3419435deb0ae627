"""Networks that turn images into features: small ones, ResNets, EfficientNets, and those of other libraries by name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from otdml._checks import argument_error, check_known
from otdml.dml.backbones.convnet import ConvNet, conv4
from otdml.dml.backbones.efficientnet import (
    EfficientNetLite,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)
from otdml.dml.backbones.libraries import LIBRARIES, num_features
from otdml.dml.backbones.resnet import ResNet, resnet18, resnet50

__all__ = [
    "BACKBONES",
    "ConvNet",
    "EfficientNetLite",
    "ResNet",
    "backbone",
    "conv4",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "num_features",
    "resnet18",
    "resnet50",
]

BACKBONES: Mapping[str, Callable[..., nn.Module]] = {
    "conv4": conv4,
    "resnet": ResNet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "efficientnet-lite0": efficientnet_lite0,
    "efficientnet-lite1": efficientnet_lite1,
    "efficientnet-lite2": efficientnet_lite2,
}


def backbone(network: str | nn.Module, options: Mapping[str, Any] | None = None) -> nn.Module:
    r"""Network by name, or the one given; its ``num_features`` says how many features or channels it returns.

    ====================== ============================================================================================
    name                   network
    ====================== ============================================================================================
    ``conv4``              :func:`conv4`, 388,320 parameters, for small grey images
    ``resnet``             :class:`ResNet` of any size
    ``resnet18``           :func:`resnet18`
    ``resnet50``           :func:`resnet50`
    ``efficientnet-lite0`` :func:`efficientnet_lite0`, and ``-lite1``, ``-lite2``
    ``timm/NAME``          ``timm.create_model(NAME)`` without its classifier, where timm is installed
    ``torchvision/NAME``   ``torchvision.models.get_model(NAME)``, one of its classifiers, without the last layer of it
                           and the dropout before that, where torchvision is installed
    ``hf/NAME``            ``transformers.AutoModel`` or its part for images, where it is installed; NAME is a model of
                           the hub or a folder, and with ``pretrained=False`` also a type such as ``vit``, which the
                           options configure. Its weights are in float32 unless the options name a ``dtype``
    ====================== ============================================================================================

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
