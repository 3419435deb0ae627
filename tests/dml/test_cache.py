"""Kept embeddings: read only where weights, images and transform are those that made them."""

import functools
import os

import pytest
import torch
from PIL import Image

from otdml.data import CenterCrop, Digits, ImageFolder
from otdml.dml import ProxyDML, TrainingConfig, cache, embed, fit
from otdml.dml.cache import embedding_file, embedding_key, keep_embedding, kept_embedding


def module(seed=0, **options):
    return ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, seed=seed, **options)


@pytest.fixture
def photos(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (60 * int(path.stem), 0, 0)).save(path)
    return tmp_path / "photos"


def test_embeddings_are_made_once(tmp_path, monkeypatch):
    trained, digits, path = module(), Digits(split="test"), tmp_path / "some.embeddings"
    first = kept_embedding(path, trained, digits)
    assert torch.equal(first, embed(trained, digits))
    monkeypatch.setattr(cache, "embed", lambda *_, **__: pytest.fail("was made again"))
    assert torch.equal(kept_embedding(path, trained, digits), first)


def test_other_weights_or_images_make_new_ones(tmp_path):
    trained, digits, path = module(), Digits(split="test"), tmp_path / "some.embeddings"
    first = kept_embedding(path, trained, digits)
    with torch.no_grad():
        trained.head.linear.bias[0] += 0.1
    second = kept_embedding(path, trained, digits)
    assert not torch.equal(first, second)
    assert torch.equal(second, embed(trained, digits))
    digits.images = digits.images.clone()
    digits.images[0] = 255 - digits.images[0]
    assert torch.equal(kept_embedding(path, trained, digits), embed(trained, digits))


def test_damaged_and_unwritable_files_are_done_without(tmp_path):
    trained, digits, path = module(), Digits(split="test"), tmp_path / "some.embeddings"
    path.write_bytes(b"half a file")
    assert torch.equal(kept_embedding(path, trained, digits), embed(trained, digits))
    assert torch.load(path)["key"] == embedding_key(trained, digits)
    assert torch.equal(kept_embedding(tmp_path / "no" / "folder", trained, digits), embed(trained, digits))


def test_key_sees_network_and_pooling():
    digits = Digits(split="test")
    keys = {embedding_key(made, digits) for made in (module(), module(1), module(pool="max"), module(head="layernorm"))}
    assert len(keys) == 4
    # Proxies and flow do not embed.
    assert embedding_key(module(nir_weight=1.0, lr=3.0), digits) == embedding_key(module(), digits)


def test_key_sees_into_networks_with_modules_of_any_name(photos):
    options = {"widths": (4, 8), "depths": (1, 1)}
    made = [
        ProxyDML(3, backbone="resnet", backbone_options=options | own, dim=8, seed=seed)
        for own, seed in (({}, 0), ({}, 0), ({}, 1), ({"small_images": True}, 0))
    ]
    keys = [embedding_key(one, ImageFolder(photos, CenterCrop(8))) for one in made]
    assert None not in keys
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_key_sees_files_and_transform(photos):
    trained, key = module(), functools.partial(embedding_key, module())
    first = key(ImageFolder(photos, CenterCrop(8)))
    assert first == key(ImageFolder(photos, CenterCrop(8)))
    others = [CenterCrop(10), CenterCrop(8, 11), CenterCrop(8, mean=(0.1, 0.2, 0.30001))]
    assert len({first, *(key(ImageFolder(photos, other)) for other in others)}) == 4
    stored = ImageFolder(photos, CenterCrop(8))
    stored.upright = False
    assert key(stored) != first
    stat = (photos / "a" / "1.png").stat()
    os.utime(photos / "a" / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert embedding_key(trained, ImageFolder(photos, CenterCrop(8))) != first


def test_what_cannot_be_seen_into_is_not_kept(photos, tmp_path):
    for transform in (lambda image: image, functools.partial(CenterCrop(8).__call__), len):
        assert embedding_key(module(), ImageFolder(photos, transform)) is None
    keep_embedding(tmp_path / "some.embeddings", None, torch.zeros(2))
    assert not (tmp_path / "some.embeddings").exists()


def test_run_keeps_those_of_its_checkpoints(tmp_path, monkeypatch):
    """After a run, the unseen images of both checkpoints need not be embedded again."""
    config = TrainingConfig(epochs=3, classes_per_batch=3, samples_per_class=6, batches_per_epoch=2, accelerator="cpu")
    val, test = Digits(split="val"), Digits(split="test")
    found = fit(module(lr=0.1), Digits(), val=val, test=test, folder=tmp_path, config=config, progress=False)
    names = ["last"] if found.best_epoch == 2 else ["last", "best"]
    expected = {}
    for name in names:
        loaded = ProxyDML.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        expected |= {(name, "val"): embed(loaded, val), (name, "test"): embed(loaded, test)}
    monkeypatch.setattr(cache, "embed", lambda *_, **__: pytest.fail("was made again"))
    for (name, split), z in expected.items():
        loaded = ProxyDML.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        path = embedding_file(tmp_path / f"{name}.ckpt", split)
        assert torch.equal(kept_embedding(path, loaded, val if split == "val" else test), z)


class Power(torch.nn.Module):
    num_features = 1

    def __init__(self, power):
        super().__init__()
        self.power = power
        self.register_buffer("shift", torch.zeros(()), persistent=False)

    def forward(self, images):
        return (images.flatten(1)[:, :1] + self.shift) ** self.power


def test_key_sees_attributes_and_buffers_that_are_not_kept():
    digits = Digits(split="test")

    def key(network):
        return embedding_key(ProxyDML(3, backbone=network, dim=4, seed=0), digits)

    assert key(Power(1)) == key(Power(1).eval())
    assert key(Power(1)) != key(Power(5))
    moved = Power(1)
    moved.shift += 1
    assert key(Power(1)) != key(moved)
