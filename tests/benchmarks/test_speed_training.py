"""The speed table of a training step: all contenders take the same steps, and NIR's come with more."""

import pytest

from otdml.benchmarks.speed import training as table

SMALL = table._case("tiny resnet", 8, dim=16, precision="fp32", steps=2)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.setattr(table, "_BATCH", 8)


def test_contenders_begin_with_the_same_loss(monkeypatch):
    monkeypatch.setattr(table, "_cases", lambda quick: [SMALL])
    found = {row.contender: row for row in table.measurements(quick=True)}
    assert set(found) == {"otdml", "pytorch-metric-learning", "otdml with NIR"}
    assert all(row.correct for row in found.values())
    assert found["pytorch-metric-learning"].quality == pytest.approx(found["otdml"].quality, rel=1e-5)
    assert found["otdml with NIR"].note.endswith("over the loss alone")


def test_steps_move_network_and_proxies_alike_in_both_libraries():
    ours, run = table._contender(SMALL, "otdml")
    theirs, run_peer = table._contender(SMALL, "pytorch-metric-learning")
    run()
    run_peer()
    start = table._module(SMALL, nir=False)
    for moved, other, before in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        assert (moved - before).norm() > 0
        # AdamW's first steps are as long for a tiny gradient, whose sign rounding decides, as for a large one.
        assert (moved - other).norm() < 0.1 * (moved - before).norm()
