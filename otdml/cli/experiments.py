"""Commands that train: a benchmark, and one run of it."""

import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otdml.cli.application import arguments, command, console
from otdml.cli.options import (
    SPREAD,
    AllowPartial,
    Change,
    Dataset,
    Devices,
    Epochs,
    HoldOut,
    Protocol,
    RealityCheck,
    Recipe,
    Root,
    SkipCorrupt,
    Spreads,
    StartFrom,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from otdml.benchmarks.experiment import RunState
    from otdml.benchmarks.methods import Method
    from otdml.benchmarks.presets import Preset
    from otdml.benchmarks.runs import Run

__all__ = ["benchmark", "train"]


@command(
    "otdml benchmark -d digits",
    "otdml benchmark -d omniglot -p small --root DATA --seeds 5",
    "otdml benchmark -d digits -m proxy-anchor -m proxy-anchor+nir --out runs/mine",
    "otdml benchmark -d digits -m proxy-nca --dispersion koleo:0.1 --dispersion uniformity:1@proxies",
    "otdml benchmark -d cub --root DATA --weights resnet50-0676ba61.pth",
    "otdml benchmark -d omniglot -p small --root DATA --reality-check --seeds 5",
    "otdml benchmark -d cub -p r50-128 --root DATA --weights none --set model.backbone=resnet18",
)
def benchmark(
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="Data set: digits, omniglot, cub, cars, sop or inshop.")
    ] = "digits",
    protocol: Protocol = None,
    root: Root = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="A method; repeat for more. Default: the preset's.")
    ] = None,
    dispersion: Spreads = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds 0, 1, ... of each method.", min=1)] = None,
    epochs: Epochs = None,
    hold_out: HoldOut = False,
    reality_check: RealityCheck = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the runs. Default: runs/NAME.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Runs side by side.", min=1)] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", help="Threads of each.", min=1)] = 1,
    devices: Devices = None,
    preset: Recipe = None,
    weights: StartFrom = None,
    change: Change = None,
    allow_partial: AllowPartial = False,
    skip_corrupt: SkipCorrupt = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the benchmarks and methods there are.")] = False,
) -> None:
    """Compare methods over seeds, and write a report.

    Every method is trained with every seed under the same budget and tested on classes that none of them saw.
    Each run has its own folder; the same command goes on where it was stopped, and more seeds or methods add to
    what is there. At the end: report.html (opens offline), results.csv, runs.csv and results.json.
    """
    from otdml.benchmarks.display import show_catalogue
    from otdml.benchmarks.experiment import check_data, run_grid
    from otdml.benchmarks.presets import named
    from otdml.benchmarks.reality import assemble, fold_runs, protocol_of
    from otdml.benchmarks.runs import Run

    if listed:
        show_catalogue(console)
        return
    with arguments():
        chosen = named(dataset, protocol, preset, change or ()).starting_from(weights)
        chosen = protocol_of(chosen) if reality_check else chosen
        methods = _methods(chosen, method, dispersion)
        folder = out or Path("runs") / chosen.name
        data = _tolerance(allow_partial, skip_corrupt)
        run_of = partial(Run.of, chosen, hold_out=hold_out or reality_check, data=data, epochs=epochs)
        seeded = [run_of(one, seed) for seed in range(seeds or chosen.seeds) for one in methods]
        runs = [fold for run in seeded for fold in fold_runs(run)] if reality_check else seeded
        _check(folder, runs, lambda name, seed: run_of(chosen.method(name), seed))
    check_data(runs[0], root)
    failures = _watched(run_grid(folder, runs, root=root, jobs=jobs, threads=threads, devices=devices))
    if reality_check:
        assemble(folder, seeded, root)
    _report(folder, chosen, failures)


def _watched(states: "Generator[list[RunState], None, None]") -> list[str]:
    """Show a grid until it ends, or is interrupted; one message per run that failed."""
    from otdml.benchmarks.display import watch

    with closing(states):
        return watch(console, states)


def _check(folder: Path, runs: "list[Run]", run_of: "Callable[[str, int], Run]") -> None:
    """Raise unless the runs can be made, and what is in the folder can stand in one table with them."""
    from otdml.benchmarks.experiment import check_network, check_settings
    from otdml.benchmarks.reality import of_four_folds
    from otdml.benchmarks.results import collect
    from otdml.benchmarks.runs import plan

    check_settings(runs[0])
    check_network(runs[0])
    plan(folder, runs)
    for earlier in collect(folder):
        run = run_of(earlier.method, earlier.seed)
        earlier.folder.check(run if runs[0].fold is None else of_four_folds(run))


def _report(folder: Path, preset: "Preset", failures: list[str]) -> None:
    """Write what a benchmark leaves, and print its table; a failure is raised when all else is written."""
    from otdml.benchmarks.display import show_table
    from otdml.benchmarks.report import write_report
    from otdml.benchmarks.results import export

    if results := export(folder):
        write_report(folder / "report.html", preset, results, ["otdml", *sys.argv[1:]], failures)
        show_table(console, results, preset)
        console.print(f"\nReport: [bold]{folder / 'report.html'}[/]", soft_wrap=True, highlight=False)
    if failures:
        raise RuntimeError(f"{len(failures)} of the runs failed. The first is {failures[0]}")


def _methods(preset: "Preset", names: list[str] | None, dispersion: list[str] | None) -> "list[Method]":
    """The methods of these names, or those of the preset, without and with each dispersion loss."""
    arms = [_dispersed(name, arm) for name in names or preset.compare for arm in (None, *(dispersion or ()))]
    return list({one.name: one for one in map(preset.method, arms)}.values())


def _dispersed(method: str, dispersion: str | None) -> str:
    """The name of a method with a dispersion loss."""
    from otdml.dml.dispersion import Dispersion

    return method if dispersion is None else f"{method}+{Dispersion(dispersion)}"


def _tolerance(allow_partial: bool, skip_corrupt: bool) -> dict[str, Any]:
    """Arguments of a data set that is not as published."""
    wanted = {"allow_partial": allow_partial, "on_corrupt": skip_corrupt and "skip"}
    return {name: value for name, value in wanted.items() if value}


@command("otdml train -d digits -m proxy-nca+nir --seed 3 --out runs/one")
def train(
    dataset: Dataset = None,
    method: Annotated[str, typer.Option("--method", "-m", help="Its proxy loss, and arm.")] = "proxy-anchor",
    protocol: Protocol = None,
    root: Root = None,
    dispersion: Annotated[str | None, typer.Option(help=SPREAD)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.", min=0)] = 0,
    epochs: Epochs = None,
    hold_out: HoldOut = False,
    devices: Devices = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder. Default: runs/NAME/METHOD/seed-S.")] = None,
    preset: Recipe = None,
    weights: StartFrom = None,
    change: Change = None,
    allow_partial: AllowPartial = False,
    skip_corrupt: SkipCorrupt = False,
) -> None:
    """Train one method with one seed, and print its metrics on unseen classes.

    The folder holds config.json, curve.csv, metrics.json and the checkpoints. A run that was stopped goes on when
    the command is given again, and ends with the numbers it would have had.
    """
    from otdml.benchmarks.display import metrics_table
    from otdml.benchmarks.experiment import check_network, check_settings, execute
    from otdml.benchmarks.presets import named
    from otdml.benchmarks.runs import Run, RunFolder
    from otdml.distributed import is_first

    with arguments():
        chosen = named(dataset, protocol, preset, change or ()).starting_from(weights)
        data = _tolerance(allow_partial, skip_corrupt)
        arm = chosen.method(_dispersed(method, dispersion))
        run = Run.of(chosen, arm, seed, hold_out=hold_out, data=data, epochs=epochs)
        folder = RunFolder(out or Path("runs") / chosen.name / run.method / f"seed-{seed}")
        folder.check(run)
        check_settings(run)
    check_network(run)
    execute(run, folder.path, root, progress=console.is_terminal, devices=devices)
    if not is_first():
        return
    found = folder.metrics()
    console.print(metrics_table(found["last"]))
    if found["best"]:
        console.print(f"\nSelected on held-out classes, epoch {found['best_epoch'] + 1}:", highlight=False)
        console.print(metrics_table(found["best"]))
    console.print(f"\nCheckpoint: [bold]{folder.path / 'last.ckpt'}[/]", soft_wrap=True, highlight=False)
