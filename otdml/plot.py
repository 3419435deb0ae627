"""Figures with Matplotlib: transport plans, learning curves, maps of embeddings.

Colours are the colour-blind safe ones of Okabe and Ito. Each function draws into the axes it is given, or makes some,
and returns them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from otdml._checks import (
    argument_error,
    check_fraction,
    check_known,
    check_labels,
    check_matrix,
    check_signs,
    check_tensor,
)
from otdml.benchmarks.exhibits import embedding_map as plane
from otdml.benchmarks.finished import collect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "embedding_map", "learning_curves", "transport_plan"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLES = ("-", "--", ":", "-.")


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def transport_plan(x: Tensor, y: Tensor, plan: Tensor, *, share: float = 0.1, ax: "Axes | None" = None) -> "Axes":
    """Two clouds of the plane, and a line for each pair that exchanges mass, the darker the more.

    Args:
        x: Points, shape (n, 2).
        y: Points, shape (m, 2).
        plan: Mass from each point to each, shape (n, m), e.g. ``sinkhorn(x, y).plan``.
        share: Pairs with less than this share of the largest mass are left out, in (0, 1].
        ax: Where to draw.

    Raises:
        ValueError: The points are not finite or not of the plane, or the plan does not fit them, or moves nothing.
    """
    for name, points in (("x", x), ("y", y)):
        if check_matrix(name, points).shape[1] != 2:
            raise argument_error(name, "have shape (n, 2)", tuple(points.shape), "Project the points to a plane first.")
    check_tensor("plan", plan)
    check_signs(plan=plan)
    if plan.shape != (len(x), len(y)):
        raise argument_error("plan", f"have shape {(len(x), len(y))}", tuple(plan.shape))
    if not plan.any():
        raise argument_error("plan", "move some mass", "zeros alone")
    from matplotlib.collections import LineCollection

    ax = _axes(ax)
    weight = plan.detach() / plan.detach().max()
    pairs = (weight >= check_fraction("share", share)).nonzero()
    ends = np.stack([_array(x[pairs[:, 0]]), _array(y[pairs[:, 1]])], axis=1)
    alpha = _array(weight[pairs[:, 0], pairs[:, 1]])
    ax.add_collection(LineCollection(list(ends), colors="0.3", linewidths=0.8, alpha=alpha, zorder=1))
    for points, color in ((x, COLORS[0]), (y, COLORS[1])):
        across, up = _array(points).T
        ax.scatter(across, up, s=22, color=color, edgecolors="white", linewidths=0.6, zorder=2)
    ax.set_aspect("equal")
    return ax


def learning_curves(
    out: str | Path, metric: str = "test/recall@1", *, methods: Iterable[str] | None = None, ax: "Axes | None" = None
) -> "Axes":
    """A metric by epoch for the methods of a benchmark: the mean over seeds, and the range as a band.

    Args:
        out: Folder of the benchmark.
        metric: Column of the runs' ``curve.csv``.
        methods: Which methods; all if None.
        ax: Where to draw.

    Raises:
        ValueError: There is no finished run, or none of such a method, or none has that column.
    """
    runs = collect(Path(out))
    if not runs:
        raise argument_error("out", "be the folder of a benchmark with finished runs", out)
    if isinstance(methods, str):
        raise argument_error("methods", "be names", repr(methods), f"Write `[{methods!r}]` for one.", TypeError)
    there = list(dict.fromkeys(run.method for run in runs))
    wanted = set(there if methods is None else (check_known("method", name, there) for name in methods))
    curves: dict[str, list[Mapping[str, float]]] = {}
    for run in runs:
        if run.method in wanted:
            curves.setdefault(run.method, []).extend(row for row in run.folder.curve() if metric in row)
    if not any(curves.values()):
        raise argument_error("metric", f"be a column of a finished run in {out}", repr(metric))
    ax = _axes(ax)
    for i, (method, rows) in enumerate(curves.items()):
        color, style = COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]
        epochs = sorted({row["epoch"] for row in rows})
        values = [[row[metric] for row in rows if row["epoch"] == epoch] for epoch in epochs]
        x = [epoch + 1 for epoch in epochs]
        ax.plot(x, [sum(v) / len(v) for v in values], color=color, linestyle=style, label=method)
        ax.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, linewidth=0)
    ax.set(xlabel="epoch", ylabel=metric)
    ax.legend(frameon=False)
    return ax


def embedding_map(z: Tensor, labels: Tensor, *, ax: "Axes | None" = None) -> "Axes":
    """Embeddings in the plane by t-SNE :cite:p:`vandermaaten:08`: near means similar, far means little.

    Args:
        z: Embeddings, shape (n, d). Those that are all equal are one point.
        labels: Their classes, shape (n,); a class is a colour and a marker.
        ax: Where to draw.

    Raises:
        ValueError: The embeddings are not finite, or labels do not fit them.
    """
    labels = check_labels("labels", labels, len(check_matrix("z", z)))
    ax = _axes(ax)
    points, markers = plane(_array(z)), "osD^vP"
    for i, label in enumerate(labels.unique().tolist()):
        across, up = points[(labels == label).numpy(force=True)].T
        marker = markers[i // len(COLORS) % len(markers)]
        ax.scatter(across, up, s=14, color=COLORS[i % len(COLORS)], marker=marker, linewidths=0, label=str(label))
    ax.set(xticks=[], yticks=[])
    return ax


def _array(x: Tensor) -> np.ndarray:
    """The numbers of a tensor; NumPy has those of single and double precision."""
    return (x.detach() if x.dtype.itemsize >= 4 else x.detach().float()).numpy(force=True)
