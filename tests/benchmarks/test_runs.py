"""Run folders: one configuration each, and nothing lost when the disk is full."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from otdml import _precision
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import preset
from otdml.benchmarks.runs import Run, RunFolder, plan


@pytest.fixture
def run(digits):
    return Run.of(digits, digits.method("proxy-anchor+nir"), 1)


def test_configuration_is_plain_and_complete(run, digits):
    config = run.config()
    assert json.loads(json.dumps(config)) == config
    assert config["method"] == "proxy-anchor+nir"
    assert config["model"]["loss"] == "proxy-anchor"
    assert config["model"]["lr"] == {**digits.model["lr"], **digits.method("proxy-anchor+nir").lr}
    assert config["training"]["epochs"] == digits.training["epochs"]


def test_rates_may_be_one_number_or_the_default(digits):
    method = digits.method("proxy-anchor+nir")
    model = {"dim": 8, "lr": 0.5, "weight_decay": 0.1}
    found = Run.of(replace(digits, model=model), method, 0).model
    assert found["lr"] == {**dict.fromkeys(("backbone", "head", "proxies", "flow"), 0.5), **method.lr}
    assert set(found["weight_decay"].values()) == {0.1}
    plain = Run.of(replace(digits, model={"dim": 8}), METHODS["proxy-anchor"], 0).model
    assert not {"lr", "weight_decay"} & set(plain)


def test_fingerprint_changes_with_every_setting_and_with_nothing_else(run, digits):
    method = digits.method("proxy-anchor+nir")
    assert Run.of(digits, method, 1).fingerprint == run.fingerprint
    others = [
        Run.of(digits, method, 2),
        Run.of(digits, method, 1, epochs=3),
        Run.of(digits, method, 1, hold_out=True),
        Run.of(digits, method.control, 1),
        Run.of(digits, method.changed({"nir_weight": 0.5}), 1),
    ]
    assert len({other.fingerprint for other in others} | {run.fingerprint}) == 6


def test_a_run_goes_on_with_other_means(run, digits, tmp_path):
    """Workers, devices and a log beside the curve change no number."""
    method, means = digits.method("proxy-anchor+nir"), {"workers": 3, "devices": 2, "tensorboard": True}
    other = Run.of(digits, method, 1, **means)
    assert other.fingerprint == run.fingerprint
    folder = RunFolder(tmp_path)
    folder.claim(run)
    (tmp_path / "last.ckpt").touch()
    folder.check(other)
    with pytest.raises(ValueError, match=r"configuration \(training\.epochs: \d+ there, 3 here\)\."):
        folder.check(Run.of(digits, method, 1, epochs=3, **means))


def test_training_settings_that_are_none_keep_the_preset(run, digits):
    assert Run.of(digits, digits.method("proxy-anchor+nir"), 1, epochs=None) == run


def test_plan_names_folders_by_method_and_seed(tmp_path, run):
    assert plan(tmp_path, [run]) == {tmp_path / "proxy-anchor+nir" / "seed-1": run}


def test_a_folder_of_another_configuration_is_refused_with_the_difference(tmp_path, run, digits):
    folder = RunFolder(tmp_path / "proxy-anchor+nir" / "seed-1")
    folder.claim(run)
    (folder.path / "last.ckpt").touch()
    folder.claim(run)
    changed = Run.of(digits, digits.method("proxy-anchor+nir"), 1, epochs=3)
    message = rf"training.epochs: {digits.training['epochs']} there, 3 here.*--out"
    with pytest.raises(ValueError, match=message):
        folder.claim(changed)
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, [changed])


def test_a_run_that_failed_before_its_first_epoch_leaves_its_folder(tmp_path, run, digits):
    folder = RunFolder(tmp_path)
    folder.claim(run)
    changed = Run.of(digits, digits.method("proxy-anchor+nir"), 1, epochs=3)
    folder.claim(changed)
    assert folder.config()["fingerprint"] == changed.fingerprint


@pytest.mark.parametrize("content", ["{}", "[1]", '{"fingerprint": "1"}'])
def test_a_configuration_of_another_program_is_named(tmp_path, run, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is of another program.*--out"):
        RunFolder(tmp_path).claim(run)


def test_finished_once_the_metrics_are_there(tmp_path, run):
    folder = RunFolder(tmp_path)
    folder.claim(run)
    assert not folder.finished
    folder.finish({"last": {"recall@1": 0.5}})
    assert folder.finished
    assert folder.metrics() == {"last": {"recall@1": 0.5}}
    assert "torch" in folder.config()["environment"]


def test_full_disk_is_reported_and_leaves_the_earlier_file(tmp_path, run, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.finish({"last": {"recall@1": 0.5}})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("otdml._files.os.fsync", full)
    with pytest.raises(OSError, match=r"metrics.json: No space left on device. What was there before is unchanged"):
        folder.finish({"last": {"recall@1": 0.9}})
    assert folder.metrics() == {"last": {"recall@1": 0.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_curve_leaves_out_what_an_epoch_did_not_measure(tmp_path):
    assert RunFolder(tmp_path).curve() == []
    (tmp_path / "curve.csv").write_text("epoch,loss,test/recall@1\n1,2.5,\n2,2.0,0.75\n")
    assert RunFolder(tmp_path).curve() == [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 2.0, "test/recall@1": 0.75}]


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is damaged .* Delete its folder"):
        RunFolder(tmp_path).metrics()


@pytest.mark.parametrize(("flags", "precision"), [("fpu avx512_bf16", "bf16-mixed"), ("fpu avx512f", "32-true")])
def test_automatic_precision_is_the_processors_own_and_is_written_down(monkeypatch, digits, flags, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags}\n")
    # Read anew, as flags are kept for the life of a process.
    monkeypatch.setattr(_precision, "_processor_flags", _precision._processor_flags.__wrapped__)
    chosen = Run.of(digits, digits.method("proxy-anchor"), 0, precision="auto")
    assert chosen.config()["training"]["precision"] == precision


def test_a_run_that_goes_on_with_other_versions_says_from_which_epoch_on(tmp_path, run, monkeypatch):
    there = {"torch": "2.12.0", "code": "aaa", "gpu": "none"}
    monkeypatch.setattr("otdml.benchmarks.runs.environment", lambda: there)
    folder = RunFolder(tmp_path)
    folder.claim(run)
    (tmp_path / "last.ckpt").touch()
    (tmp_path / "curve.csv").write_text("epoch,loss\n0,2.5\n1,2.0\n")
    folder.claim(run)
    assert folder.moves() == []
    assert folder.environments() == [(0, there)]
    here = there | {"torch": "2.13.0", "code": "bbb"}
    expected = ["torch 2.12.0 until epoch 2, 2.13.0 from then on", "code aaa until epoch 2, bbb from then on"]
    assert folder.moves(here) == expected
    monkeypatch.setattr("otdml.benchmarks.runs.environment", lambda: here)
    folder.claim(run)
    folder.claim(run)
    assert folder.environments() == [(0, there), (2, here)]
    assert folder.moves() == expected
    assert folder.config()["fingerprint"] == run.fingerprint


def test_a_run_of_another_machines_precision_says_how_to_go_on(tmp_path, monkeypatch):
    """A preset's precision may be that which a machine is quick in."""
    chosen = preset("omniglot-small")
    monkeypatch.setattr("otdml.benchmarks.runs.native_precision", lambda: "bf16-mixed")
    run = Run.of(chosen, chosen.method("proxy-anchor"), 0)
    folder = RunFolder(tmp_path / "run")
    folder.claim(run)
    (folder.path / "last.ckpt").touch()
    monkeypatch.setattr("otdml.benchmarks.runs.native_precision", lambda: "32-true")
    with pytest.raises(
        ValueError, match=r"Pass --set training.precision=bf16-mixed to go on as it was begun. Or choose"
    ):
        folder.check(Run.of(chosen, chosen.method("proxy-anchor"), 0))
    again = preset("omniglot-small", ["training.precision=bf16-mixed"])
    folder.check(Run.of(again, again.method("proxy-anchor"), 0))
    other = preset("omniglot-small", ["training.select=recall@1"])
    with pytest.raises(ValueError, match=r"32-true here; training.select.* Choose another folder"):
        folder.check(Run.of(other, other.method("proxy-anchor"), 0))
