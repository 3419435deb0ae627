"""Commands that train: a benchmark, and one run of it."""

import sys
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otdml.cli.application import (
    FAILURES,
    arguments,
    check_folder,
    command,
    console,
    errors,
    notes,
    plain,
    resumable,
    tell_of,
)
from otdml.cli.options import (
    SPREAD,
    AllowPartial,
    AnyDataset,
    Change,
    Dataset,
    Devices,
    Epochs,
    HoldOut,
    Jobs,
    Listed,
    Methods,
    Protocol,
    RealityCheck,
    Recipe,
    Root,
    RunsFolder,
    Seeds,
    SkipCorrupt,
    Spreads,
    StartFrom,
    Threads,
)
from otdml.cli.ranges import between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from otdml.benchmarks.methods import Method
    from otdml.benchmarks.presets import Preset
    from otdml.benchmarks.runs import Run, RunFolder

__all__ = ["benchmark", "train"]


@command(
    "otdml benchmark -d glyphs",
    "otdml benchmark -d omniglot -p small --root DATA --seeds 5",
    "otdml benchmark -d digits -m proxy-anchor -m proxy-anchor+nir --out runs/mine",
    "otdml benchmark -d digits -m proxy-nca --dispersion koleo:0.1 --dispersion uniformity:1@proxies",
    "otdml benchmark -d cub --root DATA --weights resnet50-0676ba61.pth",
    "otdml benchmark -d omniglot -p small --root DATA --reality-check --seeds 5",
    "otdml benchmark -d cub -p r50-128 --root DATA --weights none --set model.backbone=resnet18",
)
def benchmark(
    dataset: AnyDataset = None,
    protocol: Protocol = None,
    root: Root = None,
    method: Methods = None,
    dispersion: Spreads = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    hold_out: HoldOut = False,
    reality_check: RealityCheck = False,
    out: RunsFolder = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    devices: Devices = None,
    preset: Recipe = None,
    weights: StartFrom = None,
    change: Change = None,
    allow_partial: AllowPartial = False,
    skip_corrupt: SkipCorrupt = False,
    listed: Listed = False,
) -> None:
    """Compare methods over seeds, and write a report.

    Every method is trained with every seed under the same budget and tested on classes that none of them saw.
    Each run has its own folder; the same command goes on where it was stopped, and more seeds or methods add to
    what is there. At the end: report.html (opens offline), results.csv, runs.csv and results.json.
    """
    if listed:
        _list()
        return
    from otdml.benchmarks.baselines import measure_baselines
    from otdml.benchmarks.runs import Run, RunFolder, check_settings

    with arguments():
        dataset = dataset or (None if preset else "glyphs")
        chosen = _chosen(dataset, protocol, preset, change, epochs, weights).starting_from(weights)
        _check_root(chosen, root)
        _check_means(chosen, root, devices)
        chosen = _under_reality_check(chosen) if reality_check else chosen
        methods = _methods(chosen, method, dispersion)
        chosen.check_asked([one.name for one in methods], hold_out or reality_check)
        data = _tolerance(chosen, allow_partial, skip_corrupt)
        run_of = partial(Run.of, chosen, hold_out=hold_out or reality_check, data=data)
        seeded = [run_of(one, seed) for seed in range(seeds or chosen.seeds) for one in methods]
        check_settings(*seeded[: len(methods)])
        folder = out or Path("runs") / chosen.name
        runs = _folds(seeded) if reality_check else seeded
        _check_folder(folder, runs, lambda name, seed: run_of(chosen.method(name), seed))
    _check_machine(runs[0], devices)
    _tell_moves({run.title: RunFolder(folder / run.place) for run in runs}, threads)
    failures = _trained(folder, runs, root=root, jobs=jobs, threads=threads, devices=devices)
    with _kept_on("the baselines, which need no training"):
        measure_baselines(folder, runs[0], root)
    if reality_check:
        failures += _assembled(folder, seeded, root)
    _report(folder, chosen, failures)


def _list() -> None:
    """Show the benchmarks and methods there are."""
    from otdml.benchmarks.display import show_catalogue

    show_catalogue(console)


def _chosen(
    dataset: str | None,
    protocol: str | None,
    preset: Path | None,
    change: list[str] | None,
    epochs: int | None,
    weights: str | None,
) -> "Preset":
    """The preset that the options name, with what they change."""
    from otdml.benchmarks.presets import named

    if preset and dataset:
        raise ValueError(f"--dataset {dataset} and --preset: give one of them, the file says its data set.")
    changes = [*(change or ()), *([] if epochs is None else [f"training.epochs={epochs}"])]
    return named(dataset, protocol, preset, changes, weights=weights)


def _check_root(chosen: "Preset", root: str | None) -> None:
    """Raise unless the folder of the data set is given where there is one, and is a folder."""
    from otdml.data.registry import without_folder

    if not without_folder(chosen.dataset, root) and not (root and Path(root).is_dir()):
        got = f"{root} is none" if root else "it is not given"
        remedy = f"`otdml data check {chosen.dataset} --root FOLDER` says what it must hold."
        raise ValueError(f"--root must be the folder that holds {chosen.dataset}, and {got}. {remedy}")


def _check_means(chosen: "Preset", root: str | None, devices: int | None) -> None:
    """Raise for a change that the folder of the data set, or another option, leaves without effect."""
    if devices and ("training", "devices") in chosen.asked:
        raise ValueError("--devices and --set training.devices: give one of them.")
    apart = chosen.dataset == "folder" and root and all((Path(root) / part).is_dir() for part in ("train", "test"))
    for name in ("split_seed", "test_share") if apart else ():
        if ("data", name) in chosen.asked:
            raise ValueError(f"--set data.{name} has no effect here: {root} holds train and test, which are the split.")


def _under_reality_check(preset: "Preset") -> "Preset":
    """The preset under the Reality Check protocol."""
    from otdml.benchmarks.reality import protocol_of

    return protocol_of(preset)


def _folds(seeded: "list[Run]") -> "list[Run]":
    """The runs of the Reality Check protocol, four for each seed."""
    from otdml.benchmarks.reality import fold_runs

    return [fold for run in seeded for fold in fold_runs(run)]


def _assembled(folder: Path, seeded: "list[Run]", root: str | None) -> list[str]:
    """Make a run of the four networks of every seed; a message where that fails, and other seeds have their report."""
    from otdml.benchmarks.reality import assemble

    try:
        assemble(folder, seeded, root)
    except FAILURES as error:
        return [f"the assembly of the folds: {error}"]
    return []


def _trained(folder: Path, runs: "list[Run]", *, root: str | None, **means: int | None) -> list[str]:
    """Show a grid until it ends, or is interrupted; one message per run that failed."""
    from otdml.benchmarks.display import watch
    from otdml.benchmarks.experiment import check_data, run_grid

    with notes(), resumable():
        check_data(runs[0], root, means.get("devices"))
        with closing(run_grid(folder, runs, root=root, **means)) as states:  # type: ignore[arg-type]
            return watch(console, states)


def _check_folder(folder: Path, runs: "list[Run]", run_of: "Callable[[str, int], Run]") -> None:
    """Raise unless what is in the folder can stand in one table with the runs."""
    from otdml.benchmarks.finished import collect
    from otdml.benchmarks.runs import plan

    check_folder("--out", folder)
    plan(folder, runs)
    with notes():
        there = collect(folder)
    for earlier in there:
        run = run_of(earlier.method, earlier.seed)
        if runs[0].fold is not None:
            from otdml.benchmarks.reality import of_four_folds

            run = of_four_folds(run)
        earlier.folder.check(run)


def _tell_moves(folders: "Mapping[str, RunFolder]", threads: int | None = None) -> None:
    """Say of runs that go on where versions or the machine are not those that they were begun with."""
    from otdml.benchmarks.environment import environment

    now = environment(threads)
    for title, folder in folders.items():
        if folder.begun and not folder.finished and (moves := folder.moves(now)):
            said = f"{title} goes on elsewhere than it was begun: {'; '.join(moves)}"
            errors.print(f"[yellow]{plain(said)}[/]", highlight=False)


def _check_machine(run: "Run", devices: int | None) -> None:
    """Raise unless this machine can train the run: its network, and what it trains on."""
    from otdml.benchmarks.preconditions import check_network, check_trainer

    with arguments():
        check_network(run)
        check_trainer(run, devices)


@contextmanager
def _kept_on(what: str) -> "Iterator[None]":
    """Within it an error is a line: what was trained before has its report without what is measured beside it."""
    try:
        yield
    except FAILURES as error:
        said = f"not measured: {what}: {error}"
        errors.print(f"[yellow]{plain(said)}[/]", soft_wrap=True, highlight=False)


def _report(folder: Path, preset: "Preset", failures: list[str]) -> None:
    """Write what a benchmark leaves, and print its table; a failure is raised when all else is written."""
    from otdml.benchmarks.display import show_table
    from otdml.benchmarks.report import write_report
    from otdml.benchmarks.results import export

    with notes():
        results = export(folder)
    if results:
        write_report(folder / "report.html", preset, results, ["otdml", *sys.argv[1:]], failures)
        show_table(console, results, preset)
        console.print(f"\nReport: [bold]{plain(str(folder / 'report.html'))}[/]", soft_wrap=True, highlight=False)
    if failures:
        raise RuntimeError(f"{len(failures)} of the runs failed. The first is {failures[0]}")


def _methods(preset: "Preset", names: list[str] | None, dispersion: list[str] | None) -> "list[Method]":
    """The methods of these names, or those of the preset, without and with each dispersion loss."""
    arms = [_dispersed(name, arm) for name in names or preset.compare for arm in (None, *(dispersion or ()))]
    return list({one.name: one for one in map(preset.method, arms)}.values())


def _dispersed(method: str, dispersion: str | None) -> str:
    """The name of a method with a dispersion loss."""
    from otdml.dml.names import DispersionName

    return method if dispersion is None else f"{method}+{DispersionName.parsed(dispersion)}"


def _tolerance(preset: "Preset", allow_partial: bool, skip_corrupt: bool) -> dict[str, Any]:
    """Arguments of a data set that is not as published."""
    from otdml.benchmarks.settings import data_options_of

    options = {
        "allow_partial": ("--allow-partial", allow_partial, "which is not compared with a published list"),
        "on_corrupt": ("--skip-corrupt", skip_corrupt, "of which no image can be damaged"),
    }
    for name, (option, given, reason) in options.items():
        if given and name not in data_options_of(preset.dataset).model_fields:
            raise ValueError(f"{option} is not for {preset.dataset}, {reason}.")
        if given and ("data", name) in preset.asked:
            raise ValueError(f"{option} and --set data.{name}: give one of them.")
    wanted = {"allow_partial": allow_partial, "on_corrupt": skip_corrupt and "skip"}
    return {name: value for name, value in wanted.items() if value}


@command("otdml train -d digits -m proxy-nca+nir --seed 3 --out runs/one")
def train(
    dataset: Dataset = None,
    method: Annotated[str, typer.Option("--method", "-m", help="Its proxy loss, and arm.")] = "proxy-anchor",
    protocol: Protocol = None,
    root: Root = None,
    dispersion: Annotated[str | None, typer.Option(help=SPREAD)] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of weights, batches and augmentation; not of kept crops.", callback=between(0, 2**32 - 1)),
    ] = 0,
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

    The folder holds config.json, curve.csv, metrics.json, the checkpoints, and the embeddings of the unseen classes. A
    run that was stopped goes on when the command is given again, and ends with the numbers it would have had.
    """
    from otdml.benchmarks.runs import Run, RunFolder, check_settings

    with arguments():
        chosen = _chosen(dataset, protocol, preset, change, epochs, weights).starting_from(weights)
        _check_root(chosen, root)
        _check_means(chosen, root, devices)
        arm = chosen.method(_dispersed(method, dispersion))
        chosen.check_asked([arm.name], hold_out)
        run = Run.of(chosen, arm, seed, hold_out=hold_out, data=_tolerance(chosen, allow_partial, skip_corrupt))
        check_settings(run)
        folder = RunFolder(out or Path("runs") / chosen.name / run.method / f"seed-{seed}")
        check_folder("--out", folder.path)
        folder.check(run)
    _check_machine(run, devices)
    _tell_moves({run.title: folder})
    from otdml.benchmarks.experiment import check_data, execute
    from otdml.distributed import is_first

    with notes(), resumable():
        check_data(run, root, devices)
        execute(run, folder.path, root, progress=console.is_terminal, devices=devices)
    if is_first():
        _show(folder)


def _show(folder: "RunFolder") -> None:
    """The metrics of a finished run, and the images that it had to do without."""
    from otdml.benchmarks.display import metrics_table

    found = folder.metrics()
    tell_of("left out", (image for images in found.get("left_out", {}).values() for image in images.items()))
    console.print(metrics_table(found["last"]))
    if found["best"]:
        console.print(f"\nSelected on held-out classes, epoch {found['best_epoch'] + 1}:", highlight=False)
        console.print(metrics_table(found["best"]))
    console.print(f"\nCheckpoint: [bold]{plain(str(folder.path / 'last.ckpt'))}[/]", soft_wrap=True, highlight=False)
