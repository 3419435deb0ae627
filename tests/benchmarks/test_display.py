"""What a benchmark prints: every figure, every ending, and nothing cut off."""

import json
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from otdml.benchmarks.display import metrics_table, show_catalogue, show_measurements, show_ratios, show_table, watch
from otdml.benchmarks.experiment import RunState
from otdml.benchmarks.finished import collect
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import Published, Weights, preset, preset_files
from otdml.benchmarks.runs import Run, RunFolder
from otdml.benchmarks.speed.harness import Measurement


@pytest.fixture
def console():
    return Console(width=80, record=True, force_terminal=False, color_system=None)


def test_table_shows_means_over_seeds_whole_names_and_comparisons(console, finished):
    show_table(console, collect(finished))
    text = console.export_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "proxy-anchor 71.0 ± 1.0 51.0 ± 1.0 3 11" in lines
    assert "proxy-anchor+nir-control 74.2 ± 2.8 54.2 ± 2.8 3 11" in lines
    assert "against proxy-anchor+nir-control" in text
    assert "no difference shown" in text.replace("\n", " ")


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_figure_is_cut_off_however_narrow_the_terminal(finished, digits, width):
    names = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "left_out"]
    for path in finished.rglob("metrics.json"):
        found = json.loads(path.read_text())
        found["last"] = {name: 0.9 - 0.1 * i + found["last"]["recall@1"] / 100 for i, name in enumerate(names)}
        path.write_text(json.dumps(found))
    runs = collect(finished)
    narrow = Console(width=width, record=True, force_terminal=False, color_system=None)
    show_table(narrow, runs)
    lines = narrow.export_text().splitlines()
    assert max(map(len, lines)) <= width
    rows = [" ".join(line.split()) for line in lines if line.startswith("proxy-anchor ") and "±" in line]
    figures = [cell for row in rows for cell in re.findall(r"\d+\.\d ± \d+\.\d", row)]
    expected = [f"{100 * (0.9 - 0.1 * i + 0.0071):.1f} ± 0.0" for i in range(6)]
    assert figures == expected
    titles = " ".join(line for line in lines if line.startswith("method")).split()
    assert [title for title in titles if title in ("R@1", "R@8", "R-precision", "MAP@R")] == [
        "R@1",
        "R@8",
        "R-precision",
        "MAP@R",
    ]


def test_published_figures_stand_below_the_table(console, finished, digits):
    published = (
        Published("proxy-anchor", "recall@1", 0.697, "Doe 2020", second_hand=True),
        Published("proxy-anchor", "map@r", 0.5, "Doe 2020", second_hand=True),
        Published("[theirs]", "recall@1", 0.8, "Roe 2021"),
    )
    show_table(console, collect(finished), replace(digits, published=published, weights=Weights("a net", "x.org")))
    text = " ".join(console.export_text().split())
    ours = "R@1 69.7 (here 71.0 ± 1.0), MAP@R 50.0 (here 51.0 ± 1.0)"
    assert f"Published: proxy-anchor {ours}: Doe 2020, second-hand" in text
    assert "Published: [theirs] R@1 80.0 (here not run): Roe 2021" in text
    assert "Not all networks started from a net, as the published ones did." in text


def test_one_seed_makes_no_statement(console, tmp_path, write_run):
    for method in ("proxy-anchor", "proxy-anchor+nir"):
        write_run(tmp_path, method, 0, 0.5, best=0.6)
    show_table(console, collect(tmp_path))
    text = console.export_text()
    assert "--seeds 3" in text
    assert "against" not in text
    assert [line.split()[1:3] for line in text.splitlines() if line.startswith("proxy-anchor ")] == [
        ["last", "50.0"],
        ["best", "60.0"],
    ]


def test_watch_tells_each_ending_once_and_returns_the_failures(console, tmp_path, digits, write_run):
    done = write_run(tmp_path, "proxy-anchor", 0, 0.5)
    runs = [Run.of(digits, digits.method(name), 0) for name in ("proxy-anchor", "soft-triple", "proxy-nca")]
    empty = [RunFolder(tmp_path / str(i)) for i in range(3)]
    running = [RunState(run, folder, "running") for run, folder in zip(runs, [done, *empty], strict=False)]
    ended = [
        RunState(runs[0], done, "finished"),
        RunState(runs[1], empty[0], "failed", "ValueError: [bold] no such thing"),
        RunState(runs[2], empty[1], "waiting"),
    ]
    assert watch(console, [running, ended, ended]) == ["soft-triple, seed 0: ValueError: [bold] no such thing"]
    text = console.export_text()
    assert text.count("✓ proxy-anchor, seed 0: R@1 50.0 in 10 s") == 1
    assert text.count("✕ soft-triple, seed 0: ValueError: [bold] no such thing") == 1


def test_watch_tells_of_runs_that_end_within_a_moment_and_not_of_earlier_ones(console, tmp_path, digits, write_run):
    runs = [Run.of(digits, digits.method(name), 0) for name in ("proxy-anchor", "soft-triple", "proxy-nca")]
    folders = [write_run(tmp_path, run.method, 0, 0.5) for run in runs]
    first = [RunState(run, folder, "waiting") for run, folder in zip(runs, folders, strict=True)]
    first[0] = replace(first[0], status="finished")
    said = f"ValueError: {chr(27)}]0;gone{chr(7)}"
    last = [replace(state, status="finished") for state in first]
    last[2] = replace(first[2], status="failed", message=said)
    watch(console, [first, last, last])
    lines = console.export_text().splitlines()
    assert [line for line in lines if line.startswith(("✓", "✕"))] == [
        "✓ soft-triple, seed 0: R@1 50.0 in 10 s",
        "✕ proxy-nca, seed 0: ValueError: \\x1b]0;gone\\x07",
    ]


def test_metrics_in_percent_and_counts_as_they_are(console):
    console.print(metrics_table({"recall@1": 0.5, "left_out": 3.0}))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0] == ["R@1", "50.00"]
    assert lines[1][-1] == "3"


def test_measurements_end_with_the_ratio_to_the_fastest_correct_peer(console):
    case = {"n": 8}
    rows = [
        Measurement(case, "otdml", 0.5, 1.0, 1e-6, True),
        Measurement(case, "slow", 2.0, 1.0, 1e-6, True),
        Measurement(case, "slower dense", 8.0, 1.0, 1e-6, True),
        Measurement(case, "slower online", 16.0, 1.0, 1e-6, True),
        Measurement(case, "wrong", 0.1, 1.0, 0.5, False),
        Measurement(case, "absent", math.nan, math.nan, math.nan, False, "ImportError: [x]"),
    ]
    assert show_measurements(console, iter(rows)) == rows
    show_ratios(console, rows)
    text = console.export_text()
    assert "n=8: 4.00 × as fast as slow" in text
    assert "not correct: out of the ratios" in text
    assert "ImportError: [x]" in text
    assert "Geometric mean of 1 ratios: 4.00" in text
    assert "  slower: geometric mean of 1 ratios 16.00\n" in text
    assert "  wrong: no ratio; not correct or not run in 1 cases" in text


def test_catalogue_names_everything(console):
    show_catalogue(console)
    text = console.export_text()
    for name in (*preset_files(), *METHODS):
        assert name in text
    words = " ".join(text.split())
    assert "proxy-anchor R@1 69.9, R@2 79.6, R@4 86.6, R@8 91.4: Kim et al. 2020, authors' code page" in words
    assert "ResNet-50, 512 dimensions, second-hand" in words
    assert words.count("(never run here)") == sum(preset(name).never_run for name in preset_files()) == 15
