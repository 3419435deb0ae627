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


def test_plans_that_no_plan_can_be_are_refused(ax):
    x = torch.rand(2, 2)
    nan = torch.tensor([[0.0, float("nan")], [0.0, 1.0]])
    for plan, match in [
        (torch.zeros(2, 2), "move some mass"),
        (-torch.ones(2, 2), "no negative weight"),
        (nan, "finite"),
    ]:
        with pytest.raises(ValueError, match=f"`plan` must .*{match}"):
            transport_plan(x, x, plan, ax=ax)
    with pytest.raises(TypeError, match=r"`plan` must be a torch\.Tensor"):
        transport_plan(x, x, np.ones((2, 2)), ax=ax)
    with pytest.raises(ValueError, match="`y` must be finite"):
        transport_plan(x, nan, torch.ones(2, 2), ax=ax)


def test_points_keep_their_precision(ax):
    x = torch.tensor([[0.0, 5_000_000.25], [1.0, 5_000_000.75]], dtype=torch.float64)
    transport_plan(x, x, torch.eye(2, dtype=torch.float64), ax=ax)
    assert ax.collections[1].get_offsets().tolist() == x.tolist()


def write_runs(out, method, curves):
    for seed, values in enumerate(curves):
        folder = out / method / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"run": {"method": method, "seed": seed}}))
        metrics = {"last": {}, "best": None, "best_epoch": None, "seconds": 1.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        rows = [f"{epoch},{value}" for epoch, value in enumerate(values)]
        (folder / "curve.csv").write_text("\n".join(["epoch,test/recall@1", *rows]))


def test_curves_of_some_methods(ax, tmp_path):
    names = ["proxy-nca", "proxy-anchor", *(f"other-{i}" for i in range(9))]
    with pytest.raises(ValueError, match="`out` must be the folder of a benchmark with finished runs"):
        learning_curves(tmp_path, ax=ax)
    for i, name in enumerate(names):
        write_runs(tmp_path, name, [(i, 0.0), (i + 1.0, 0.0)])
    # Names that can be read once are as good as a list.
    learning_curves(tmp_path, methods=(name for name in names[:2]), ax=ax)
    found = {line.get_label(): line.get_ydata()[0] for line in ax.get_lines()}
    assert found == {"proxy-nca": 0.5, "proxy-anchor": 1.5}
    with pytest.raises(ValueError, match="unknown method 'proxy-nka'"):
        learning_curves(tmp_path, methods=["proxy-nka"], ax=ax)
    with pytest.raises(TypeError, match="`methods` must be names, got 'proxy-nca'"):
        learning_curves(tmp_path, methods="proxy-nca", ax=ax)
    ax.clear()
    learning_curves(tmp_path, ax=ax)
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.get_lines()}) == len(names)


def test_curves_are_means_over_seeds_with_their_range(ax, tmp_path):
    write_runs(tmp_path, "proxy-nca", [(0.1, 0.4), (0.3, 0.8)])
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


@pytest.mark.parametrize("z", [torch.ones(10, 4), torch.zeros(3, 2), torch.ones(1, 4)])
def test_embeddings_in_one_place_are_one_point(ax, z):
    embedding_map(z, torch.arange(len(z)) % 2, ax=ax)
    assert all((c.get_offsets() == 0).all() for c in ax.collections)


def test_maps_of_a_line_and_what_is_no_map(ax, generator):
    embedding_map(torch.randn(12, 1, generator=generator), torch.zeros(12).long(), ax=ax)
    assert len(ax.collections[0].get_offsets()) == 12
    with pytest.raises(ValueError, match=r"`z` must have shape \(n, d\)"):
        embedding_map(torch.rand(1, 10, 4), torch.zeros(1).long(), ax=ax)
    with pytest.raises(ValueError, match="`z` must be finite"):
        embedding_map(torch.full((5, 2), float("nan")), torch.zeros(5).long(), ax=ax)


def test_axes_are_made_where_none_are_given():
    from matplotlib import pyplot

    made = transport_plan(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 1))
    assert made.figure.get_layout_engine() is not None
    pyplot.close(made.figure)
