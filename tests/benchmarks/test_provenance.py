"""Provenance: which runs were made where, and what differs, per run and from which epoch on."""

import json

from otdml.benchmarks.finished import collect
from otdml.benchmarks.provenance import differences, environments
from otdml.benchmarks.report import write_report


def changed(path, **versions):
    """Write other versions into the configuration of a run."""
    content = json.loads((path / "config.json").read_text())
    content["environment"] |= versions
    (path / "config.json").write_text(json.dumps(content))


def test_runs_of_one_environment_have_no_differences(finished):
    runs = collect(finished)
    assert differences(runs) == []
    ((names, environment),) = environments(runs)
    assert len(names) == len(runs) == 12
    assert {"code", "torch", "python", "threads"} <= set(environment)


def test_a_run_of_another_version_is_told_and_shown(finished, digits):
    changed(finished / "soft-triple" / "seed-2", torch="1.0.0")
    runs = collect(finished)
    (said,) = differences(runs)
    assert said.startswith("Not all runs were made with the same torch: ")
    assert "1.0.0 (1 of 12)" in said
    first, second = environments(runs)
    assert (len(first[0]), second[0], second[1]["torch"]) == (11, ["soft-triple, seed 2"], "1.0.0")
    write_report(finished / "report.html", digits, runs, ["otdml"])
    page = (finished / "report.html").read_text()
    assert said in page
    assert "soft-triple, seed 2</p>" in page


def test_a_run_that_went_on_elsewhere_is_told_with_the_epoch(finished):
    path = finished / "proxy-anchor" / "seed-0" / "config.json"
    content = json.loads(path.read_text())
    content["continued"] = [{"epoch": 2, "environment": content["environment"] | {"code": "other"}}]
    path.write_text(json.dumps(content))
    said = differences(collect(finished))
    code = content["environment"]["code"]
    assert said[0] == (
        f"proxy-anchor, seed 0, was stopped and went on elsewhere: code {code} until epoch 2, other from then on."
    )
    assert environments(collect(finished))[1][0] == ["proxy-anchor, seed 0, from epoch 2"]
