"""One self-contained HTML page from the folders of a benchmark's runs."""

import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otdml._files import write_text
from otdml._text import visible
from otdml.benchmarks.charts import Series, interval, line_chart, strip, thumbnail_map
from otdml.benchmarks.exhibits import Exhibits, embedding_map, load_exhibits
from otdml.benchmarks.finished import Finished
from otdml.benchmarks.methods import ARMS, parts
from otdml.benchmarks.pages import picture_uri, template
from otdml.benchmarks.presets import Preset
from otdml.benchmarks.provenance import differences, environments
from otdml.benchmarks.results import (
    Comparison,
    Figure,
    baselines,
    beside,
    comparisons,
    folded,
    half_width,
    leading,
    metric_names,
    readings,
    seeds_of,
    summary,
)
from otdml.dml.losses import LOSSES

__all__ = [
    "caveats",
    "metric_title",
    "percent",
    "statement",
    "write_report",
]

TITLES = {
    "left_out": "queries without a counterpart",
    "r_precision": "R-precision",
    "map@r": "MAP@R",
    "map@1000": "mAP@1000",
    "nmi": "NMI",
}
STYLES = {"": "plain", "+nir": "nir", "+nir-control": "control"}
DISPERSED = "with a dispersion loss"


def metric_title(name: str) -> str:
    """The field's way of writing a metric.

    Example:
        >>> metric_title("recall@1")
        'R@1'
    """
    return TITLES.get(name, name.replace("recall@", "R@"))


def percent(value: Figure, confidence: bool = False) -> str:
    """A figure in percent, with its deviation, or 95% confidence interval, where there is more than one seed.

    Example:
        >>> percent(Figure(0.9234, 0.004, 3))
        '92.3 ± 0.4'
    """
    mean = f"{100 * value.mean:.1f}"
    return mean if math.isnan(value.std) else f"{mean} ± {100 * (half_width(value) if confidence else value.std):.1f}"


def write_report(
    path: Path, preset: Preset, runs: Sequence[Finished], command: Sequence[str], failures: Iterable[str] = ()
) -> None:
    """Write the page.

    Args:
        path: Of the page, ``report.html``.
        preset: What was compared.
        runs: The finished runs.
        command: The command line that reproduces them.
        failures: One message per run that failed.
    """
    galleries = list(_galleries(runs))
    arms = {style: ARMS[arm] for arm, style in STYLES.items()} | {"dispersed": DISPERSED}
    content = {
        "preset": preset,
        "command": shlex.join(command),
        "failures": [visible(failure) for failure in failures],
        "arms": {style: arms[style] for style in arms if style in {_style(run.method) for run in runs}},
        "style": _style,
        **_tables(preset, runs),
        "panels": list(_panels(runs)),
        "galleries": galleries,
        "neighbors": max((len(row["neighbors"]) for g in galleries for row in g["rows"]), default=1),
        "pixelated": any(g["pixelated"] for g in galleries),
        "maps": list(_maps(runs)),
        "configurations": {run.method: _flat(run.folder.config()["run"]) for run in reversed(runs)},
        "environments": environments(runs),
    }
    write_text(path, template("report.html.jinja").render(content))


def _style(method: str) -> str:
    _, arm, dispersion = parts(method)
    return "dispersed" if dispersion else STYLES.get(arm, "plain")


def _tables(preset: Preset, runs: Sequence[Finished]) -> dict[str, Any]:
    rows, metrics = summary(runs), metric_names(runs)
    low, high = _headline(rows, metrics, runs)
    return {
        "baselines": {
            name: [f"{100 * one[m]:.1f}" if m in one else "" for m in metrics] for name, one in baselines(runs).items()
        },
        "headline": rows,
        "metrics": [metric_title(m) for m in metrics],
        "comparisons": _differences(comparisons(runs)),
        "per_seed": [_seed_row(run, name, metrics) for run in runs for name in ("last", "best") if run.metrics(name)],
        "published": [(p, None if ours is None else percent(ours)) for p, ours in beside(preset.published, runs)],
        "title_of": metric_title,
        "caveats": caveats(preset, runs),
        "range": (100 * low, 100 * high),
        "seeds": _counted({row["seeds"] for row in rows if row["seeds"] > 1}),
        "alone": any(row["seeds"] == 1 for row in rows),
        "seconds": sum(run.seconds for run in runs),
        "called": readings(runs),
        "folded": folded(runs),
        "held_out": any(run.best for run in runs),
    }


def _headline(rows: list[dict[str, Any]], metrics: Sequence[str], runs: Sequence[Finished]) -> tuple[float, float]:
    """Add what the first table shows to its rows, empty where a run lacks a metric; the range of the first metric."""
    best = {m: _leader([row["metrics"][m].mean for row in rows if _has(row, m)]) for m in metrics}
    first = leading(runs)
    values = [found[first] for run in runs for found in (run.last, run.best or {}) if first in found]
    low, high = min(values), max(values)
    for row in rows:
        figures = [(row["metrics"][m], best[m]) if _has(row, m) else None for m in metrics]
        row["cells"] = [("", False) if f is None else (percent(f[0], folded(runs)), f[0].mean == f[1]) for f in figures]
        row["seeds"] = seeds_of(row)
        own = [run.metrics(row["checkpoint"]) for run in runs if run.method == row["method"]]
        points = [found[first] for found in own if first in found]
        row["strip"] = strip(points, row["metrics"][first].mean, low, high, _style(row["method"])) if points else ""
    return low, high


def _has(row: Mapping[str, Any], metric: str) -> bool:
    """Whether a run of the row has the metric."""
    return metric in row["metrics"] and row["metrics"][metric].n > 0


def _differences(compared: Sequence[Comparison]) -> list[tuple[Comparison, str, str]]:
    """Each comparison in words, and as an interval on a scale that all share; nothing is drawn of no seed."""
    reach = max((abs(v) for c in compared for v in (c.difference, c.low, c.high) if math.isfinite(v)), default=1.0)
    shown = [
        interval(c.difference, c.low, c.high, reach or 1.0) if math.isfinite(c.difference) else "" for c in compared
    ]
    return [(c, statement(c), svg) for c, svg in zip(compared, shown, strict=True)]


def _counted(seeds: Collection[int]) -> str:
    """How many seeds the rows with a spread have; empty where none has one.

    Example:
        >>> _counted({5, 2, 3}), _counted({3}), _counted(())
        ('2 to 5 seeds', '3 seeds', '')
    """
    ends = dict.fromkeys((min(seeds), max(seeds))) if seeds else ()
    return " to ".join(map(str, ends)) + " seeds" * bool(seeds)


def _leader(values: Sequence[float]) -> float:
    """The highest value, NaN where none is higher than another."""
    return max(values) if max(values) > min(values) else math.nan


def _seed_row(run: Finished, checkpoint: str, metrics: Sequence[str]) -> dict[str, Any]:
    found = run.metrics(checkpoint)
    cells = [f"{100 * found[m]:.2f}" if m in found else "" for m in metrics]
    epoch = run.best_epoch + 1 if checkpoint == "best" and run.best_epoch is not None else readings([run])[checkpoint]
    return {"method": run.method, "seed": run.seed, "epoch": epoch, "cells": cells, "seconds": run.seconds}


def caveats(preset: Preset, runs: Sequence[Finished]) -> list[str]:
    """Reasons why figures are not comparable with published ones, from the configurations of the runs."""
    found = [run.folder.config()["run"] for run in runs]
    said = []
    if preset.changed:
        what = ", ".join(f"{key} = {value}" for key, value in preset.changed.items())
        said.append(f"These settings are not those of the preset: {what}.")
    said += _beside_published(preset, found) if preset.published else []
    if preset.weights and not all("weights" in run["model"].get("backbone_options", {}) for run in found):
        said.append(f"Not all networks started from {preset.weights.what}, as the published ones did.")
    if any(run["data"].get("allow_partial") for run in found):
        said.append("The copy of the data set was allowed to be a part of it.")
    if any(run["data"].get("on_corrupt") == "skip" for run in found):
        said += _left_out(runs)
    return said + differences(runs)


def _left_out(runs: Sequence[Finished]) -> Iterator[str]:
    """How many images could not be read, by split."""
    if any(run.left_out is None for run in runs):
        yield "Images that could not be read were left out."
        return
    splits: dict[str, set[str]] = {}
    for run in runs:
        for name, images in (run.left_out or {}).items():
            splits.setdefault(name, set()).update(images)
    counts = [f"{len(images)} of {name}" for name, images in splits.items() if images]
    if counts:
        yield f"Images that could not be read were left out: {', '.join(counts)}; metrics.json of a run names them."


def _beside_published(preset: Preset, found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What published figures do not share with the runs that stand beside them."""
    apart = {key: value for key, value in preset.apart.items() if key not in preset.changed}
    if apart:
        what = ", ".join(f"{key} = {value}" for key, value in apart.items())
        yield f"The published figures belong to other settings than those here: {what}."
    if held := sum(bool(run.get("hold_out")) for run in found):
        some = "" if held == len(found) else f"{held} of {len(found)} runs: "
        yield f"{some}Trained without the classes held out for validation, on which published methods were trained."


def statement(c: Comparison) -> str:
    """A comparison in words, from its numbers alone."""
    if c.verdict == "no common seed":
        return f"The two have no seed in common: no statement on {metric_title(c.metric)}."
    points = f"{100 * c.difference:+.2f} points of {metric_title(c.metric)}"
    if c.verdict == "one seed":
        return f"{points} with one seed: no statement without more seeds."
    spread = f"{points} over {c.n} seeds, 95% interval {100 * c.low:+.2f} to {100 * c.high:+.2f}"
    return f"{spread}: {c.verdict}."


def _panels(runs: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """One chart per proxy loss with its arms, for the metric on unseen classes and for the proxy loss."""
    curves = [(run, run.folder.curve()) for run in runs]
    columns = {column for _, curve in curves for row in curve for column in row}
    metric = next((name for name in ("val/recall@1", "test/recall@1") if name in columns), None)
    wanted = [(metric, 100.0, "%")] if metric else []
    for column, factor, unit in [*wanted, ("proxy", 1.0, "")]:
        values = [factor * row[column] for _, curve in curves for row in curve if column in row]
        if not values:
            continue
        for loss in LOSSES:
            own = [(run, curve) for run, curve in curves if run.method.partition("+")[0] == loss]
            limits = values if unit else [row[column] for _, curve in own for row in curve if column in row]
            lines = list(_lines(own, column, factor))
            # One epoch is no curve.
            if any(len(line.x) > 1 for line in lines):
                yield _panel(loss, column, unit, lines, (min(limits), max(limits)))


def _panel(loss: str, column: str, unit: str, lines: list[Series], y_range: tuple[float, float]) -> dict[str, Any]:
    seen = {"test": "unseen classes", "val": "held-out training classes"}
    split, _, metric = column.rpartition("/")
    what = f"{metric_title(metric)} on {seen[split]}" if split else "proxy term of the training loss"
    svg = line_chart(lines, title=f"{LOSSES[loss].title}: {what}", x_label="epoch", y_range=y_range, unit=unit)
    return {"title": LOSSES[loss].title, "what": what, "svg": svg}


def _lines(own: Sequence[tuple[Finished, list[dict[str, float]]]], column: str, factor: float) -> Iterator[Series]:
    for method in dict.fromkeys(run.method for run, _ in own):
        points: dict[float, list[float]] = {}
        for run, curve in own:
            for row in curve if run.method == method else ():
                if column in row:
                    points.setdefault(row["epoch"] + 1, []).append(factor * row[column])
        if points:
            x, y = list(points), list(points.values())
            means = [sum(v) / len(v) for v in y]
            yield Series(method, _style(method), x, means, [min(v) for v in y], [max(v) for v in y])


def _first_seeds(runs: Sequence[Finished]) -> list[tuple[Finished, Exhibits]]:
    """The first seed of each method that left exhibits, the method of the highest mean first."""
    order = sorted(summary(runs), key=_rank)
    found = []
    for method in dict.fromkeys(row["method"] for row in order):
        run = next(run for run in runs if run.method == method)
        if (run.folder.path / "exhibits.npz").exists():
            found.append((run, load_exhibits(run.folder.path / "exhibits.npz")))
    return found


def _rank(row: Mapping[str, Any]) -> float:
    """Order of a row by its first figure, the highest first, and one without a number last."""
    mean = next(iter(row["metrics"].values())).mean
    return math.inf if math.isnan(mean) else -mean


def _galleries(runs: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    for run, shown in _first_seeds(runs):
        images = shown["neighbor"].reshape(*shown["neighbor_class"].shape, *shown["neighbor"].shape[1:])
        rows = [_gallery_row(shown, images[i], i) for i in range(len(shown["query"]))]
        # Images of a few pixels are enlarged without smoothing.
        grey, side = shown["query"].ndim == 3, shown["query"].shape[1]
        look = {"grey": grey, "pixelated": side < 32, "photos": not grey and side >= 64}
        yield {"method": run.method, "seed": run.seed, "rows": rows, **look}


def _gallery_row(shown: Exhibits, images: np.ndarray, i: int) -> dict[str, Any]:
    classes, own = shown["classes"], shown["query_class"][i]
    neighbors = [
        {"uri": picture_uri(image), "name": str(classes[label]), "right": bool(label == own)}
        for image, label in zip(images, shown["neighbor_class"][i], strict=True)
    ]
    query = {"uri": picture_uri(shown["query"][i]), "name": str(classes[own])}
    return {"query": query, "neighbors": neighbors, "failure": bool(shown["failure"][i])}


def _maps(runs: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """The best method, and its loss alone or its NIR arm beside it."""
    found = _first_seeds(runs)
    loss = found[0][0].method.partition("+")[0] if found else ""
    twins = [(run, shown) for run, shown in found if run.method in (loss, f"{loss}+nir")]
    for run, shown in twins or found[:1]:
        groups = {label: i for i, label in enumerate(dict.fromkeys(shown["map_class"].tolist()))}
        names = [str(shown["classes"][label]) for label in groups]
        svg = thumbnail_map(
            [(float(x), float(y)) for x, y in embedding_map(shown["map_embedding"])],
            [picture_uri(image) for image in shown["map_image"]],
            [groups[label] for label in shown["map_class"].tolist()],
            names,
            f"t-SNE of {len(names)} unseen classes, {run.method}",
        )
        look = {"grey": shown["map_image"].ndim == 3}
        yield {"method": run.method, "seed": run.seed, "svg": svg, "classes": len(names), **look}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
