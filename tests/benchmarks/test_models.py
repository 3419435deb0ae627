"""Image files become what the model was trained on."""

import numpy as np
import pytest
import torch
from PIL import Image

from otdml.benchmarks.models import (
    GreyImage,
    checkpoint_metrics,
    embedded,
    image_files,
    image_transform,
    load_checkpoint,
)
from otdml.benchmarks.presets import preset
from otdml.data import Digits, crop_to_ink
from otdml.dml import ProxyDML, cache, evaluation, training


def test_drawings_are_inverted_and_cropped_as_in_training(generator):
    ink = torch.zeros(1, 1, 105, 105, dtype=torch.uint8)
    ink[..., 20:60, 30:50] = 255 * (torch.rand(40, 20, generator=generator) > 0.3)
    paper = Image.fromarray(255 - ink[0, 0].numpy())
    found = GreyImage(28, invert=True, crop=True)(paper)
    assert torch.equal(found, crop_to_ink(ink, 28, least=35)[0].float() / 255)
    assert not torch.equal(found, GreyImage(28, invert=True)(paper))


def test_grey_paper_is_no_ink():
    scan = np.full((60, 60), 220, dtype=np.uint8)
    scan[10:30, 10:30] = 5
    clean = np.where(scan > 128, 255, scan).astype(np.uint8)
    crop = GreyImage(12, invert=True, crop=True)
    assert torch.equal(crop(Image.fromarray(scan)), crop(Image.fromarray(clean)))


@pytest.fixture
def checkpoint(tmp_path):
    module = ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, seed=0)
    torch.save({"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}, tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


@pytest.fixture
def drawings(tmp_path):
    for number in range(3):
        path = tmp_path / "drawings" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 60 * number).save(path)
    return tmp_path / "drawings"


def test_an_index_of_the_same_images_is_not_made_again(tmp_path, checkpoint, drawings, monkeypatch):
    first, _ = embedded(checkpoint, [drawings], tmp_path / "index")
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "embeddings", lambda *_, **__: pytest.fail("was made again"))
        again, _ = embedded(checkpoint, [drawings], tmp_path / "index")
        searched, _ = embedded(checkpoint, [drawings], tmp_path / "index", factory="HNSW4")
        assert searched.approximate.recall == 1
        (tmp_path / "index" / "approximate.faiss").write_bytes(b"damaged")
        assert embedded(checkpoint, [drawings], tmp_path / "index", factory="HNSW4")[0].approximate is not None
        assert embedded(checkpoint, [drawings], tmp_path / "index")[0].approximate is None
    assert torch.equal(again.z, first.z)
    model = load_checkpoint(checkpoint)
    files = image_files([drawings], image_transform(checkpoint, model), "raise")
    torch.testing.assert_close(again.z, training.embed(model, files))
    Image.new("L", (28, 28), 200).save(drawings / "a" / "3.png")
    assert len(embedded(checkpoint, [drawings], tmp_path / "index")[0]) == 4
    assert len(embedded(checkpoint, [drawings], tmp_path / "index", size=14)[0]) == 4


def test_evaluation_uses_the_embeddings_beside_the_checkpoint(checkpoint, monkeypatch):
    found, left_out = checkpoint_metrics(checkpoint, preset("digits"), None, "test", (1,))
    assert left_out == {}
    digits = Digits(split="test")
    assert found == training.evaluate(load_checkpoint(checkpoint), digits, ks=(1,))
    monkeypatch.setattr(cache, "embed", lambda *_, **__: pytest.fail("was made again"))
    assert checkpoint_metrics(checkpoint, preset("digits"), None, "test", (1,))[0] == found
    assert set(checkpoint_metrics(checkpoint, preset("digits"), None, "test", (2, 4))[0]) >= {"recall@2", "recall@4"}


def test_checkpoints_of_other_models_are_named(checkpoint):
    content = torch.load(checkpoint)
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | {"dim": 4}}, checkpoint)
    with pytest.raises(ValueError, match="its weights do not fit"):
        load_checkpoint(checkpoint)
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | {"colour": "red"}}, checkpoint)
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        load_checkpoint(checkpoint)
