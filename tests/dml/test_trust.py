"""What hyper-parameters of unknown origin may name."""

import pytest
import torch

from otdml.dml import ProxyDML
from otdml.dml.trust import check_names

PLAIN = [
    {},
    {"backbone": "conv4", "backbone_options": {"widths": [4, 8]}},
    {"backbone": "resnet", "backbone_options": {"block": "bottleneck", "depths": (1, 1), "small_images": True}},
    {"backbone": "timm/vit_small_patch16_224", "backbone_options": {"pretrained": False, "img_size": 32}},
    {"backbone": "torchvision/resnet50", "backbone_options": {"pretrained": False}},
]
HARMFUL = [
    {"backbone": "hf/somebody/something", "backbone_options": {"trust_remote_code": True}},
    {"backbone": "hf/somebody/something", "backbone_options": {"pretrained": False}},
    {"backbone": "hf/somebody", "backbone_options": {"pretrained": False, "trust_remote_code": True}},
    {"backbone": "hf//tmp/folder", "backbone_options": {"pretrained": False}},
    {"backbone": "hf/../folder", "backbone_options": {"pretrained": False}},
    {"backbone": "hf/vit", "backbone_options": {"pretrained": False, "auto_map": {"AutoModel": "x--y.Z"}}},
    {"backbone": "hf/vit", "backbone_options": {"pretrained": False, "attn_implementation": "somebody/kernel"}},
    {"backbone": "hf/vit", "backbone_options": {"weights": "/tmp/folder", "pretrained": False}},
    {"backbone": "timm/hf-hub:somebody/net", "backbone_options": {"pretrained": False}},
    {"backbone": "timm/resnet18", "backbone_options": {"pretrained": True}},
    {"backbone": "timm/resnet18", "backbone_options": None},
    {"backbone": "timm/resnet18", "backbone_options": {"pretrained": False, "checkpoint_path": "x"}},
    {"backbone": "timm/resnet18", "backbone_options": {"pretrained": False, "pretrained_cfg": {"url": "x"}}},
    {"backbone": "resnet18", "backbone_options": {"weights": "/etc/passwd"}},
    {"backbone": "other/net", "backbone_options": {"pretrained": False}},
    {"backbone": ["conv4"]},
    {"backbone": "conv4", "backbone_options": "widths"},
]


@pytest.mark.parametrize("settings", PLAIN)
def test_networks_from_code_that_is_installed_are_taken(settings):
    check_names(settings, "a.ckpt")


@pytest.mark.parametrize("settings", HARMFUL)
def test_whatever_could_load_or_run_something_is_refused(settings):
    with pytest.raises(ValueError, match=r"^a\.ckpt (names|is damaged)"):
        check_names(settings, "a.ckpt")


def test_a_checkpoint_is_not_obeyed_without_a_word(tmp_path, monkeypatch):
    """Neither as a file nor as a folder for a hub; and with the word it is."""
    asked = []
    monkeypatch.setattr("otdml.dml.module.make_backbone", lambda *words: asked.append(words) or torch.nn.Flatten())
    monkeypatch.setattr("otdml.dml.module.num_features", lambda network: 4)
    settings = {"num_classes": 2, "dim": 3, "backbone": "hf/a/b", "backbone_options": {"trust_remote_code": True}}
    settings["loss"] = "proxy-anchor"
    module = ProxyDML(**settings)
    state = {"hyper_parameters": settings, "state_dict": module.state_dict(), "pytorch-lightning_version": "2.4.0"}
    torch.save(state, tmp_path / "a.ckpt")
    asked.clear()
    with pytest.raises(ValueError, match=r"a\.ckpt names the network 'hf/a/b'.*Pass trust=True"):
        ProxyDML.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert not asked
    ProxyDML.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, trust=True)
    assert len(asked) == 1
    pytest.importorskip("safetensors")
    module.save_pretrained(tmp_path / "model")
    asked.clear()
    with pytest.raises(ValueError, match="Pass trust=True"):
        ProxyDML.from_pretrained(tmp_path / "model")
    assert not asked
