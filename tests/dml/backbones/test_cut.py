"""Networks cut in two: the halves make the whole, share its weights, and cuts that pass by are refused."""

import pytest
import torch
from torch import nn

from otdml.dml.backbones import backbone
from otdml.dml.backbones.cut import cut


@pytest.mark.parametrize(
    ("name", "layer", "below"),
    [
        ("conv4", "layers.3", ["layers.0", "layers.1", "layers.2", "layers.3"]),
        ("resnet18", "layer2.1", ["conv1", "bn1", "pool", "layer1", "layer2.0", "layer2.1"]),
        ("efficientnet-lite0", "features.3", [f"features.{number}" for number in range(4)]),
    ],
)
def test_the_halves_make_the_whole(name, layer, below):
    network = backbone(name).eval()
    images = torch.rand(2, 1 if name == "conv4" else 3, 40, 40)
    halves = cut(network, layer)
    assert halves.below == below
    assert torch.equal(halves.upper(halves.lower(images)), network(images))
    theirs = {id(parameter) for half in halves[:2] for parameter in half.parameters()}
    assert theirs == {id(parameter) for parameter in network.parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    assert torch.equal(halves.upper(halves.lower(images)), network(images))


class Twice(nn.Module):
    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.other(self.layer(self.layer(images)))


class Branching(Twice):
    def forward(self, images):
        return self.layer(images) if images.sum() > 0 else images


class Pair(Twice):
    def forward(self, images):
        maps = self.layer(images)
        return maps, self.other(maps)


@pytest.mark.parametrize(
    ("network", "layer", "message"),
    [
        (
            backbone("resnet18"),
            "layer2.0.bn1",
            "through which all of the output depends on the images, got layer2.0.bn1",
        ),
        (backbone("resnet18"), "layer5", "unknown frozen layer 'layer5'.*layer4"),
        (Twice(), "layer", "a layer that the network calls once, got layer, called 2 times"),
        (Twice(), "unused", "called 0 times"),
        (Branching(), "layer", "Branching cannot be cut at layer: .*Choose a layer"),
        (Pair(), "layer", "a network that returns one tensor, got Pair"),
    ],
)
def test_what_is_no_cut_is_refused(network, layer, message):
    with pytest.raises(ValueError, match=message):
        cut(network, layer)


class Dropping(nn.Module):
    """Dropout as a function, below its layer or above."""

    def __init__(self, *, below):
        super().__init__()
        self.below = below
        self.first, self.layer, self.last = nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 8)

    def forward(self, x):
        x = self.first(x)
        x = nn.functional.dropout(x, training=self.training) if self.below else x
        x = self.layer(x)
        return self.last(x if self.below else nn.functional.dropout(x, training=self.training))


def test_the_upper_half_drops_in_training_alone():
    network, x = Dropping(below=False).eval(), torch.randn(5, 8)
    _, upper, _ = cut(network, "layer")
    assert not network.training
    maps = network.first(x)
    upper.eval()
    torch.testing.assert_close(upper(maps), network(x))
    upper.train()
    assert not torch.equal(upper(maps), upper(maps))
    assert {name for name, _ in upper.named_parameters()}


def test_a_frozen_part_that_drops_is_refused():
    with pytest.raises(ValueError, match="the network is the same in training and in evaluation, got layer"):
        cut(Dropping(below=True), "layer")
