"""Photographs of one's own, by commands alone: from a folder to a report, an index and other programs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from otdml.benchmarks.models import split_for
from otdml.benchmarks.presets import preset
from otdml.cli import app
from otdml.data import ClassFolders

TINY = (
    "model.backbone=resnet",
    "model.backbone_options={widths=[8, 16], depths=[1, 1]}",
    "model.dim=8",
    "data.size=32",
    "training.samples_per_class=2",
    "training.batches_per_epoch=2",
    "training.precision=32-true",
)
CHANGES = [word for change in TINY for word in ("--set", change)]


def command(*words):
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    return runner.invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight classes with four photographs each, told apart by their colour; one of them has a name that is markup."""
    root = tmp_path_factory.mktemp("photos")
    for c, name in enumerate(["ant", "<b>bee</b>", "[red]cat", "dög", "elk/big", "elk/small", "fox", "gnu"]):
        base = np.random.default_rng(c).integers(30, 225, 3)
        for i in range(4):
            path = root / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(10 * c + i).integers(-20, 20, (40, 56, 3))
            Image.fromarray((base + noise).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def benchmarked(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    words = ["benchmark", "-d", "folder", "--root", photos, "-m", "proxy-anchor", "--seeds", 1, "--epochs", 1]
    result = command(*words, "--out", out, *CHANGES)
    assert result.exit_code == 0, result.output
    return out, words, result


def test_a_report(benchmarked):
    out, _, result = benchmarked
    assert "R@1" in result.output
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Images of your own: folder with model.backbone" in report
    assert "data:image/jpeg" in report
    assert "<b>bee" not in report
    metrics = json.loads((out / "proxy-anchor" / "seed-0" / "metrics.json").read_text())
    # Each class has its colour, which a network with random weights tells apart.
    assert metrics["last"]["recall@1"] > 0.8


def test_the_same_command_goes_on_and_other_images_are_refused(benchmarked, photos, tmp_path):
    out, words, _ = benchmarked
    before = (out / "proxy-anchor" / "seed-0" / "metrics.json").stat().st_mtime_ns
    assert command(*words, "--out", out, *CHANGES).exit_code == 0
    assert (out / "proxy-anchor" / "seed-0" / "metrics.json").stat().st_mtime_ns == before
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    words[words.index(photos)] = moved
    assert command(*words, "--out", out, *CHANGES).exit_code == 0
    shutil.copy(moved / "ant" / "0.jpg", moved / "ant" / "4.jpg")
    refused = command(*words, "--out", out, *CHANGES)
    assert "other images or labels now" in str(refused.exception)
    words[words.index(moved)] = photos


def test_another_method_is_not_compared_on_other_images(benchmarked, photos, tmp_path):
    """The runs that are there stand in the table, whether the command asks for them or not."""
    out = shutil.copytree(benchmarked[0], tmp_path / "runs")
    other = shutil.copytree(photos, tmp_path / "other")
    words = ["benchmark", "-d", "folder", "-m", "proxy-nca", "--seeds", 1, "--epochs", 1, "--out", out, *CHANGES]
    shutil.copy(other / "ant" / "0.jpg", other / "ant" / "4.jpg")
    refused = command(*words, "--root", other)
    assert refused.exit_code == 1
    assert f"{out}/proxy-anchor/seed-0 holds a run on another state of the data set" in str(refused.exception)
    assert not (out / "proxy-nca").exists()


def test_its_network_is_used_like_any_other(benchmarked, photos, tmp_path):
    run = benchmarked[0] / "proxy-anchor" / "seed-0"
    metrics = json.loads((run / "metrics.json").read_text())["last"]
    found = command("evaluate", run, "--root", photos, "--json")
    assert json.loads(found.output)["recall@1"] == pytest.approx(metrics["recall@1"])
    assert command("embed", run, photos, "--out", tmp_path / "index").exit_code == 0
    near = command("search", tmp_path / "index", photos / "fox" / "1.jpg", "-k", 2)
    assert near.output.splitlines()[0] == f"1.0000  {photos}/fox/1.jpg"
    pytest.importorskip("safetensors")
    assert command("export", run, "--out", tmp_path / "model").exit_code == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_named_set_is_split_as_the_run_had_it(photos, tmp_path):
    """Of another seed of the split, the classes to test on were trained on."""
    words = ["train", "-d", "folder", "--root", photos, "--epochs", 1, "--out", tmp_path, *CHANGES]
    assert command(*words, "--set", "data.split_seed=7", "--set", "data.least=2").exit_code == 0
    named = split_for(tmp_path, preset("folder"), str(photos), "test")
    assert named.classes == split_for(tmp_path, None, str(photos), "test").classes
    assert named.classes == ClassFolders(photos, "test", size=32, split_seed=7).classes
    assert named.classes != ClassFolders(photos, "test", size=32).classes
    assert named[0][0].shape == (3, 32, 32)
    found, expected = (
        command("evaluate", tmp_path, *more, "--root", photos, "--json") for more in (["-d", "folder"], [])
    )
    assert json.loads(found.output) == json.loads(expected.output)


@pytest.mark.parametrize("name", ["split_seed", "test_share"])
def test_folders_that_are_the_split_leave_nothing_to_set(photos, tmp_path, name):
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / part)
    words = ["train", "-d", "folder", "--root", tmp_path, "--set", f"data.{name}={0.5 if name == 'test_share' else 7}"]
    result = command(*words, *CHANGES, "--out", tmp_path / "runs")
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert f"--set data.{name} has no effect here: {tmp_path} holds train and test, which are the split." in said


def test_images_of_a_run_without_a_margin_are_embedded(benchmarked, photos, tmp_path):
    run = shutil.copytree(benchmarked[0] / "proxy-anchor" / "seed-0", tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    content["run"]["data"]["resize"] = None
    (run / "config.json").write_text(json.dumps(content))
    result = command("embed", run, photos / "ant", "--out", tmp_path / "index")
    assert result.exit_code == 0, result.output


def test_one_run_on_held_out_classes(photos, tmp_path):
    words = ["train", "-d", "folder", "--root", photos, "--hold-out", "--epochs", 1, "--out", tmp_path, *CHANGES]
    result = command(*words, "--set", "data.test_share=0.25", "--set", "training.select=recall@1")
    assert result.exit_code == 0, result.output
    assert "Selected on held-out classes" in result.output


def test_images_that_a_run_does_without_are_named_and_counted(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "ant" / "0.jpg").write_bytes(b"no image")
    (root / "gnu" / "1.jpg").write_bytes(b"")
    words = ["-d", "folder", "--root", root, "--epochs", 1, *CHANGES]
    assert command("train", *words, "--out", tmp_path / "refused").exit_code == 1
    trained = command("train", *words, "--skip-corrupt", "--out", tmp_path / "one")
    assert trained.exit_code == 0, trained.output
    left_out = json.loads((tmp_path / "one" / "metrics.json").read_text())["left_out"]
    named = {path for images in left_out.values() for path in images}
    assert named == {str(root / "ant" / "0.jpg"), str(root / "gnu" / "1.jpg")}
    assert all(f"left out {path}: " in trained.output for path in named)
    found = command("evaluate", tmp_path / "one", "--root", root)
    assert all((f"left out {path}: " in found.output) == (path in left_out.get("test", {})) for path in named)
    compared = command(
        "benchmark", *words, "--skip-corrupt", "-m", "proxy-nca", "--seeds", 1, "--out", tmp_path / "all"
    )
    counts = ", ".join(f"{len(images)} of {split}" for split, images in left_out.items())
    said = f"Images that could not be read were left out: {counts}; metrics.json of a run names them."
    assert said in " ".join(compared.output.split())
    assert said in (tmp_path / "all" / "report.html").read_text()


def test_a_network_of_photographs_is_not_given_drawings(benchmarked):
    refused = command("evaluate", benchmarked[0] / "proxy-anchor" / "seed-0", "-d", "digits")
    assert "embeds photographs, and the set holds drawings. Name a set of those with --dataset." in str(
        refused.exception
    )


def test_a_check(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").touch()
    found = command("data", "check", "folder", "--root", tmp_path / "photos")
    said = " ".join(found.output.split())
    assert found.exit_code == 0
    assert said.startswith(f"folder in {tmp_path}/photos: complete")
    assert "passed over: 1 .txt" in said
    (tmp_path / "photos" / "ant" / "0.jpg").write_bytes(b"no image")
    found = command("data", "check", "folder", "--root", tmp_path / "photos")
    assert found.exit_code == 1
    assert f"- {tmp_path}/photos/ant/0.jpg cannot be read" in " ".join(found.output.split())


def test_mistakes_are_named_before_anything_is_trained(photos, tmp_path):
    for words, said in (
        ([], "--root must be the folder that holds folder, and it is not given"),
        (["--root", tmp_path / "absent"], "absent is none"),
        (["--root", photos / "ant"], "Put the images of each class into a folder of its own"),
        (["--root", photos, "--set", "training.samples_per_class=5"], "data.least=5"),
        (["--root", photos, "--set", "data.least=9"], "four classes or more"),
        (["--root", photos, "--set", "data.level=middle"], "data.level"),
        (["--root", photos, "--set", "data.test_share=1"], "`data.test_share` must be below 1, got 1."),
        (["--root", photos, "--allow-partial"], "--allow-partial is not for folder"),
    ):
        # Of two settings of one key, the command would name the second.
        changes = [word for word in CHANGES if "samples_per_class" not in word and word != "--set"]
        changes = [word for change in changes for word in ("--set", change)]
        result = command("train", "-d", "folder", *changes, *words, "--out", tmp_path / "runs")
        assert result.exit_code != 0
        assert said in " ".join(f"{result.output} {result.exception}".replace("│", " ").split()), words
    assert not (tmp_path / "runs").exists()
