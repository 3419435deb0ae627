"""Benchmarks on the terminal: progress bars, the table of results, the catalogue."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from otdml._markup import plain
from otdml._tables import fitting
from otdml.benchmarks.experiment import RunState
from otdml.benchmarks.finished import Finished
from otdml.benchmarks.methods import ARMS, METHODS
from otdml.benchmarks.presets import Preset, Published, preset_files
from otdml.benchmarks.presets import preset as read_preset
from otdml.benchmarks.report import caveats, metric_title, percent, statement
from otdml.benchmarks.results import (
    COUNT,
    Figure,
    baselines,
    beside,
    comparisons,
    folded,
    metric_names,
    readings,
    seeds_of,
    summary,
)
from otdml.benchmarks.speed.harness import Measurement, Ratio, geometric_mean, ratios
from otdml.dml.dispersion import REGULARISERS
from otdml.dml.losses import LOSSES

HINT = """
[bold]cub-nir[/] is --dataset cub --protocol nir, [bold]cub[/] is --dataset cub. \
The figures below a title are published ones: whose, and second-hand where they were not read there.
"""

__all__ = ["metrics_table", "show_catalogue", "show_measurements", "show_ratios", "show_table", "watch"]


def watch(console: Console, states: Iterable[list[RunState]]) -> list[str]:
    """Show the progress of a grid until it ends.

    Returns:
        One message per run that failed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    last: list[RunState] = []
    with Progress(*columns, TextColumn("[dim]{task.fields[note]}"), console=console, transient=True) as bars:
        total = bars.add_task("[bold]runs", note="")
        tasks: dict[str, TaskID] = {}
        told: set[str] | None = None
        for last in states:
            bars.update(total, total=len(last), completed=sum(state.status == "finished" for state in last))
            # What is finished at first was finished before.
            told = {state.run.title for state in last if state.status == "finished"} if told is None else told
            for state in last:
                _show(bars, tasks, told, state)
    return [f"{state.run.title}: {state.message}" for state in last if state.status == "failed"]


def _show(bars: Progress, tasks: dict[str, TaskID], told: set[str], state: RunState) -> None:
    """A bar for a run that is running, and one line when it has ended, however short it was."""
    name = state.run.title
    if state.status == "running":
        if name not in tasks:
            tasks[name] = bars.add_task(plain(name), note="")
        row = state.latest
        note = " ".join(f"{key} {row[key]:.3g}" for key in ("loss", "val/recall@1", "test/recall@1") if key in row)
        epochs = state.run.training.get("epochs")
        bars.update(tasks[name], total=epochs, completed=row.get("epoch", -1) + 1, note=plain(note))
    elif name not in told and state.status in ("finished", "failed"):
        told.add(name)
        if name in tasks:
            bars.remove_task(tasks.pop(name))
        bars.console.print(_ending(state), highlight=False)


def _ending(state: RunState) -> str:
    name = plain(state.run.title)
    if state.status == "failed":
        return f"[red]✕[/] {name}: {plain(state.message)}"
    found = state.folder.metrics()
    metric, value = next(iter(found["last"].items()))
    return f"[green]✓[/] {name}: {metric_title(metric)} {100 * value:.1f} in {found['seconds']:.0f} s"


def show_table(console: Console, runs: Sequence[Finished], preset: Preset | None = None) -> None:
    """The results in percent as mean ± standard deviation over seeds, what the literature has, and what NIR does."""
    for table in fitting(console, metric_names(runs), partial(_figures, runs)):
        console.print(table)
    for some in _by_source(preset.published if preset else ()):
        pairs = [
            f"{_value(one)} (here {'not run' if ours is None else percent(ours)})" for one, ours in beside(some, runs)
        ]
        console.print(f"[dim]Published:[/] {plain(_cited(some, ', '.join(pairs)))}", highlight=False)
    for said in caveats(preset, runs) if preset else ():
        console.print(f"[yellow]{plain(said)}[/]", highlight=False)
    found = comparisons(runs)
    if found and all(one.verdict == "one seed" for one in found):
        console.print("One seed shows no difference between methods; --seeds 3 or more may.", highlight=False)
        return
    for one in found:
        console.print(f"[bold]{one.method}[/] against {one.against}: {statement(one)}", highlight=False)


def _figures(runs: Sequence[Finished], metrics: Sequence[str]) -> Table:
    """A row per method and checkpoint, and a column per metric."""
    rows = summary(runs)
    checkpoints = len({row["checkpoint"] for row in rows}) > 1
    table = Table(box=None, pad_edge=False, header_style="dim")
    # Only names are wrapped, and only where not even one metric fits beside them.
    table.add_column("method", overflow="fold")
    if checkpoints:
        table.add_column("embedding" if folded(runs) else "epoch", no_wrap=True)
    for name in [*(metric_title(metric) for metric in metrics), "seeds", "s"]:
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    for row in rows:
        figures = [row["metrics"].get(m, Figure(math.nan, math.nan, 0)) for m in metrics]
        cells = [percent(figure, folded(runs)) if figure.n else "" for figure in figures]
        epoch = [readings(runs)[row["checkpoint"]]] if checkpoints else []
        table.add_row(row["method"], *epoch, *cells, str(seeds_of(row)), f"{row['seconds'].mean:.0f}")
    for name, one in baselines(runs).items():
        shares = [f"{100 * one[m]:.1f}" if m in one else "" for m in metrics]
        table.add_row(name, *[""] * checkpoints, *shares, "", "", style="dim")
    return table


def metrics_table(metrics: dict[str, float]) -> Table:
    """One column of metrics: those in [0, 1] in percent, counts as they are."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in metrics.items():
        table.add_row(metric_title(name), f"{value:g}" if name == COUNT else f"{100 * value:.2f}")
    return table


def _value(figure: Published) -> str:
    return f"{metric_title(figure.metric)} {100 * figure.value:.1f}"


def _cited(figures: Sequence[Published], values: str) -> str:
    """Figures of one method and source in a phrase."""
    one = figures[0]
    return f"{one.method} {values}: {one.source}{', second-hand' * one.second_hand}"


def _by_source(figures: Iterable[Published]) -> list[list[Published]]:
    """Figures of one method and source together, in order."""
    found: dict[tuple[str, str, bool], list[Published]] = {}
    for figure in figures:
        found.setdefault((figure.method, figure.source, figure.second_hand), []).append(figure)
    return list(found.values())


def show_catalogue(console: Console) -> None:
    """The benchmarks with the published figures of each, and the methods."""
    benchmarks = Table("benchmark", "methods × seeds", "what", box=None, header_style="dim", padding=(0, 2, 0, 0))
    benchmarks.columns[0].no_wrap = True
    for name in preset_files():
        one = read_preset(name)
        what = [
            one.title + (" [yellow](never run here)[/]" if one.never_run else ""),
            *(f"[dim]{plain(_cited(some, ', '.join(map(_value, some))))}[/]" for some in _by_source(one.published)),
        ]
        benchmarks.add_row(name, f"{len(one.compare)} × {one.seeds}", "\n".join(what))
    console.print(benchmarks)
    console.print(HINT, highlight=False)
    methods = Table("method", "what", box=None, header_style="dim")
    for method in METHODS.values():
        methods.add_row(method.name, f"{LOSSES[method.loss].title}: {ARMS[method.arm]}")
    methods.add_row("...+NAME:WEIGHT[@PLACE]", f"one of these with a dispersion loss: {', '.join(REGULARISERS)}")
    console.print(methods)


def show_measurements(console: Console, measurements: Iterable[Measurement]) -> list[Measurement]:
    """Print a speed table row by row as it is measured.

    Returns:
        The measurements.
    """
    kept = []
    console.print(f"[dim]{'case':<44}{'contender':<28}{'ms':>12}{'MiB':>10}{'quality':>12}[/]", highlight=False)
    for one in measurements:
        kept.append(one)
        figures = f"{1e3 * one.seconds:>12.3f}{one.peak_mib:>10.1f}{one.quality:>12.3g}"
        remark = plain(one.note) if one.note else "" if one.correct else "not correct: out of the ratios"
        line = f"{plain(_case(one)):<44}{plain(one.contender):<28}{figures}"
        console.print(f"{line}  [yellow]{remark}[/]", highlight=False, soft_wrap=True)
    return kept


def show_ratios(console: Console, measurements: Sequence[Measurement]) -> None:
    """Print our ratio to the fastest correct peer of each case, its mean, and that against each library alone."""
    found = list(ratios(measurements))
    for ratio in found:
        line = f"{_case(ratio)}: {ratio.value:.2f} × as fast as {ratio.peer}"
        console.print(line, highlight=False, markup=False)
    if found:
        mean = geometric_mean(ratio.value for ratio in found)
        console.print(f"[bold]Geometric mean of {len(found)} ratios: {mean:.2f}[/]", highlight=False)
    names = dict.fromkeys(m.contender.replace(",", "").split()[0] for m in measurements)
    for name in [name for name in names if not name.startswith("otdml")]:
        console.print(_against(measurements, name), highlight=False, markup=False)


def _against(measurements: Sequence[Measurement], name: str) -> str:
    """Our mean ratio to the fastest correct setting of one library, and how often it has none."""
    found = [ratio.value for ratio in ratios(measurements, name)]
    tried = {_case(m) for m in measurements if m.contender.startswith(name)}
    mean = f"geometric mean of {len(found)} ratios {geometric_mean(found):.2f}" if found else "no ratio"
    missed = f"; not correct or not run in {len(tried) - len(found)} cases" if len(tried) > len(found) else ""
    return f"  {name}: {mean}{missed}"


def _case(one: Measurement | Ratio) -> str:
    return " ".join(f"{key}={value}" for key, value in one.case.items())
