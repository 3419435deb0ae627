"""Results of the finished runs of a benchmark: means over seeds, and paired differences between methods."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otdml._files import write_json, write_text
from otdml.benchmarks.baselines import PIXELS, kept_baselines
from otdml.benchmarks.finished import Finished, collect
from otdml.benchmarks.methods import parts
from otdml.benchmarks.presets import Published
from otdml.benchmarks.provenance import environments
from otdml.dml.losses import LOSSES

__all__ = [
    "COUNT",
    "Comparison",
    "Figure",
    "beside",
    "comparisons",
    "export",
    "figure",
    "folded",
    "half_width",
    "leading",
    "methods_of",
    "metric_names",
    "readings",
    "seeds_of",
]

# The metric that is a number of images, not a share: queries without another item of their class.
COUNT = "left_out"
EPOCHS = {"last": "last", "best": "best"}
FOLDED = {"last": "separated", "best": "concatenated"}
COMPARED = (("+nir", ""), ("+nir", "+nir-control"), ("+nir-control", ""))


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation over seeds, NaN for one seed.

    Example:
        >>> figure([0.5, 0.7])
        Figure(mean=0.6, std=0.1414..., n=2)
    """

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """The difference between two methods over the seeds that both have run, with its 95% interval (Student's t)."""

    method: str
    against: str
    metric: str
    difference: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"``, ``"no difference shown"`` (the interval holds zero), ``"one seed"``,
        ``"no common seed"``, or ``"not a number"``."""
        if self.n == 0:
            return "no common seed"
        if self.n < 2:
            return "one seed"
        if math.isnan(self.low):
            return "not a number"
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def methods_of(runs: Iterable[Finished]) -> list[str]:
    """Names of the methods, each once, in order."""
    return list(dict.fromkeys(run.method for run in runs))


def metric_names(runs: Iterable[Finished]) -> list[str]:
    """Names of the metrics that lie in [0, 1], each once, in order."""
    return list(dict.fromkeys(name for run in runs for name in run.last if name != COUNT))


def leading(runs: Iterable[Finished]) -> str:
    """Name of the metric by which methods are compared: the first one of the runs, Recall@1 where there is none."""
    return next(iter(metric_names(runs)), "recall@1")


def readings(runs: Iterable[Finished]) -> Mapping[str, str]:
    """Names of the two figures of a run: those of two epochs, or of the Reality Check protocol."""
    return FOLDED if folded(runs) else EPOCHS


def folded(runs: Iterable[Finished]) -> bool:
    """Whether the runs are of the Reality Check protocol."""
    return any("fold" in run.folder.config()["run"]["data"] for run in runs)


def figure(values: Sequence[float]) -> Figure:
    """Mean and sample standard deviation of ``values``; NaN where one of them is, or where there are too few."""
    known = all(map(math.isfinite, values))
    std = statistics.stdev(values) if known and len(values) > 1 else math.nan
    return Figure(statistics.fmean(values) if values else math.nan, std, len(values))


def half_width(value: Figure) -> float:
    """Half the 95% confidence interval of a mean (Student's t); NaN for one seed.

    Example:
        >>> round(half_width(figure([0.0, 1.0])), 3)  # 12.706 times the standard error, 1/2
        6.353
    """
    if value.n < 2:
        return math.nan
    from scipy.special import stdtrit

    return float(stdtrit(value.n - 1, 0.975)) * value.std / math.sqrt(value.n)


def _by_seed(runs: Iterable[Finished], method: str, metric: str, checkpoint: str) -> dict[int, float]:
    found = {run.seed: run.metrics(checkpoint) for run in runs if run.method == method}
    return {seed: metrics[metric] for seed, metrics in found.items() if metric in metrics}


def comparisons(runs: Sequence[Finished], metric: str | None = None, checkpoint: str = "last") -> list[Comparison]:
    """The NIR head against its loss alone and against its control arm, the control arm against the loss alone, and
    each dispersion loss against the same method without it; by the leading metric unless one is named."""
    present, metric = methods_of(runs), metric or leading(runs)
    pairs = [(loss + arm, loss + other) for loss in LOSSES for arm, other in COMPARED]
    pairs += [(name, name.removesuffix(f"+{parts(name)[2]}")) for name in present if parts(name)[2]]
    return [_compared(runs, *pair, metric, checkpoint) for pair in pairs if set(pair) <= set(present)]


def _compared(runs: Sequence[Finished], method: str, against: str, metric: str, checkpoint: str) -> Comparison:
    ours, theirs = (_by_seed(runs, name, metric, checkpoint) for name in (method, against))
    differences = figure([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
    mean, width = differences.mean, half_width(differences)
    return Comparison(method, against, metric, mean, mean - width, mean + width, differences.n)


def summary(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """One row per method and checkpoint: every metric as mean and standard deviation over seeds, and the time."""
    rows = []
    for method in methods_of(runs):
        own = [run for run in runs if run.method == method]
        for checkpoint in ("last", "best") if any(run.best for run in own) else ("last",):
            figures = {m: figure(list(_by_seed(own, method, m, checkpoint).values())) for m in metric_names(own)}
            seconds = figure([run.seconds for run in own])
            rows.append({"method": method, "checkpoint": checkpoint, "metrics": figures, "seconds": seconds})
    return rows


def seeds_of(row: Mapping[str, Any]) -> int:
    """Seeds that a row of :func:`summary` is the mean of, which are fewer than its runs where not all were selected."""
    return max((value.n for value in row["metrics"].values()), default=0)


def beside(published: Iterable[Published], runs: Sequence[Finished]) -> list[tuple[Published, Figure | None]]:
    """Each published figure, and ours of the same method and metric after the last epoch; None where there is none."""
    found = []
    for one in published:
        values = list(_by_seed(runs, one.method, one.metric, "last").values())
        found.append((one, figure(values) if values else None))
    return found


def baselines(runs: Sequence[Finished]) -> dict[str, Mapping[str, float]]:
    """Metrics of what was not trained, by name: those kept beside the runs, and the pixels that a run has left."""
    found = kept_baselines(runs[0].folder.path.parents[1]) if runs else {}
    pixels = next((run.raw_pixels for run in runs if run.raw_pixels), None)
    return found | ({PIXELS: pixels} if pixels else {})


def export(out: Path) -> list[Finished]:
    """Write ``results.csv`` (means over seeds), ``runs.csv`` (every run) and ``results.json`` (both) into ``out``."""
    runs = collect(out)
    called = readings(runs)
    means = [row | {"checkpoint": called[row["checkpoint"]]} for row in summary(runs)]
    untrained = baselines(runs)
    reference: list[dict[str, Any]] = [
        {"method": name, "checkpoint": "", **{f"{m}_mean": v for m, v in one.items()}}
        for name, one in untrained.items()
    ]
    write_text(out / "results.csv", _csv([*(_flat(row) for row in means), *reference]))
    each = [row | {"checkpoint": called[row["checkpoint"]]} for run in runs for row in _rows(run)]
    write_text(out / "runs.csv", _csv(each))
    content = {
        "summary": [row | {k: _plain(v) for k, v in row.items() if k in ("metrics", "seconds")} for row in means],
        "comparisons": [asdict(c) | {"verdict": c.verdict} for c in comparisons(runs)],
        "runs": each,
        "baselines": untrained,
        "environments": [{"runs": names, "environment": made} for names, made in environments(runs)],
    }
    write_json(out / "results.json", content)
    return runs


def _rows(run: Finished) -> list[dict[str, Any]]:
    found = {"last": run.last} | ({"best": run.best} if run.best else {})
    return [
        {"method": run.method, "seed": run.seed, "checkpoint": name, **metrics, "seconds": run.seconds}
        for name, metrics in found.items()
    ]


def _plain(value: Figure | Mapping[str, Figure]) -> dict[str, Any]:
    return asdict(value) if isinstance(value, Figure) else {name: asdict(one) for name, one in value.items()}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    columns = {"method": row["method"], "checkpoint": row["checkpoint"], "seeds": seeds_of(row)}
    for name, value in [*row["metrics"].items(), ("seconds", row["seconds"])]:
        width = half_width(value)
        columns |= {f"{name}_mean": value.mean, f"{name}_std": "" if math.isnan(value.std) else value.std}
        columns |= {} if math.isnan(width) else {f"{name}_ci95": width}
    return columns


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
