"""The command that runs a study."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from otdml import studies
from otdml.cli import app
from otdml.ot import sinkhorn
from otdml.studies import Arm, Reading, Score, Study

pytest.importorskip("typer")


@pytest.fixture
def toy(monkeypatch):
    def run(settings, seed, data):
        yield Reading(1, 1, {"answer": settings["level"] + seed})

    arms = (Arm("plain", {"level": 0.0}), Arm("gap [decoder]", {"level": 1.0}, ("plain",)))
    study = Study("toy", "Is one more than none?", "Adding.", arms, (5, 7), (Score("answer", "answer"),), run)
    monkeypatch.setattr(studies, "named", lambda name: study)
    monkeypatch.setattr(studies, "topics", lambda: {"Numbers [all]": ["toy"]})
    return study


def call(*words):
    return CliRunner().invoke(app, ["study", *map(str, words)], env={"COLUMNS": "160"})


def test_it_runs_tells_and_keeps(toy, tmp_path):
    out, kept, drawn = tmp_path / "cells", tmp_path / "toy.json", tmp_path / "toy.svg"
    found = call("toy", "--out", out, "--json", kept, "--figure", drawn)
    assert found.exit_code == 0, found.output
    assert "Is one more than none?" in found.output
    assert "✓ gap [decoder], seed 7: answer 8.000" in found.output
    assert "gap [decoder]: answer is higher than with plain (+1.000" in found.output
    assert len(json.loads(kept.read_text())["runs"]) == 4
    assert drawn.exists()


def test_what_a_solver_warns_of_is_said_once(toy, monkeypatch, tmp_path):
    x = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))

    def run(settings, seed, data):
        for eps in (1e-3, 1e-3, 1e-2):
            yield Reading(1, 1, {"answer": float(sinkhorn(x, x.flip(1).square(), eps=eps, max_iter=1).value)})

    monkeypatch.setattr(studies, "named", lambda name: replace(toy, run=run))
    found = call("toy", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    said = [line for line in found.output.splitlines() if "Sinkhorn stopped" in line]
    # Two problems in four cells, and no line of the library's own code.
    assert len(said) == 2
    assert all(line.startswith("note Sinkhorn stopped at `max_iter`=1") for line in said)
    assert "Warning" not in found.output


def test_an_interrupted_study_says_that_it_goes_on(toy, monkeypatch, tmp_path):
    def run(settings, seed, data):
        if seed == 7:
            raise KeyboardInterrupt
        yield Reading(1, 1, {"answer": 0.0})

    monkeypatch.setattr(studies, "named", lambda name: replace(toy, run=run))
    found = call("toy", "--out", tmp_path)
    assert found.exit_code == 130
    assert "Stopped. The same command goes on from here." in found.output
    assert {path.parent.name for path in tmp_path.rglob("result.json")} == {"seed-5"}


def test_paths_with_square_brackets_are_shown_as_they_are(toy, tmp_path):
    kept, drawn = tmp_path / "[bold]toy[/red].json", tmp_path / "[dim]toy[/red].svg"
    found = call("toy", "--out", tmp_path / "[/red]cells", "--json", kept, "--figure", drawn)
    assert found.exit_code == 0, found.output
    assert f"Report: {kept}" in found.output
    assert f"Figure: {drawn}" in found.output


def test_a_part_can_be_run_and_shown(toy, tmp_path):
    assert call("toy", "--out", tmp_path, "--arm", "plain", "--seeds", 7).exit_code == 0
    assert [path.parent.name for path in tmp_path.rglob("result.json")] == ["seed-7"]
    shown = call("toy", "--out", tmp_path, "--show")
    assert "1 of 2" in shown.output
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_a_study_goes_on_from_its_report(toy, tmp_path):
    kept = tmp_path / "toy.json"
    call("toy", "--out", tmp_path / "old", "--json", kept, "--seeds", 5)
    found = call("toy", "--out", tmp_path / "new", "--from", kept)
    assert found.exit_code == 0, found.output
    assert "✓ gap [decoder], seed 7" in found.output
    assert "seed 5:" not in found.output
    assert len(list((tmp_path / "new").rglob("result.json"))) == 4


def test_studies_are_listed(toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call("toy", "--seeds", 5).exit_code == 0
    title, _, row = (line.rstrip() for line in call().output.splitlines()[:3])
    assert title == "Numbers [all]"
    assert re.fullmatch(r"toy +2 of 4 +Is one more than none\?", row)


def test_wrong_arguments_are_named_before_anything_is_run(toy, tmp_path):
    for words, message in (
        (("--show",), "need the name of a study"),
        (("toy", "--show", "--arm", "plain"), "--show shows all that has been run"),
        (("toy", "--show", "--data", tmp_path), "--show shows all that has been run"),
        (("toy", "--arm", "gab"), "gab"),
        (("toy", "--data", tmp_path), "draws its own data"),
        (("toy", "--json", tmp_path), "is a folder"),
        (("toy", "--from", __file__), "is no report of a study"),
        (("toy", "--from", tmp_path), "is no report of a study"),
        (("toy", "--seeds", 99), "unknown seed of toy"),
        (("toy", "--figure", tmp_path / "toy.foo"), "must end in the format of a figure, one of "),
        (("toy", "--figure", tmp_path / "toy"), "must end in the format of a figure, one of "),
        (("toy", "--json", tmp_path / "toy.svg", "--figure", tmp_path / "toy.svg"), "are one file"),
        (("toy", "--out", __file__), "must be a folder, and is a file"),
        (("--from", __file__), "need the name of a study"),
    ):
        out = ("--out", tmp_path / "cells") if "toy" in words and "--out" not in words else ()
        found = call(*words, *out)
        assert found.exit_code == 2
        assert message in found.output
    assert not (tmp_path / "cells").exists()


def test_an_unknown_study_is_named():
    found = call("sprite-base")
    assert found.exit_code == 2
    assert "sprites-base" in found.output
