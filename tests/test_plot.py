"""Figures: what is drawn is what was given."""

import json

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from otdml.plot import embedding_map, learning_curves, transport_plan


@pytest.fixture
def ax():
    return Figure().subplots()


def test_a_line_joins_each_pair_that_exchanges_mass(ax):
    x, y = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    transport_plan(x, y, torch.tensor([[0.5, 0.01], [0.0, 0.25]]), ax=ax)
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert [segment.tolist() for segment in lines.get_segments()] == [[[0, 0], [0, 1]], [[1, 0], [1, 1]]]
    assert lines.get_alpha().tolist() == [1.0, 0.5]


def test_plans_that_do_not_fit_are_refused(ax):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"`plan` must have shape \(3, 3\), got \(2, 3\)"):
        transport_plan(x, x, torch.ones(2, 3), ax=ax)
    with pytest.raises(ValueError, match="Project the points to a plane"):
        transport_plan(torch.zeros(3, 5), x, torch.ones(3, 3), ax=ax)


def test_curves_are_means_over_seeds_with_their_range(ax, tmp_path):
    for seed, values in enumerate([(0.1, 0.4), (0.3, 0.8)]):
        folder = tmp_path / "proxy-nca" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"run": {"method": "proxy-nca", "seed": seed}}))
        metrics = {"last": {}, "best": None, "best_epoch": None, "seconds": 1.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        rows = [f"{epoch},{value}" for epoch, value in enumerate(values)]
        (folder / "curve.csv").write_text("\n".join(["epoch,test/recall@1", *rows]))
    learning_curves(tmp_path, ax=ax)
    (line,) = ax.get_lines()
    assert line.get_xydata() == pytest.approx(np.array([[1, 0.2], [2, 0.6]]))
    assert line.get_label() == "proxy-nca"
    with pytest.raises(ValueError, match="column of a finished run"):
        learning_curves(tmp_path, "test/recall@9", ax=ax)


def test_map_has_one_series_per_class(ax, generator):
    z, labels = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    embedding_map(z, labels, ax=ax)
    assert [len(c.get_offsets()) for c in ax.collections] == [4, 4, 4]


def test_axes_are_made_where_none_are_given():
    from matplotlib import pyplot

    made = transport_plan(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 1))
    assert made.figure.get_layout_engine() is not None
    pyplot.close(made.figure)
