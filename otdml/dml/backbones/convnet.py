"""Plain convolutional networks, for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from otdml._checks import argument_error, check_integer, check_several
from otdml.dml.backbones.weights import initialise

__all__ = ["ConvNet", "conv4"]


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
        if not (widths := check_several("widths", widths, check_integer)):
            raise argument_error("widths", "name the channels of one layer or more", widths)
        in_channels = check_integer("in_channels", in_channels)
        self.num_features = widths[-1]
        layers: list[nn.Module] = []
        for fan_in, width in zip([in_channels, *widths], widths, strict=False):
            layers += [nn.MaxPool2d(2)] if layers else []
            layers += [nn.Conv2d(fan_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def conv4(*, widths: Sequence[int] = (32, 64, 128, 256), in_channels: int = 1) -> ConvNet:
    """:class:`ConvNet` of four layers, for small grey images such as digits and characters."""
    return ConvNet(widths, in_channels=in_channels)
