"""The photograph sets from their official layouts to a finished run."""

import pytest

from otdml.benchmarks.exhibits import load_exhibits
from otdml.benchmarks.experiment import execute
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import Preset
from otdml.benchmarks.runs import Run, RunFolder

# Training classes of each set, then test classes.
CLASSES = {
    "cub": [1, 2, 3, 4, 5, 101, 102, 103],
    "cars": [1, 2, 3, 4, 5, 99, 100, 101],
    "sop": list(range(1, 13)),
    "inshop": list(range(1, 13)),
}


def run_on(dataset: str, **options) -> Run:
    preset = Preset(
        name="tiny",
        title="tiny",
        dataset=dataset,
        data={"size": 32, **options},
        model={"dim": 8, "backbone": "conv4", "backbone_options": {"in_channels": 3}, "lr": {"backbone": 1e-3}},
        training={"epochs": 1, "classes_per_batch": 3, "samples_per_class": 2, "batches_per_epoch": 2, "ks": [1, 2]},
        compare=("proxy-anchor",),
    )
    return Run.of(preset, METHODS["proxy-anchor"], 0, hold_out=True)


@pytest.mark.parametrize("dataset", sorted(CLASSES))
def test_a_run_on_a_published_layout(dataset, published, tmp_path):
    root = published(dataset, CLASSES[dataset])
    execute(run_on(dataset, allow_partial=True), tmp_path / "run", str(root))
    metrics = RunFolder(tmp_path / "run").metrics()
    # Each class has its colour, which a network with random weights tells apart.
    assert metrics["last"]["recall@1"] > 0.8
    assert metrics["last"]["left_out"] == 0
    assert load_exhibits(tmp_path / "run" / "exhibits.npz")["query"].shape[1:] == (96, 96, 3)


def test_a_partial_copy_is_refused(published, tmp_path):
    root = published("cub", CLASSES["cub"])
    with pytest.raises(ValueError, match=r"does not hold the whole CUB-200-2011: .*--allow-partial"):
        execute(run_on("cub"), tmp_path / "run", str(root))


def test_a_damaged_image_is_named(published, tmp_path):
    root = published("cub", CLASSES["cub"])
    for path in (root / "CUB_200_2011" / "images").glob("1*/*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"101\.Bird_101/Bird_101_0000_21\.jpg is .*on_corrupt='skip'"):
        execute(run_on("cub", allow_partial=True), tmp_path / "run", str(root))
