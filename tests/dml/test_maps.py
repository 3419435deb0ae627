"""Kept maps: those of the frozen part, crop by crop, from files that are told apart by all that makes them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from otdml._files import folder_lock
from otdml.data import Digits, Distort, ImageFolder, RandomResizedCrop
from otdml.dml import ProxyDML, TrainingConfig, embed, fit
from otdml.dml.backbones.cut import cut
from otdml.dml.maps import keep_maps

CONFIG = {"classes_per_batch": 3, "samples_per_class": 6, "batches_per_epoch": 4, "accelerator": "cpu", "ks": (1, 2)}


def module(seed: int = 0, **options) -> ProxyDML:
    return ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, frozen="layers.3", lr=1e-2, seed=seed, **options)


@pytest.fixture
def photos(tmp_path):
    """Ten photographs of noise in two classes."""
    for number in range(10):
        folder = tmp_path / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return ImageFolder(tmp_path / "photos", RandomResizedCrop(24))


def test_exact_maps_are_the_frozen_parts(tmp_path):
    digits, network = Digits(split="val"), module().eval()
    maps, labels = keep_maps(network, digits, folder=tmp_path, exact=True).batch(torch.arange(20))
    expected = cut(network.backbone, "layers.3").lower(digits.batch(range(20))[0].float() / 255)
    torch.testing.assert_close(maps, expected)
    assert torch.equal(labels, digits.labels[:20])
    halves, _ = keep_maps(network, digits, folder=tmp_path).batch(torch.arange(20))
    assert halves.dtype == torch.float16
    torch.testing.assert_close(halves.float(), expected, rtol=1e-3, atol=1e-6)
    assert halves.is_contiguous(memory_format=torch.channels_last)
    assert network.training is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_maps_of_a_network_in_another_precision_are_its_own(tmp_path, dtype):
    digits, network = Digits(split="val"), module().eval().to(dtype)
    maps, _ = keep_maps(network, digits, folder=tmp_path, exact=True).batch(range(8))
    images = (digits.batch(range(8))[0].float() / 255).to(dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(maps.to(dtype), cut(network.backbone, "layers.3").lower(images))
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert keep_maps(network, digits, folder=tmp_path).batch([0])[0].dtype == torch.float16


def test_features_without_places_are_kept_as_they_are(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Linear(5, 4))
    network.num_features = 4
    flat = ProxyDML(3, backbone=network, dim=2, frozen="1")
    maps, _ = keep_maps(flat, Digits(), folder=tmp_path, exact=True).batch([3])
    torch.testing.assert_close(maps, network[:2](Digits()[3][0][None]))


def test_an_image_goes_through_its_crops_in_turn(tmp_path, photos):
    network = ProxyDML(2, backbone="resnet18", dim=2, frozen="layer1", seed=0)
    kept = keep_maps(network, photos, folder=tmp_path, crops=3, exact=True, seed=5)
    epochs = []
    for epoch in range(4):
        kept.set_epoch(epoch)
        epochs.append(kept.batch(range(10))[0])
    assert torch.equal(epochs[0], epochs[3])
    assert all(not torch.equal(epochs[0][i], epochs[1][i]) for i in range(10))
    crops = torch.stack(epochs[:3]).flatten(2)
    first, again = (torch.from_numpy(np.stack([kept.crops[c][i] for c in range(3)])) for i in (0, 9))
    assert {tuple(row.tolist()) for row in crops[:, 0]} == {
        tuple(row.permute(2, 0, 1).flatten().tolist()) for row in first
    }
    assert len({int(place) for place in kept.first}) > 1
    item, label = kept[9]
    assert label == photos.labels[9]
    assert torch.equal(item, again[int(kept.first[9])].permute(2, 0, 1)) is (kept.epoch % 3 == 0)


def test_files_are_made_once_and_told_apart(tmp_path, photos):
    network = ProxyDML(2, backbone="resnet18", dim=2, frozen="layer1", seed=0)
    before = keep_maps(network, photos, folder=tmp_path, crops=2).batch(range(10))[0]
    files = sorted(tmp_path.rglob("*.npy"))
    times = [file.stat().st_mtime_ns for file in files]
    assert [file.name for file in files] == ["0.npy", "1.npy"]
    # What is above the frozen part does not matter, nor the seed of a run; more crops add to those there are.
    other = ProxyDML(2, backbone="resnet18", dim=4, frozen="layer1", seed=0, loss="proxy-nca")
    keep_maps(other, photos, folder=tmp_path, crops=3, seed=1)
    assert [file.stat().st_mtime_ns for file in files] == times
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    # Made anew, they are the same.
    files[0].unlink()
    assert torch.equal(keep_maps(network, photos, folder=tmp_path, crops=2).batch(range(10))[0], before)
    keep_maps(ProxyDML(2, backbone="resnet18", dim=2, frozen="layer1", seed=1), photos, folder=tmp_path)
    photos.transform = RandomResizedCrop(24, scale=(0.5, 1.0))
    keep_maps(network, photos, folder=tmp_path)
    keep_maps(network, photos, folder=tmp_path, augment=Distort())
    assert len([path for path in tmp_path.iterdir() if path.name != "photos"]) == 4


def test_what_cannot_be_told_apart_is_not_kept(tmp_path, photos):
    network = ProxyDML(2, backbone="resnet18", dim=2, frozen="layer1")
    photos.transform = lambda image: torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match="`dataset` must be images in files or in memory"):
        keep_maps(network, photos, folder=tmp_path)
    with pytest.raises(ValueError, match="`module` must have a layer `frozen`, got None"):
        keep_maps(ProxyDML(3), Digits(), folder=tmp_path)


def test_a_process_waits_for_who_is_writing(tmp_path, monkeypatch):
    waited = []
    first = keep_maps(module(), Digits(), folder=tmp_path)
    (home,) = tmp_path.iterdir()

    def release(seconds):
        waited.append(seconds)
        holding.__exit__(None, None, None)

    import otdml._files as files

    holding = folder_lock(home)
    holding.__enter__()
    place = next(iter(files._LOCKED))
    # As another process sees it.
    files._LOCKED.discard(place)
    monkeypatch.setattr(files, "_locked", raising_until_released(waited, files._locked))
    monkeypatch.setattr("otdml.dml.maps.time.sleep", release)
    assert len(keep_maps(module(), Digits(), folder=tmp_path, crops=2)) == len(first)
    assert waited == [1.0]


@pytest.mark.parametrize(("killed", "began"), [(-1, ["0", "1"]), (1, ["0", "1", "1"])])
def test_processes_that_want_the_same_maps_compute_them_once(tmp_path, killed, began):
    """Is the one that computes killed, another goes on where it was."""
    command = [sys.executable, str(Path(__file__).parent / "maps_run.py"), str(tmp_path), "3", str(killed)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    computed, read = (line.split() for line in done.stdout.splitlines())
    assert computed == began, done.stderr
    kept = keep_maps(module(), Digits(), folder=tmp_path / "alone", crops=2, augment=Distort())
    whole = float(sum(crop.astype("float64").sum() for crop in kept.crops))
    assert [float(value) for value in read] == [pytest.approx(whole, rel=1e-5)] * (3 if killed < 0 else 2)
    (home,) = (tmp_path / "maps").iterdir()
    assert {path.name for path in home.iterdir()} == {"0.npy", "1.npy"}


def test_whole_files_are_read_while_another_process_computes_more(tmp_path, monkeypatch):
    before = keep_maps(module(), Digits(), folder=tmp_path)
    monkeypatch.setattr("otdml.dml.maps._alone", None)
    after = keep_maps(module(), Digits(), folder=tmp_path)
    assert torch.equal(after.batch(range(20))[0], before.batch(range(20))[0])


def raising_until_released(waited, locked):
    def tried(path):
        from otdml._files import FolderLockedError

        if not waited:
            raise FolderLockedError("locked")
        return locked(path)

    return tried


def test_training_on_kept_maps_is_training_on_images(tmp_path):
    """One crop without distortion: the same steps as with the frozen part in every step, up to half precision."""
    pairs = {}
    for name, crops in (("images", 0), ("maps", 1)):
        network = module(optimizer="sgd")
        config = TrainingConfig(epochs=2, crops=crops, maps=str(tmp_path / "maps"), **CONFIG)
        found = fit(
            network,
            Digits(split="train"),
            val=Digits(split="val"),
            test=Digits(split="test"),
            folder=tmp_path / name,
            config=config,
            progress=False,
        )
        pairs[name] = network, found
    (images, first), (maps, second) = pairs.values()
    start = module()
    for name, value in maps.state_dict().items():
        torch.testing.assert_close(value.float(), images.state_dict()[name].float(), rtol=0.05, atol=5e-3)
        still = name.startswith("backbone.layers") and int(name.split(".")[2]) <= 3
        assert torch.equal(value, start.state_dict()[name]) is (still or name.endswith("dispersion")), name
    # The curve, and what is left behind, are those of the whole network.
    assert second.last["test/map@r"] == pytest.approx(first.last["test/map@r"], abs=0.02)
    torch.testing.assert_close(second.test_embeddings, embed(maps, Digits(split="test")), rtol=1e-4, atol=1e-5)
    assert maps.network is maps.backbone


def test_a_stopped_run_on_kept_maps_goes_on_to_the_same_numbers(tmp_path):
    config = TrainingConfig(epochs=3, crops=2, maps=str(tmp_path / "maps"), **CONFIG)

    def run(folder, on_epoch=None):
        network = module()
        data = {"val": Digits(split="val"), "augment": Distort(degrees=5)}
        found = fit(network, Digits(), folder=folder, config=config, progress=False, on_epoch=on_epoch, **data)
        return network, found

    class Stop(Exception):
        pass

    def stop(epoch, row):
        if epoch == 1:
            raise Stop

    whole, expected = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "parts", stop)
    parts, found = run(tmp_path / "parts")
    assert found.last == expected.last
    assert found.best == expected.best
    assert all(torch.equal(a, b) for a, b in zip(parts.parameters(), whole.parameters(), strict=True))


def test_a_frozen_part_stands_still_without_kept_maps_as_well(tmp_path):
    network, start = module(weight_decay=0.1), module()
    fit(network, Digits(), folder=tmp_path, config=TrainingConfig(epochs=1, **CONFIG), progress=False)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert not any(name.startswith(("backbone.layers.0.", "backbone.layers.1.")) for name in changed)
    assert {"backbone.layers.4.weight", "backbone.layers.5.running_mean", "head.linear.weight"} <= changed


def test_crops_belong_to_a_frozen_part(tmp_path):
    config = TrainingConfig(epochs=1, crops=2, maps=str(tmp_path / "maps"), **CONFIG)
    with pytest.raises(ValueError, match="`crops` must be 0 for a module that trains as a whole, got 2"):
        fit(ProxyDML(3), Digits(), folder=tmp_path / "run", config=config, progress=False)
    with pytest.raises(ValueError, match="unknown frozen layer 'layer3'"):
        ProxyDML(3, frozen="layer3")
    with pytest.raises(ValueError, match="`frozen` must name a layer"), ProxyDML(3).on_maps():
        pass


def test_maps_beyond_half_precision_are_refused(tmp_path):
    network = module()
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.mul_(1e4)
    with pytest.raises(ValueError, match=r"`module` must have maps that are numbers of float16.*Pass exact=True"):
        keep_maps(network, Digits(), folder=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    assert keep_maps(network, Digits(), folder=tmp_path, exact=True).batch([0])[0].isfinite().all()
