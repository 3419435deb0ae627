"""Means, deviations and paired intervals, against numbers worked out by hand."""

import csv
import json
import math

import pytest
from scipy import stats

from otdml.benchmarks.finished import collect
from otdml.benchmarks.results import (
    Comparison,
    comparisons,
    export,
    figure,
    half_width,
    leading,
    metric_names,
    seeds_of,
    summary,
)


def test_figure_is_the_mean_and_the_sample_deviation():
    found = figure([1.0, 2.0, 3.0, 6.0])
    assert found.mean == 3
    assert found.std == pytest.approx(math.sqrt(14 / 3))
    assert math.isnan(figure([1.0]).std)
    assert math.isnan(figure([]).mean)


def test_metrics_are_named_once_in_order(finished):
    assert metric_names(collect(finished)) == ["recall@1", "map@r"]


def test_summary_by_hand(finished):
    rows = {row["method"]: row for row in summary(collect(finished))}
    head = rows["proxy-anchor+nir"]
    assert head["metrics"]["recall@1"].mean == pytest.approx(0.74)
    assert head["metrics"]["recall@1"].std == pytest.approx(0.02)
    assert head["seconds"].mean == 11


def test_paired_differences_against_a_t_test(finished):
    found = {(c.method, c.against): c for c in comparisons(collect(finished))}
    assert len(found) == 3
    alone = found["proxy-anchor+nir", "proxy-anchor"]
    expected = stats.ttest_rel([0.72, 0.74, 0.76], [0.70, 0.71, 0.72]).confidence_interval()
    assert alone.difference == pytest.approx(0.03)
    assert (alone.low, alone.high) == pytest.approx((expected.low, expected.high))
    assert alone.verdict == "better"
    assert found["proxy-anchor+nir", "proxy-anchor+nir-control"].verdict == "no difference shown"


def test_differences_pair_seeds_that_both_have(finished, write_run):
    write_run(finished, "proxy-anchor", 3, 0.1)
    (c,) = [c for c in comparisons(collect(finished)) if (c.method, c.against) == ("proxy-anchor+nir", "proxy-anchor")]
    assert c.n == 3
    assert c.difference == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("difference", "low", "high", "seeds", "verdict"),
    [
        (0.01, 0.001, 0.02, 3, "better"),
        (-0.01, -0.02, -0.001, 3, "worse"),
        (0.01, -0.01, 0.03, 3, "no difference shown"),
        (0.01, math.nan, math.nan, 1, "one seed"),
        (math.nan, math.nan, math.nan, 3, "not a number"),
        (math.nan, math.nan, math.nan, 0, "no common seed"),
    ],
)
def test_verdict(difference, low, high, seeds, verdict):
    assert Comparison("a", "b", "recall@1", difference, low, high, seeds).verdict == verdict


def test_what_is_no_number_has_no_interval():
    found = figure([0.5, math.nan])
    assert math.isnan(found.mean)
    assert math.isnan(found.std)
    assert math.isnan(half_width(found))


def test_csv_and_json_hold_the_same_numbers(finished):
    runs = export(finished)
    content = json.loads((finished / "results.json").read_text())
    with (finished / "results.csv").open() as lines:
        means = list(csv.DictReader(lines))
    with (finished / "runs.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(content["runs"]) == len(runs) == 12
    for row, one in zip(rows, content["runs"], strict=True):
        assert float(row["recall@1"]) == one["recall@1"]
    for row, one in zip(means, content["summary"], strict=True):
        assert row["method"] == one["method"]
        assert float(row["recall@1_mean"]) == one["metrics"]["recall@1"]["mean"]
        assert float(row["recall@1_std"]) == one["metrics"]["recall@1"]["std"]
    assert content["comparisons"][0]["verdict"] == "better"


def test_the_leading_metric_is_that_of_every_table(finished):
    """The first one of the runs: in the Reality Check protocol MAP@R."""
    for path in finished.rglob("metrics.json"):
        content = json.loads(path.read_text())
        content["last"] = {"map@r": content["last"]["map@r"], "recall@1": 0.5}
        path.write_text(json.dumps(content))
    runs = export(finished)
    assert leading(runs) == "map@r"
    written = json.loads((finished / "results.json").read_text())["comparisons"]
    assert [row["metric"] for row in written] == ["map@r"] * 3
    assert written[0]["difference"] == pytest.approx(0.03)
    assert [c.metric for c in comparisons(runs, "recall@1")] == ["recall@1"] * 3
    assert leading([]) == "recall@1"


def test_a_row_counts_the_seeds_of_its_own_figures(tmp_path, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5, best=0.6)
    write_run(tmp_path, "proxy-anchor", 1, 0.7)
    rows = summary(export(tmp_path))
    assert [(row["checkpoint"], seeds_of(row)) for row in rows] == [("last", 2), ("best", 1)]
    with (tmp_path / "results.csv").open() as lines:
        assert [row["seeds"] for row in csv.DictReader(lines)] == ["2", "1"]


def test_one_seed_writes_no_nan_into_json(tmp_path, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5)
    export(tmp_path)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["summary"][0]["metrics"]["recall@1"]["std"] is None


def test_last_and_selected_epoch_are_rows_of_their_own(tmp_path, write_run):
    write_run(tmp_path, "proxy-anchor", 0, 0.5, best=0.6)
    rows = summary(export(tmp_path))
    assert [(row["checkpoint"], row["metrics"]["recall@1"].mean) for row in rows] == [("last", 0.5), ("best", 0.6)]


def test_dispersion_is_compared_with_the_method_without_it(finished, write_run):
    for seed, recall in enumerate((0.71, 0.72, 0.75)):
        write_run(finished, "proxy-anchor+koleo:0.1", seed, recall)
        write_run(finished, "proxy-nca+koleo:0.1", seed, recall)
    runs = collect(finished)
    assert [run.method for run in runs[:6:3]] == ["proxy-anchor", "proxy-anchor+koleo:0.1"]
    found = {(c.method, c.against): c for c in comparisons(runs)}
    assert len(found) == 4
    assert found["proxy-anchor+koleo:0.1", "proxy-anchor"].difference == pytest.approx(0.05 / 3)
