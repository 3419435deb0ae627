"""Baselines: what they are of, and that they are measured once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from otdml.benchmarks import baselines
from otdml.benchmarks.baselines import PIXELS, UNTRAINED, kept_baselines, measure_baselines
from otdml.benchmarks.display import show_table
from otdml.benchmarks.finished import collect
from otdml.benchmarks.presets import preset
from otdml.benchmarks.results import export
from otdml.benchmarks.runs import Run, RunFolder
from otdml.dml.backbones import resnet18


@pytest.fixture
def photos(tmp_path):
    """Four classes, told apart by their colour, in a folder each; two of them are tested."""
    for part in ("train", "test"):
        for number in range(8):
            folder = tmp_path / "photos" / part / f"{part}{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 60, (40, 40, 3), dtype=np.uint8)
            noise[..., number % 2] += 150
            Image.fromarray(noise).save(folder / f"{number}.png")
    return str(tmp_path / "photos")


def run_of(*changes):
    one = preset("folder", ["data.size=32", *changes])
    return Run.of(one, one.method("proxy-anchor"), 0)


def test_pixels_and_pretrained_features_of_files(tmp_path, photos, monkeypatch):
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    pretrained = run_of("model.backbone=resnet18", f"model.backbone_options={{'weights': '{tmp_path}/weights.pth'}}")
    measure_baselines(tmp_path, pretrained, photos)
    found = kept_baselines(tmp_path)
    assert list(found) == [UNTRAINED, PIXELS]
    # The colour of a class is there for every pixel to see.
    assert found[PIXELS]["recall@1"] == 1
    assert 0 <= found[UNTRAINED]["recall@1"] <= 1
    monkeypatch.setattr(baselines, "_embeddings", lambda *_: pytest.fail("measured again"))
    measure_baselines(tmp_path, pretrained, photos)


def test_random_features_and_sets_in_memory_have_none(tmp_path, photos):
    measure_baselines(tmp_path, run_of("model.backbone=resnet18", "model.backbone_options={}"), photos)
    assert list(kept_baselines(tmp_path)) == [PIXELS]
    digits = preset("digits")
    measure_baselines(tmp_path, Run.of(digits, digits.method("proxy-nca"), 0), None)
    assert kept_baselines(tmp_path) == {}


def test_another_network_or_other_images_are_measured_anew(tmp_path, photos):
    run = run_of("model.backbone=resnet18", "model.backbone_options={}")
    measure_baselines(tmp_path, run, photos)
    others = replace(run, training={**run.training, "ks": [1, 5]})
    measure_baselines(tmp_path, others, photos)
    assert "recall@5" in kept_baselines(tmp_path)[PIXELS]
    (tmp_path / "baselines.json").write_text('{"key": "of others", "baselines": {}}')
    measure_baselines(tmp_path, run, photos)
    assert list(kept_baselines(tmp_path)) == [PIXELS]
    (tmp_path / "baselines.json").write_text("damaged")
    assert kept_baselines(tmp_path) == {}


def test_they_stand_in_the_tables(tmp_path, photos, capsys):
    from rich.console import Console

    run = run_of("model.backbone=resnet18", "model.backbone_options={}")
    folder = RunFolder(tmp_path / run.place)
    folder.claim(run)
    metrics = {"recall@1": 0.5, "map@r": 0.25}
    folder.finish({"last": metrics, "best": None, "best_epoch": None, "seconds": 1.0, "raw_pixels": None})
    measure_baselines(tmp_path, run, photos)
    export(tmp_path)
    assert f'\n"{PIXELS}",,,1.0' in (tmp_path / "results.csv").read_text()
    show_table(Console(width=200), collect(tmp_path), preset("folder"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PIXELS)]
    assert "100.0" in line
