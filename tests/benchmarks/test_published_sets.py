"""The photograph sets from their official layouts to a finished run."""

import pytest
from typer.testing import CliRunner

from otdml.benchmarks.exhibits import load_exhibits
from otdml.benchmarks.experiment import check_data, execute
from otdml.benchmarks.presets import preset
from otdml.benchmarks.runs import Run, RunFolder
from otdml.cli import app

# Training classes of each set, then test classes.
CLASSES = {
    "cub": [1, 2, 3, 4, 5, 101, 102, 103],
    "cars": [1, 2, 3, 4, 5, 99, 100, 101],
    "sop": list(range(1, 13)),
    "inshop": list(range(1, 13)),
}


TINY = (
    "model.backbone=resnet",
    "model.backbone_options={widths=[8, 16], depths=[1, 1]}",
    "model.dim=8",
    "data.size=32",
    "training.workers=0",
    "training.classes_per_batch=3",
    "training.samples_per_class=2",
    "training.batches_per_epoch=2",
    "training.epochs=1",
)


def run_on(dataset: str, **options) -> Run:
    """A run of the library's recipe, with a network for two cores."""
    recipe = preset(dataset, TINY).starting_from("none")
    return Run.of(recipe, recipe.method("proxy-anchor"), 0, hold_out=True, data=options)


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


def test_from_the_command_line_to_the_report(published, tmp_path):
    root, out = published("inshop", CLASSES["inshop"]), tmp_path / "runs"
    words = ["benchmark", "-d", "inshop", "--root", str(root), "-m", "proxy-anchor", "--seeds", "1", "--out", str(out)]
    words += ["--weights", "none", *(word for change in TINY for word in ("--set", change))]
    refused = CliRunner().invoke(app, words)
    assert "train lists 24 images of 6 classes, officially 25,882 of 3,997" in str(refused.exception)
    assert not out.exists()
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*words, "--allow-partial"])
    assert result.exit_code == 0, result.output
    assert "Published: ProxyAnchor, Inception-BN R@1 91.9 (here not run), R@10 98.1" in result.output
    report = (out / "report.html").read_text()
    for part in (
        "In-Shop Clothes Retrieval",
        "R@30",
        "Beside the literature",
        "allowed to be a part",
        "data:image/jpeg",
    ):
        assert part in report


def test_a_batch_of_more_classes_than_there_are_is_refused_at_once(published):
    root = published("cub", CLASSES["cub"])
    recipe = preset("cub")
    run = Run.of(recipe, recipe.method("proxy-anchor"), 0, data={"allow_partial": True})
    with pytest.raises(ValueError, match=r"`classes_per_batch` must be at most 5, the classes, got 30\. Pass --set"):
        check_data(run, str(root))
