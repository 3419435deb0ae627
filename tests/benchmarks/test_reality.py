"""The Reality Check protocol: four folds, their mean and their concatenation, by value."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from otdml.benchmarks.experiment import _check_finished, execute, load_split
from otdml.benchmarks.finished import collect
from otdml.benchmarks.models import load_checkpoint
from otdml.benchmarks.presets import preset
from otdml.benchmarks.reality import DIM, assemble, concatenated, fold_runs, of_four_folds, protocol_of
from otdml.benchmarks.report import write_report
from otdml.benchmarks.results import export, figure, half_width
from otdml.benchmarks.runs import Run, RunFolder, check_settings
from otdml.cli import app
from otdml.dml import retrieval_metrics
from otdml.dml.training import embed

TINY = (
    "model.backbone=resnet",
    "model.backbone_options={widths=[8], depths=[1]}",
    "data.size=32",
    "training.epochs=1",
    "training.classes_per_batch=3",
    "training.samples_per_class=2",
    "training.batches_per_epoch=2",
    "training.workers=0",
    "training.ks=[1, 2]",
)
CLASSES = [*range(1, 9), 101, 102, 103]


def test_concatenation_is_of_parts_of_norm_one_and_has_norm_one():
    chance = torch.Generator().manual_seed(0)
    parts = [scale * torch.randn(5, 128, generator=chance) for scale in (0.1, 1.0, 10.0, 1000.0)]
    z = concatenated(parts)
    assert z.shape == (5, 512)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    for k, part in enumerate(parts):
        # Each network counts the same, whatever the norm of its embeddings.
        torch.testing.assert_close(z[:, 128 * k : 128 * (k + 1)], part / part.norm(dim=1, keepdim=True) / 2)
    cosines = torch.stack([torch.cosine_similarity(part[:1], part) for part in parts])
    torch.testing.assert_close(z[0] @ z.T, cosines.mean(0))


def test_the_protocol_of_a_preset():
    found = protocol_of(preset("cub"))
    assert (found.model["dim"], found.published, found.name) == (DIM, (), "cub-reality-check")
    assert found.model["backbone"] == "resnet50"
    runs = fold_runs(Run.of(found, found.method("proxy-anchor"), 2, hold_out=True))
    assert [run.place for run in runs] == [f"proxy-anchor/seed-2/fold-{fold}" for fold in range(4)]
    assert len({run.fingerprint for run in runs}) == 4
    check_settings(runs[0])
    # Not those of the preset, which has 512 dimensions, and not without what was changed.
    assert found.title == "Reality Check protocol: CUB-200-2011, resnet50, four of 128 dimensions"
    changed = protocol_of(preset("cub", ["model.backbone=resnet18", "training.epochs=2"]))
    assert (
        changed.title == "Reality Check protocol: CUB-200-2011, resnet18, four of 128 dimensions, training.epochs = 2"
    )
    with pytest.raises(
        ValueError, match=r"`model.dim` must be 128, the dimensions of the Reality Check protocol, got 64"
    ):
        protocol_of(preset("cub", ["model.dim=64"]))


@pytest.mark.parametrize(
    ("change", "must"),
    [
        (
            "training.select=recall@1",
            "`training.select` must be map@r, as the Reality Check protocol has it, got recall@1",
        ),
        ("training.test_every=1", "`training.test_every` must be 0, as the Reality Check protocol has it, got 1"),
        ("training.val_every=0", "`training.val_every` must be 1, as the Reality Check protocol has it, got 0"),
    ],
)
def test_what_the_protocol_fixes_is_not_changed(change, must):
    with pytest.raises(ValueError, match=must):
        protocol_of(preset("omniglot-small", [change]))


def test_the_protocol_takes_the_place_of_what_a_preset_has(tmp_path):
    """Its note says that epochs are selected by MAP@R, and that the test classes are looked at once."""
    assert preset("omniglot-small").training["test_every"] == 6
    assert protocol_of(preset("omniglot-small")).training["test_every"] == 0
    (tmp_path / "own.toml").write_text(
        'extends = "omniglot-small"\n[training]\nselect = "recall@1"\nval_every = 0\nepochs = 3\n'
    )
    found = protocol_of(preset(tmp_path / "own.toml"))
    assert {name: found.training[name] for name in ("select", "test_every", "val_every")} == {
        "select": "map@r",
        "test_every": 0,
        "val_every": 1,
    }
    assert found.title.endswith("four of 128 dimensions, training.epochs = 3")
    assert found.changed == {"training.epochs": 3}
    # Runs keep their configuration where the protocol changes nothing.
    assert protocol_of(preset("cub")).training == preset("cub").training


@pytest.fixture
def seed(published, tmp_path):
    """Four finished folds of a seed: their root, the folder of the benchmark, and the run of the seed."""
    root = published("cub", CLASSES)
    chosen = protocol_of(preset("cub", TINY))
    run = Run.of(chosen, chosen.method("proxy-anchor"), 0, hold_out=True, data={"allow_partial": True})
    for fold in fold_runs(run):
        execute(fold, tmp_path / "out" / fold.place, str(root))
    return str(root), tmp_path / "out", run


def test_separated_is_the_mean_of_the_folds_and_concatenated_a_metric_of_all(seed):
    root, out, run = seed
    folds = [out / fold.place for fold in fold_runs(run)]
    test = load_split("cub", root, "test", run.data)
    assemble(out, [run], root)
    (found,) = collect(out)
    assert list(found.last)[:3] == ["map@r", "r_precision", "recall@1"]
    best = [json.loads((fold / "metrics.json").read_text())["best"] for fold in folds]
    assert found.last["map@r"] == pytest.approx(sum(metrics["map@r"] for metrics in best) / 4)
    parts = [embed(load_checkpoint(fold / "best.ckpt"), test) for fold in folds]
    assert [part.shape for part in parts] == [(12, 128)] * 4
    for part, metrics in zip(parts, best, strict=True):
        # What was kept is the epoch that was selected.
        assert retrieval_metrics(part, test.labels, ks=(1, 2)) == pytest.approx(metrics)
    whole = retrieval_metrics(torch.cat(parts, dim=1), test.labels, ks=(1, 2))
    assert dict(found.best) == pytest.approx(whole)
    assert RunFolder(out / run.place).config()["run"] == of_four_folds(run).config()
    export(out)
    for name in ("results.csv", "runs.csv"):
        with (out / name).open() as lines:
            assert [row["checkpoint"] for row in csv.DictReader(lines)][:2] == ["separated", "concatenated"]
    content = json.loads((out / "results.json").read_text())
    for rows in (content["summary"], content["runs"]):
        assert [row["checkpoint"] for row in rows] == ["separated", "concatenated"]
    assert [row["map@r"] for row in content["runs"]] == [found.last["map@r"], found.best["map@r"]]
    write_report(out / "report.html", protocol_of(preset("cub")), [found], ["otdml"])
    text = (out / "report.html").read_text()
    for part in ("concatenated", "separated", "After Musgrave", "one seed, so no spread is known"):
        assert part in text


def test_a_seed_knows_the_images_of_its_test(seed):
    """They are those of its folds, and no more of the grid is run on others."""
    root, out, run = seed
    assemble(out, [run], root)
    inputs = RunFolder(out / run.place).config()["inputs"]
    assert inputs == {"test": RunFolder(out / fold_runs(run)[0].place).config()["inputs"]["test"]}
    later = fold_runs(replace(run, seed=1))
    _check_finished(out, {out / one.place: one for one in later}, root)
    path = out / run.place / "config.json"
    path.write_text(path.read_text().replace(inputs["test"], "0" * 32))
    with pytest.raises(ValueError, match=r"proxy-anchor/seed-0 holds a run on another state .*: test holds other"):
        _check_finished(out, {out / one.place: one for one in later}, root)
    # Of runs that were made before they were written down, nothing is known.
    content = json.loads(path.read_text())
    del content["inputs"]
    path.write_text(json.dumps(content))
    _check_finished(out, {out / one.place: one for one in later}, root)


def test_a_seed_with_an_unfinished_fold_is_left_out(seed):
    root, out, run = seed
    (out / fold_runs(run)[3].place / "metrics.json").unlink()
    assemble(out, [run, replace(run, seed=1)], root)
    assert collect(out) == []


def test_intervals_over_seeds_are_of_student():
    values = [0.1, 0.3, 0.2, 0.5]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert half_width(figure(values)) == pytest.approx((high - low) / 2)
    assert math.isnan(half_width(figure([0.1])))


def test_digits_have_too_few_classes_for_folds():
    result = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["benchmark", "-d", "digits", "--reality-check"])
    assert result.exit_code == 2
    assert "`dataset` must have training classes for 4 folds of two or more, got digits. Of the sets" in " ".join(
        result.output.split()
    )
