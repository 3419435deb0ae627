"""The photograph sets from their official layouts to a finished run."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from otdml.benchmarks.exhibits import load_exhibits
from otdml.benchmarks.experiment import check_data, execute, load_split
from otdml.benchmarks.models import load_checkpoint, split_for
from otdml.benchmarks.presets import preset
from otdml.benchmarks.runs import Run, RunFolder
from otdml.cli import app
from otdml.data import CenterCrop
from otdml.dml.cache import embedding_key

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
    # Photographs are known by path, size and time, and need not be embedded again.
    found = torch.load(tmp_path / "run" / "last-test.embeddings")
    test = load_split(dataset, str(root), "test", {"size": 32, "allow_partial": True})
    assert found["key"] == embedding_key(load_checkpoint(tmp_path / "run"), test)
    assert found["z"].shape == (len(test), 8)
    assert load_exhibits(tmp_path / "run" / "exhibits.npz")["query"].shape[1:] == (96, 96, 3)


def test_photographs_to_train_on_are_evaluated_whole(published, tmp_path):
    root = published("cub", CLASSES["cub"])
    RunFolder(tmp_path).claim(run_on("cub", allow_partial=True))
    (tmp_path / "last.ckpt").touch()
    images = split_for(tmp_path, None, str(root), "train")
    assert isinstance(images.transform, CenterCrop)
    assert torch.equal(images[0][0], images[0][0])


def test_a_partial_copy_is_refused(published, tmp_path):
    root = published("cub", CLASSES["cub"])
    with pytest.raises(ValueError, match=r"does not hold the whole CUB-200-2011: .*--allow-partial"):
        execute(run_on("cub"), tmp_path / "run", str(root))


def test_a_damaged_image_is_named(published, tmp_path):
    root = published("cub", CLASSES["cub"])
    for path in (root / "CUB_200_2011" / "images").glob("1*/*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        ValueError, match=r"101\.Bird_101/Bird_101_0000_21\.jpg cannot be read as an image \(.*on_corrupt='skip'"
    ):
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


@pytest.mark.slow
def test_the_command_in_two_processes_is_that_in_one_and_survives_a_kill(published, tmp_path):
    """Batch norm frozen, the same global batch: the same first epoch; killed, the same last one, bit for bit."""
    program = tmp_path / "command.py"
    program.write_text("from otdml.cli import main\nif __name__ == '__main__':\n    main()\n")
    root = published("cub", CLASSES["cub"])
    words = ["train", "-d", "cub", "--root", str(root), "--allow-partial", "--weights", "none", "--hold-out"]
    changes = [change for change in TINY if not change.startswith("training.epochs")]
    changes += ["training.epochs=30", "training.precision=32-true", "model.freeze_bn=true"]
    words += ["-m", "proxy-anchor+nir", *(word for change in changes for word in ("--set", change))]

    def start(name, devices):
        command = [sys.executable, str(program), *words, "--devices", str(devices), "--out", str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert [start(name, devices).wait() for name, devices in (("one", 1), ("two", 2))] == [0, 0]
    killed = start("killed", 2)
    while not (tmp_path / "killed" / "curve.csv").exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert start("killed", 2).wait() == 0
    curves = {name: (tmp_path / name / "curve.csv").read_text(encoding="utf-8") for name in ("one", "two", "killed")}
    rows = {name: list(csv.DictReader(curve.splitlines())) for name, curve in curves.items()}
    assert float(rows["two"][0]["loss"]) == pytest.approx(float(rows["one"][0]["loss"]), rel=1e-6)
    assert [row["loss"] for row in rows["killed"]] == [row["loss"] for row in rows["two"]]
    last = {name: json.loads((tmp_path / name / "metrics.json").read_text())["last"] for name in rows}
    assert last["one"] == last["two"] == last["killed"]
