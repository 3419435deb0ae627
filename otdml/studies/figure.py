"""The figure of a study: how its answer came about in the course of training, and where each seed ended."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from otdml.plot import COLORS
from otdml.studies.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_format", "draw"]

# Letters of a line of a label, which has no more place beside the axes.
LETTERS = 30
# Arms whose ranges over the seeds can be told apart; the dots beside show the seeds of more.
FEW = 5


def check_format(path: Path) -> None:
    """Raise unless the suffix of a file is a format that figures can have."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{path} must end in the format of a figure, one of {', '.join(sorted(formats))}.")


def draw(found: Report, path: Path) -> None:
    """Draw the first score of a report into a file: its curves on the left, the last value of every seed on the right.

    Runs that are read once, at their end, have no curves.

    Args:
        found: The report.
        path: The file; its suffix is the format.
    """
    from matplotlib.figure import Figure

    score = found.scores[0]
    present = [arm.name for arm in found.arms if found.of(arm.name)]
    figure = Figure(figsize=(10, 1.6 + 0.28 * max(6, len(present))), layout="constrained")
    if any(len(run.curve) > 1 for run in found.runs):
        curves, ends = figure.subplots(1, 2, width_ratios=(3, 2))
        for place, arm in enumerate(present):
            style = "-" if place < len(COLORS) else "--"
            _curve(curves, found, arm, _color(place), style, with_range=len(present) <= FEW)
        curves.set(xlabel="step", ylabel=fill(score.title, LETTERS))
    else:
        ends = figure.subplots()
    for place, arm in enumerate(present):
        values = [run.scores[score.name] for run in found.of(arm)]
        ends.plot(values, [place] * len(values), "o", color=_color(place), alpha=0.6, markersize=5)
        ends.plot([found.mean(arm, score.name).mean] * 2, [place - 0.3, place + 0.3], color=_color(place))
    ends.set(
        yticks=range(len(present)),
        yticklabels=present,
        xlabel=fill(f"{score.title} at the end, a dot per seed", LETTERS),
    )
    ends.invert_yaxis()
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _curve(ax: "Axes", found: Report, arm: str, color: str, style: str, *, with_range: bool) -> None:
    """The mean over the seeds at each step that all of them have, and the range of the seeds if asked for."""
    name = found.scores[0].name
    seeds = [{row["step"]: row[name] for row in run.curve} for run in found.of(arm)]
    steps = sorted(set.intersection(*(set(one) for one in seeds)))
    values = [[one[step] for one in seeds] for step in steps]
    ax.plot(steps, [sum(row) / len(row) for row in values], style, color=color, marker=".", label=arm)
    if with_range:
        ax.fill_between(
            steps, [min(row) for row in values], [max(row) for row in values], color=color, alpha=0.12, lw=0
        )
