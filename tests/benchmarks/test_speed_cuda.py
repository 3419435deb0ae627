"""The table of engines on a GPU, run on the CPU: what is timed is right, and a floor is one."""

import math

import pytest
import torch

from otdml.benchmarks.speed import cuda, harness

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's contenders are looked at")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cuda, "QUICK_SIZES", (40,))
    monkeypatch.setattr(cuda, "SETS", 2)
    monkeypatch.setattr(cuda, "REPEATS", 3)
    monkeypatch.setattr(cuda.Rates, "measured", lambda device: cuda.Rates(1e9, 1e9))


def test_every_contender_of_the_cpu_is_correct(small):
    found = list(cuda.measurements(True, harness.only(["d=2"])))
    solvers = ["otdml dense", "otdml streamed"]
    expected = {"half-step": ["torch dense", "otdml streamed"], "value": solvers, "gradient": solvers}
    for step, names in expected.items():
        rows = [m for m in found if m.case["step"] == step]
        assert [m.contender for m in rows] == names
        assert all(m.correct and m.seconds > 0 for m in rows), rows
    assert found[0].note == "floor 0.0064 ms"


def test_the_floor_is_the_longer_of_arithmetic_and_bytes():
    assert cuda.Rates(1e9, 1e12).floor(1000, 4) == pytest.approx(8e6 / 1e9)
    assert cuda.Rates(1e12, 1e3).floor(10, 4) == pytest.approx(4 * 100 / 1e3)


def test_repetitions_go_around_the_sets_after_one_run_of_each():
    seen = []
    times = cuda.timed(seen.append, 3, torch.device("cpu"))
    assert seen[:6] == [0, 1, 2, 0, 1, 2]
    assert len(times) == len(seen) - 3 <= cuda.REPEATS


def test_a_contender_that_fails_is_shown_with_its_reason():
    def fail():
        raise RuntimeError("out of memory")

    found = cuda._measured({}, "x", [fail], float, lambda q: True, "", torch.device("cpu"))
    assert math.isnan(found.seconds)
    assert (found.correct, found.note) == (False, "RuntimeError: out of memory")


def test_a_wrong_soft_minimum_is_not_counted():
    found = cuda._measured(
        {}, "x", [lambda: torch.ones(3)], lambda t: cuda._difference(torch.zeros(2), t), lambda e: e < 1e-3, "",
        torch.device("cpu"),
    )  # fmt: skip
    assert (found.quality, found.correct) == (1.0, False)
