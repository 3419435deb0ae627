"""Trained models in other forms: what comes back is what was trained."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from otdml.dml import CrossBatchMemory, MultiSimilarity, ProxyDML, export_onnx, export_safetensors
from otdml.dml import export as export_module

SMALL = {"backbone_options": {"widths": (4, 8)}, "dim": 8, "seed": 0}


@pytest.fixture
def trained(generator):
    """A module whose batch norms have seen images, in training."""
    module = ProxyDML(3, **SMALL, loss="soft-triple", loss_options={"centres": 2}, pool="avgmax", head="layernorm")
    for _ in range(3):
        module(torch.rand(8, 1, 12, 12, generator=generator))
    return module


def embeddings(module, images):
    with torch.no_grad():
        return module.eval()(images)


def test_onnx_computes_the_embeddings(trained, tmp_path, generator):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export_onnx(trained, tmp_path / "model.onnx", size=12) < 1e-5
    assert trained.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 7):
        images = torch.rand(n, 1, 12, 12, generator=generator)
        (found,) = session.run(["embeddings"], {"images": images.numpy()})
        np.testing.assert_allclose(found, embeddings(trained, images).numpy(), atol=1e-5)
        trained.train()


def test_a_wrong_graph_is_refused(trained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(ArithmeticError, match=r"the ONNX graph for .*model.onnx is off by"):
        export_onnx(trained, tmp_path / "model.onnx", size=12)


@pytest.fixture
def stand_in(monkeypatch):
    """An exporter without its libraries, whose graph is wrong."""

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, *_):
            return [np.ones((6, 8), np.float32)]

    monkeypatch.setattr(export_module, "_library", lambda name: SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(torch.onnx, "export", lambda net, images, path, **_: Path(path).write_bytes(b"wrong graph"))


def test_a_wrong_graph_leaves_the_earlier_file(trained, tmp_path, stand_in):
    (tmp_path / "model.onnx").write_bytes(b"good graph")
    with pytest.raises(ArithmeticError, match=r"the ONNX graph for .*/model.onnx is off by"):
        export_onnx(trained, tmp_path / "model.onnx", size=12)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"good graph")]


def test_a_configuration_of_something_else_is_not_overwritten(trained, tmp_path):
    for content in ('{"fingerprint": "0", "run": {}}', "[]", "no JSON"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"`folder` must hold no other configuration, got .*config.json, which is none"
        ):
            trained.save_pretrained(tmp_path)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", content)]
    pytest.importorskip("safetensors")
    (tmp_path / "config.json").unlink()
    trained.save_pretrained(tmp_path)
    trained.save_pretrained(tmp_path)
    assert ProxyDML.from_pretrained(tmp_path).hparams == trained.hparams


def test_safetensors_hold_the_state(trained, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    export_safetensors(trained, tmp_path / "model.safetensors")
    found = safetensors.load_file(tmp_path / "model.safetensors")
    assert found.keys() == trained.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in trained.state_dict().items())


def test_a_full_disk_leaves_the_earlier_safetensors(trained, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"earlier")
    write = safetensors.save_file
    monkeypatch.setattr(
        safetensors, "save_file", lambda tensors, _, **options: write(tensors, "/dev/full/x", **options)
    )
    with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: .*before is unchanged"):
        export_safetensors(trained, path)
    assert path.read_bytes() == b"earlier"


def test_a_pretrained_folder_is_the_module(trained, tmp_path, generator):
    pytest.importorskip("safetensors")
    trained.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["loss_options"] == {"centres": 2}
    found = ProxyDML.from_pretrained(tmp_path / "model")
    images = torch.rand(4, 1, 12, 12, generator=generator)
    assert not found.training
    assert torch.equal(found(images), embeddings(trained, images))
    assert dict(found.hparams) == dict(trained.hparams)


def test_modules_are_passed_again_and_memories_go_on(tmp_path):
    pytest.importorskip("safetensors")
    loss = CrossBatchMemory(MultiSimilarity(), 8, size=16)
    module = ProxyDML(3, **SMALL, loss=loss)
    module.losses(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    module.save_pretrained(tmp_path)
    found = ProxyDML.from_pretrained(tmp_path, loss=CrossBatchMemory(MultiSimilarity(), 8, size=16))
    assert torch.equal(found.loss.memory, loss.memory)
    assert found.loss.get_extra_state() == {"next": 6, "filled": 6}


def test_the_hub_reads_and_writes_the_same_folder(trained, tmp_path, generator):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")

    class Hub(nn.Module, hub.PyTorchModelHubMixin):
        """A module of somebody else, with the arguments of ours."""

        def __init__(self, num_classes: int, loss: str, loss_options: dict, **others) -> None:
            super().__init__()
            inner = ProxyDML(num_classes, loss=loss, loss_options=loss_options, **others)
            self.backbone, self.head, self.loss, self.forward = inner.backbone, inner.head, inner.loss, inner.forward

    trained.save_pretrained(tmp_path / "ours")
    theirs = Hub.from_pretrained(tmp_path / "ours")
    images = torch.rand(4, 1, 12, 12, generator=generator)
    expected = embeddings(trained, images)
    theirs.eval()
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in trained.state_dict().items())
    theirs.save_pretrained(tmp_path / "theirs", config=dict(trained.hparams))
    assert torch.equal(ProxyDML.from_pretrained(tmp_path / "theirs")(images), expected)


def test_a_repository_is_asked_for(monkeypatch, trained, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    trained.save_pretrained(tmp_path)
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, sorted(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    ProxyDML.from_pretrained("someone/model", revision="v1")
    assert asked == [("someone/model", "v1", ["config.json", "model.safetensors"])]
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        ProxyDML.from_pretrained("nowhere")


def test_a_missing_library_is_named_with_its_remedy(tmp_path):
    code = (
        "import sys; sys.modules['safetensors'] = None; sys.modules['safetensors.torch'] = None\n"
        "from otdml.dml import ProxyDML\n"
        f"ProxyDML(3, dim=8, seed=0).save_pretrained({str(tmp_path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "this needs safetensors: pip install 'otdml[export]'" in done.stderr


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", "{"), ("config.json", "[]"), ("model.safetensors", "torn")]
)
def test_damaged_files_of_a_model_are_named(tmp_path, name, content):
    pytest.importorskip("safetensors")
    ProxyDML(3, dim=8, seed=0).save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        ProxyDML.from_pretrained(tmp_path)


def test_a_loss_that_was_a_module_is_asked_for(tmp_path):
    pytest.importorskip("safetensors")
    ProxyDML(3, loss=MultiSimilarity(), dim=8, seed=0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`loss` must be given, as it was a module"):
        ProxyDML.from_pretrained(tmp_path)
    assert isinstance(ProxyDML.from_pretrained(tmp_path, loss=MultiSimilarity()).loss, MultiSimilarity)
