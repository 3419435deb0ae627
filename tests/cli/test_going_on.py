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


@pytest.mark.parametrize(("value", "shown"), [("0", False), ("1", True)])
def test_a_traceback_is_shown_where_it_is_asked_for_and_not_where_it_is_declined(monkeypatch, value, shown):
    monkeypatch.setenv(cli.DEBUG, value)
    monkeypatch.setattr("sys.argv", ["otdml", "evaluate", "gone.ckpt"])
    with pytest.raises(FileNotFoundError if shown else SystemExit):
        cli.main()


def test_a_copy_of_a_finished_run_is_passed_over_with_a_note(otdml_, tmp_path):
    words = ("benchmark", *WORDS, "--out", tmp_path, "--jobs", 1, "--seeds", 1)
    assert otdml_(*words).exit_code == 0
    shutil.copytree(tmp_path / "proxy-anchor", tmp_path / "proxy-anchor.backup")
    result = otdml_(*words)
    assert result.exit_code == 0, result.output
    copy, own = tmp_path / "proxy-anchor.backup" / "seed-0", tmp_path / "proxy-anchor" / "seed-0"
    assert f"note Passed over {copy}: its run belongs into {own}." in result.output
    assert (tmp_path / "runs.csv").read_text().count("proxy-anchor") == 1
