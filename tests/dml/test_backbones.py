"""Networks: sizes and key names as published, names of other libraries, errors."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from otdml.dml.backbones import BACKBONES, ConvNet, ResNet, backbone, num_features, resnet18, resnet50
from otdml.dml.backbones.libraries import OfTransformers, without_classifier


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


def test_transformers_weights_in_half_precision_and_without_a_pooler(tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**options, image_size=16, patch_size=8)
    model = transformers.ViTModel(config, add_pooling_layer=False).bfloat16().eval()
    model.save_pretrained(tmp_path)
    network = backbone(f"hf/{tmp_path}").eval()
    images = torch.rand(2, 3, 16, 16)
    found = network(images)
    assert found.dtype == torch.float32
    # A pooler that has no weights would be a random layer and a tangent.
    torch.testing.assert_close(found, model.float()(images).last_hidden_state[:, 0])


class Told(nn.Module):
    """A network in the form of transformers, that returns given tensors for two images of three channels."""

    def __init__(self, config=None, **found):
        super().__init__()
        self.config, self.found, self.scale = types.SimpleNamespace(**config or {}), found, nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        assert pixel_values.shape[1:] == (3, *getattr(self.config, "image_size", (224, 224)))
        found = {key: None if value is None else value[: len(pixel_values)] for key, value in self.found.items()}
        return types.SimpleNamespace(**found)


def test_features_of_transformers_models_are_pooled_maps_or_the_first_token():
    images, tokens = torch.zeros(2, 3, 224, 224), torch.arange(24.0).reshape(2, 4, 3)
    maps = torch.arange(48.0).reshape(2, 6, 2, 2)
    cases = [
        (Told(last_hidden_state=tokens, pooler_output=tokens[:, 1]), {}, tokens[:, 1]),
        (Told(last_hidden_state=tokens, pooler_output=tokens[:, 1]), {"pooler": False}, tokens[:, 0]),
        (Told(last_hidden_state=tokens, pooler_output=None), {}, tokens[:, 0]),
        (Told(last_hidden_state=maps), {}, maps),
        (Told(pooler_output=maps), {}, maps.mean((2, 3))),
    ]
    for model, options, expected in cases:
        network = OfTransformers(model, **options)
        torch.testing.assert_close(network(images), expected)
        assert network.num_features == expected.shape[1]


def test_the_part_for_images_of_a_transformers_model_sees_all_of_each_image():
    masked = Told({"mask_ratio": 0.75, "image_size": (8, 16)}, pooler_output=torch.ones(2, 5))
    both = nn.Module()
    both.vision_model = masked
    network = OfTransformers(both)
    assert network.num_features == 5
    assert masked.config.mask_ratio == 0.0
    assert network.model is masked


@pytest.mark.parametrize(
    ("missing", "place"),
    [([], 1), (["text_model.pooler.weight"], 1), (["vision_model.pooler.weight"], 0), (["vision_model.head"], 1)],
)
def test_only_a_pooler_of_images_without_weights_is_left_out(monkeypatch, missing, place):
    tokens, both = torch.arange(24.0).reshape(2, 4, 3), nn.Module()
    both.vision_model = Told(last_hidden_state=tokens, pooler_output=tokens[:, 1])
    transformers = types.ModuleType("transformers")
    loaded = types.SimpleNamespace(from_pretrained=lambda name, **options: (both, {"missing_keys": missing}))
    transformers.AutoModel = loaded
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    found = backbone("hf/owner/name")(torch.zeros(2, 3, 224, 224))
    torch.testing.assert_close(found, tokens[:, place])


def test_models_of_other_things_than_images_are_refused():
    class Words(Told):
        def forward(self, pixel_values):
            raise ValueError("You must specify input_ids")

    with pytest.raises(ValueError, match=r"must map images to features \(You must specify input_ids\), got Words"):
        OfTransformers(Words())
    # The first of the objects that a detector finds is no feature of the image.
    detector = Told({"is_encoder_decoder": True}, last_hidden_state=torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match=r"must map images to features \(its decoder makes objects or words of them\)"):
        OfTransformers(detector)


def classifier(place, head, **attributes):
    network = nn.Module()
    setattr(network, place, head)
    for name, value in attributes.items():
        setattr(network, name, value)
    return without_classifier(network)


def test_classifiers_end_before_their_last_layer():
    plain = classifier("fc", nn.Linear(6, 3))
    assert plain.num_features == 6
    assert [*plain.fc.children()] == []
    # The hidden layers of a VGG, the normalisation of a ConvNeXt.
    whole, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)), torch.rand(2, 6)
    hidden = classifier("classifier", whole)
    assert hidden.num_features == 5
    torch.testing.assert_close(whole[-1](hidden.train().classifier(x)), whole.eval()(x))
    whole = nn.Sequential(nn.LayerNorm((6, 1, 1)), nn.Flatten(1), nn.Linear(6, 3))
    normed = classifier("classifier", whole)
    torch.testing.assert_close(whole[-1](normed.classifier(x[..., None, None])), whole(x[..., None, None]))
    # Inception networks.
    several = classifier("fc", nn.Linear(6, 3), aux_logits=True, AuxLogits=nn.Linear(4, 3), dropout=nn.Dropout())
    assert (several.aux_logits, several.AuxLogits, several.training) == (False, None, True)
    assert torch.equal(several.dropout(torch.ones(100)), torch.ones(100))
    assert [*several.parameters()] == []
    with pytest.raises(ValueError, match="`backbone` must end in a linear layer, got Module"):
        classifier("classifier", nn.Sequential(nn.Dropout(), nn.Conv2d(4, 3, 1), nn.ReLU()))
    with pytest.raises(ValueError, match="`backbone` must end in a linear layer, got Module"):
        classifier("other", nn.Linear(6, 3))


@pytest.mark.parametrize(("name", "pixels"), [("mobilenetv3_small_050", 32), ("mambaout_femto", 32), ("vgg11", 32)])
def test_networks_of_timm_say_the_width_that_they_return(name, pixels):
    pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    network = backbone(f"timm/{name}", {"pretrained": False}).eval()
    assert network(torch.zeros(1, 3, pixels, pixels)).shape == (1, num_features(network))


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small", "alexnet", "googlenet", "inception_v3"])
def test_networks_of_torchvision_return_one_row_of_features_for_an_image(name):
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    network = backbone(f"torchvision/{name}", {"pretrained": False}).train()
    assert network(torch.rand(2, 3, 96, 96)).shape == (2, num_features(network))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_other_libraries_or_a_reason(library):
    if importlib.util.find_spec(library) is None:
        with pytest.raises(ModuleNotFoundError, match=f"needs {library}, which does not import"):
            backbone(f"{library}/resnet18", {"pretrained": False})
    else:
        assert num_features(backbone(f"{library}/resnet18", {"pretrained": False})) == 512
        with pytest.raises((ValueError, RuntimeError), match=r"(?i)unknown"):
            backbone(f"{library}/fcn_resnet50", {"pretrained": False})


def test_only_classifiers_of_torchvision_are_made(monkeypatch):
    """A network for segmentation fetches weights of a part of it where none are asked for."""

    def get_model(name, weights):
        assert (name, weights) == ("resnet18", None)
        network = nn.Module()
        network.fc = nn.Linear(6, 3)
        return network

    models = types.ModuleType("torchvision.models")
    models.list_models, models.get_model = lambda module: ["resnet18"] if module is models else ["fcn"], get_model
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    assert num_features(backbone("torchvision/resnet18", {"pretrained": False})) == 6
    with pytest.raises(ValueError, match=r"unknown classifier of torchvision 'fcn'\. Known: resnet18"):
        backbone("torchvision/fcn", {"pretrained": False})


def test_a_file_of_weights_reaches_the_other_library(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        network = nn.Flatten()
        # As a hidden layer after the features has it.
        network.num_features, network.head_hidden_size = 4, 6
        return network

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert num_features(backbone("timm/vit", {"weights": "vit.safetensors", "img_size": 32})) == 6
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
