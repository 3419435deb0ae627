"""Soft minima over the pairs of cells that have mass: those over all pairs, of fewer."""

import pytest
import torch

from otdml.costs import Bilinear, ground
from otdml.ot.engines import cells
from otdml.ot.engines.cells import Cells
from otdml.ot.engines.streamed import Streamed


def problem(cost, n=203, m=150, without_weight=0):
    """Reduced cost over the temperature, points in its units, power, and optimal potentials."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(k, 2, dtype=torch.float64, generator=generator) for k in (n, m))
    power, eps = (2, 3e-4) if cost == "sqeuclidean" else (1, 3e-3)
    scale = (2 / eps) ** 0.5 if power == 2 else 1 / eps
    soft = Streamed(ground(x, y, cost).scaled(1 / eps))
    points = (x - x.mean(0)) * scale, (y - y.mean(0)) * scale
    if power == 1:
        points = x * scale, y * scale
    h = torch.full((n,), 1 / n).log(), torch.full((m,), 1 / m).log()
    h[1][:without_weight] = -torch.inf
    g = torch.zeros(m, dtype=torch.float64)
    for _ in range(200):
        f = soft.row_softmin(g + h[1])
        g = soft.column_softmin(f + h[0])
    return soft, points, power, (f, g), h


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_near_the_solution_nothing_is_missing(cost, monkeypatch):
    monkeypatch.setattr(cells, "LEAST", 4)
    soft, points, power, (f, g), h = problem(cost)
    u, v = ((t.square().sum(-1) / 2 if power == 2 else 0.0) for t in points)
    sparse = Cells(soft.cost, points, power, (f + u, g + v))
    assert sparse.share < 0.5
    # What is left out is less than exp(-14) of the independent coupling.
    for shift in (0.0, 1.0):
        bent = shift * torch.sin(torch.arange(len(g), dtype=g.dtype))
        torch.testing.assert_close(
            sparse.row_softmin(g + bent + h[1]), soft.row_softmin(g + bent + h[1]), rtol=0, atol=2e-5
        )
    torch.testing.assert_close(sparse.column_softmin(f + h[0]), soft.column_softmin(f + h[0]), rtol=0, atol=2e-5)


def test_points_without_weight_count_for_nothing(monkeypatch):
    monkeypatch.setattr(cells, "LEAST", 4)
    soft, points, power, (f, g), h = problem("sqeuclidean", without_weight=40)
    u, v = (t.square().sum(-1) / 2 for t in points)
    sparse = Cells(soft.cost, points, power, (f + u, g + v))
    torch.testing.assert_close(sparse.row_softmin(g + h[1]), soft.row_softmin(g + h[1]), rtol=0, atol=2e-5)
    torch.testing.assert_close(sparse.column_softmin(f + h[0]), soft.column_softmin(f + h[0]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("n", [1, 16, 17, 100])
def test_cells_hold_every_point_and_are_small(n, monkeypatch):
    monkeypatch.setattr(cells, "LEAST", 16)
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    cut = cells._cut(points)
    assert cut.index.flatten().unique().tolist() == list(range(n))
    assert cut.index.shape == (-(-n // 16), 16)
    cloud = cut.of(points)
    assert n < 100 or float((cloud.amax(1) - cloud.amin(1)).prod(-1).mean()) < 0.3


def test_gaps_are_distances_of_boxes():
    x, y = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[4.0, 5.0], [6.0, 7.0]], [[0.5, 0.5], [9.0, 9.0]]])
    torch.testing.assert_close(cells._gaps(x, y), torch.tensor([[5.0, 0.0]]))


def test_every_cell_keeps_a_partner(monkeypatch):
    monkeypatch.setattr(cells, "LEAST", 4)
    x = torch.linspace(0, 1000, 16)[:, None]
    # Potentials so low that the bound leaves nothing out of nothing.
    low = torch.full((16,), -1e6)
    sparse = Cells(Bilinear(x, x), (x, x), 2, (low, low))
    assert sparse.keep.any(0).all()
    assert sparse.keep.any(1).all()
    assert sparse.row_softmin(torch.zeros(16)).isfinite().all()
