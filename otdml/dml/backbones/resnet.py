"""Residual networks with the key names of torchvision's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import argument_error, check_boolean, check_integer, check_known, check_several
from otdml.dml.backbones.weights import initialise, load, published

__all__ = ["ResNet", "resnet18", "resnet50"]


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
        depths, widths = (check_several(name, v, check_integer) for name, v in (("depths", depths), ("widths", widths)))
        if len(depths) != len(widths) or not depths:
            raise argument_error("depths", f"name one number per width, {len(widths)}", tuple(depths))
        in_channels = check_integer("in_channels", in_channels)
        kernel, stride = (3, 1) if check_boolean("small_images", small_images) else (7, 2)
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
        initialise(self)
        if weights is not None:
            state = published(weights)
            load(self, {key: value for key, value in state.items() if not key.startswith("fc.")}, weights)

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
