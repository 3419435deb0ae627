"""Networks: sizes and key names as published, names of other libraries, errors."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from otdml.dml.backbones import BACKBONES, ConvNet, ResNet, backbone, num_features, resnet18, resnet50


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [("conv4", 388_320, 256), ("resnet18", 11_176_512, 512), ("resnet50", 23_508_032, 2048)],
)
def test_networks_have_the_published_sizes(name, parameters, features):
    network = backbone(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert num_features(network) == features
    assert f"{parameters:,} parameters" in (BACKBONES[name].__doc__ + backbone.__doc__)


def test_maps_have_the_expected_places():
    assert backbone("conv4")(torch.zeros(2, 1, 28, 28)).shape == (2, 256, 3, 3)
    assert resnet18()(torch.zeros(2, 3, 64, 64)).shape == (2, 512, 2, 2)
    assert resnet18(small_images=True, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 512, 4, 4)


def test_resnet_keys_are_torchvisions():
    """Key names of the published weights, written down from them."""
    keys = set(resnet50().state_dict())
    assert len(keys) == 318
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.num_batches_tracked",
        "layer3.5.bn2.bias",
        "layer4.2.conv2.weight",
    } <= keys
    shapes = {key: tuple(value.shape) for key, value in resnet50().state_dict().items()}
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert len(resnet18().state_dict()) == 120
    assert "layer1.0.downsample.0.weight" not in resnet18().state_dict()


def test_resnet_is_the_transformers_librarys():
    """The same function as an independent implementation with the same weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    config.layer_type = "basic"
    peer, own = transformers.ResNetModel(config).eval(), resnet18().eval()
    # Both list their layers from the image on, but for the shortcut, which one has before its block and one after.
    rank = {"shortcut": 2, "downsample": 2, "conv1": 0, "bn1": 0, "conv2": 1, "bn2": 1}

    def ordered(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        kept = [(key, value) for key, value in state.items() if "tracked" not in key]
        stem, body = kept[:5], kept[5:]
        blocks: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for key, value in body:
            parts = key.split(".")
            if parts[0] == "encoder":
                name, place = ".".join(parts[:5]), 2 if "shortcut" in key else int(parts[6])
            else:
                name, place = ".".join(parts[:2]), rank[parts[2]]
            blocks.setdefault(name, []).append((place, value))
        inner = [value for block in blocks.values() for _, value in sorted(block, key=lambda entry: entry[0])]
        return [value for _, value in stem] + inner

    with torch.no_grad():
        for mine, theirs in zip(ordered(own.state_dict()), ordered(peer.state_dict()), strict=True):
            assert mine.shape == theirs.shape
            mine.copy_(torch.rand_like(theirs) * 0.1 + (theirs if theirs.ndim == 4 else 0.5))
            theirs.copy_(mine)
        images = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(own(images), peer(images).last_hidden_state, rtol=1e-3, atol=1e-3)


def test_published_weights_load_without_their_classifier(tmp_path):
    source = resnet18()
    state = source.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet18.pth")
    loaded = backbone("resnet18", {"weights": str(tmp_path / "resnet18.pth")})
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
    with pytest.raises(ValueError, match=r"the weights in .*resnet18\.pth are of another network"):
        resnet50(weights=tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="`weights` must be a file of weights"):
        resnet50(weights=tmp_path / "nothing.pth")


def test_bottleneck_gradients_reach_every_parameter():
    network = ResNet(block="bottleneck", depths=(1, 2), widths=(4, 8), small_images=True)
    network(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_modules_are_returned_as_they_are():
    network = nn.Flatten()
    network.num_features = 64
    assert backbone(network) is network
    with pytest.raises(ValueError, match="`backbone` must have an attribute `num_features`, got Linear"):
        backbone(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`backbone_options` must be empty"):
        backbone(network, {"in_channels": 1})


def test_transformers_networks_by_type(tmp_path):
    pytest.importorskip("transformers")
    options = {"pretrained": False, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options |= {"intermediate_size": 16, "image_size": 16, "patch_size": 8}
    network = backbone("hf/vit", options).eval()
    assert network.num_features == 16
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 16)
    network.model.save_pretrained(tmp_path)
    loaded = backbone(f"hf/{tmp_path}").eval()
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(loaded(images), network(images))
    convolutional = backbone(
        "hf/resnet", {"pretrained": False, "hidden_sizes": [8, 12], "depths": [1, 1], "embedding_size": 8}
    )
    assert convolutional(torch.zeros(2, 3, 32, 32)).shape == (2, 12)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_other_libraries_or_a_reason(library):
    if importlib.util.find_spec(library) is None:
        with pytest.raises(ModuleNotFoundError, match=f"needs {library}, which does not import"):
            backbone(f"{library}/resnet18", {"pretrained": False})
    else:
        assert num_features(backbone(f"{library}/resnet18", {"pretrained": False})) == 512


def test_a_file_of_weights_reaches_the_other_library(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        network = nn.Flatten()
        network.num_features = 4
        return network

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    backbone("timm/vit", {"weights": "vit.safetensors", "img_size": 32})
    overlay = {"file": "vit.safetensors"}
    wanted = {"name": "vit", "pretrained": True, "num_classes": 0, "img_size": 32, "pretrained_cfg_overlay": overlay}
    assert asked == wanted


def test_a_resnet_of_any_size_by_name():
    options = {"widths": (4, 8), "depths": (1, 1), "small_images": True}
    assert backbone("resnet", options)(torch.zeros(2, 3, 8, 8)).shape == (2, 8, 4, 4)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="conv4"):
        backbone("conv5")
    with pytest.raises(ValueError, match="basic"):
        ResNet(block="wide")
    with pytest.raises(ValueError, match="`widths`"):
        ConvNet(())
    with pytest.raises(ValueError, match="`depths`"):
        ResNet(depths=(1, 1))
