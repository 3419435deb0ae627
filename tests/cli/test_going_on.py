"""A run that goes on, and a report of a changed preset, say what is not as it was."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from otdml import cli

WORDS = ["-d", "digits", "-m", "proxy-anchor", "--epochs", "1", "--set", "training.batches_per_epoch=1"]


@pytest.fixture
def otdml_():
    runner = CliRunner(env={"COLUMNS": "1000", "TERM": "dumb", "NO_COLOR": "1"})
    return lambda *words: runner.invoke(cli.app, [str(word) for word in words])


def test_other_versions_and_the_changed_title_are_said_in_the_run_and_in_the_report(otdml_, tmp_path):
    words = ("benchmark", *WORDS, "--out", tmp_path, "--jobs", 1)
    result = otdml_(*words)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert "digits with training.batches_per_epoch = 1, training.epochs = 1</h1>" in page
    assert "These settings are not those of the preset: training.batches_per_epoch = 1" in result.output
    folder = tmp_path / "proxy-anchor" / "seed-0"
    content = json.loads((folder / "config.json").read_text())
    content["environment"]["torch"] = "1.0.0"
    (folder / "config.json").write_text(json.dumps(content))
    # As if it had been stopped after its last epoch.
    (folder / "metrics.json").unlink()
    result = otdml_(*words)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "proxy-anchor, seed 0 goes on elsewhere than it was begun: torch 1.0.0 until epoch 1" in said
    assert "proxy-anchor, seed 0, was stopped and went on elsewhere: torch 1.0.0 until epoch 1" in said
    assert "was stopped and went on elsewhere: torch 1.0.0 until epoch 1" in (tmp_path / "report.html").read_text()


def test_a_model_is_not_exported_over_a_run(otdml_, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes(b"run")
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "metrics.json").write_bytes(b"run")
    for out, name in (("run", "last.ckpt"), ("finished", "metrics.json")):
        result = otdml_("export", tmp_path / "run", "--out", tmp_path / out)
        assert result.exit_code == 1
        must = f"`out` must be a folder without a run, got {tmp_path / out}, which holds {name}. Name another."
        assert str(result.exception) == must
        assert [path.read_bytes() for path in (tmp_path / out).iterdir()] == [b"run"]


def test_a_graph_that_is_wrong_is_an_error_without_a_traceback(monkeypatch, tmp_path, capsys):
    def wrong(*_, **__):
        raise ArithmeticError("the ONNX graph for model.onnx is off by 1 from what PyTorch computes.")

    (tmp_path / "last.ckpt").touch()
    monkeypatch.setattr("otdml.benchmarks.models.exported", wrong)
    monkeypatch.setattr("sys.argv", ["otdml", "export", str(tmp_path), "--out", str(tmp_path / "model.onnx")])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert "Error: the ONNX graph for model.onnx is off by 1" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("value", "shown"), [("0", False), ("1", True)])
def test_a_traceback_is_shown_where_it_is_asked_for_and_not_where_it_is_declined(monkeypatch, value, shown):
    monkeypatch.setenv(cli.DEBUG, value)
    monkeypatch.setattr("sys.argv", ["otdml", "evaluate", "gone.ckpt"])
    with pytest.raises(FileNotFoundError if shown else SystemExit):
        cli.main()


def test_a_report_does_not_hang_on_the_baselines(otdml_, tmp_path, monkeypatch):
    """And a path with square brackets is shown as it is."""

    def gone(*_):
        raise OSError("cannot read [red]photo.jpg")

    monkeypatch.setattr("otdml.benchmarks.baselines.measure_baselines", gone)
    out = tmp_path / "[bold]runs[/red]"
    result = otdml_("benchmark", *WORDS, "--out", out, "--jobs", 1, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "not measured: the baselines, which need no training: cannot read [red]photo.jpg" in result.output
    assert f"Report: {out}/report.html" in result.output
    assert (out / "report.html").is_file()
    result = otdml_("train", *WORDS, "--out", out / "proxy-anchor" / "seed-0")
    assert result.exit_code == 0, result.output
    assert f"Checkpoint: {out}/proxy-anchor/seed-0/last.ckpt" in result.output


def test_a_copy_of_a_finished_run_is_passed_over_with_a_note(otdml_, tmp_path):
    words = ("benchmark", *WORDS, "--out", tmp_path, "--jobs", 1, "--seeds", 1)
    assert otdml_(*words).exit_code == 0
    shutil.copytree(tmp_path / "proxy-anchor", tmp_path / "proxy-anchor.backup")
    result = otdml_(*words)
    assert result.exit_code == 0, result.output
    copy, own = tmp_path / "proxy-anchor.backup" / "seed-0", tmp_path / "proxy-anchor" / "seed-0"
    assert f"note Passed over {copy}: its run belongs into {own}." in result.output
    assert (tmp_path / "runs.csv").read_text().count("proxy-anchor") == 1


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_run_that_is_stopped_says_that_it_can_go_on(otdml_, monkeypatch, tmp_path, end, code):
    def stopped(*_, **__):
        raise end

    monkeypatch.setattr("otdml.benchmarks.experiment.execute", stopped)
    result = otdml_("train", *WORDS, "--out", tmp_path)
    assert result.exit_code == code
    assert "Stopped. The same command goes on from here." in result.output
