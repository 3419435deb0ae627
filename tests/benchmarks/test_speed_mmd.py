"""The speed table of the maximum mean discrepancy: its reference, and contenders that agree on what they compute."""

import pytest
import torch

from otdml.benchmarks.speed import mmd as table
from otdml.losses import mmd


@pytest.mark.parametrize("block", [7, 64])
def test_reference_is_the_discrepancy_in_float64(block, monkeypatch, generator):
    monkeypatch.setattr(table, "_BLOCK", block)
    x, y = (torch.randn(n, 3, generator=generator) for n in (30, 23))
    found = table._references(x, y)
    for kernel, value in found.items():
        assert value == pytest.approx(float(mmd(x.double(), y.double(), kernel=kernel)), rel=1e-6)


def test_contenders_agree(monkeypatch):
    pytest.importorskip("geomloss")
    monkeypatch.setattr(table, "_QUICK", [(64, 3)])
    monkeypatch.setattr(table, "_ONLINE", 0)
    found = list(table.measurements(True))
    assert [m.contender for m in found] == 2 * ["otdml", "torch, dense", "geomloss tensorized"]
    assert all(m.correct and m.quality < 1e-4 for m in found)
    # A loss that is another one is told apart.
    x, y = torch.zeros(2, 1), torch.ones(2, 1)
    assert table._error(lambda x, y: 1.1 * mmd(x, y), x, y, float(mmd(x, y))) == pytest.approx(0.1, rel=1e-4)
