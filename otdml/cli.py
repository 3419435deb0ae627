"""The command line. Heavy imports wait until a command needs them, so that help is quick."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import otdml

__all__ = ["app", "main"]

# What a user can cause; anything else is a defect of the library and shows its traceback.
FAILURES = (ValueError, TypeError, RuntimeError, OSError, ImportError, FloatingPointError)
DEBUG = "OTDML_TRACEBACK"


def _examples(*lines: str) -> str:
    """The end of a help page: one example per line."""
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


console = Console()
errors = Console(stderr=True)
app = typer.Typer(
    name="otdml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Optimal transport for PyTorch, and proxy-based metric learning with it.",
    epilog="Start with [bold]otdml benchmark --dataset digits[/bold]: seven methods, a report, two minutes.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data sets.")
app.add_typer(data_app, name="data")

Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Data set, e.g. digits, omniglot.")]
Protocol = Annotated[str | None, typer.Option("--protocol", "-p", help="Its protocol, e.g. small or full.")]
Root = Annotated[str | None, typer.Option("--root", help="Folder of the data set; digits need none.")]
Recipe = Annotated[Path | None, typer.Option("--preset", help="A TOML file of your own instead of a data set.")]
SPREAD = "A dispersion loss and its weight, such as koleo:0.1, or koleo:0.1@proxies."
Spreads = Annotated[
    list[str] | None, typer.Option(help=f"{SPREAD} Every method is run without and with it; repeat for more.")
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the preset, e.g. model.dim=128; repeat for more."),
]
StartFrom = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Pretrained weights of the backbone, or none to start from random ones."),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs, in place of the preset's.", min=1)]
HoldOut = Annotated[
    bool, typer.Option("--hold-out", help="Train without the validation classes, and report the best epoch on them.")
]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be read.")]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Accept a copy that lacks published images.")]


def main() -> None:
    """Run the command line; a failure is one message and exit code 1, a wrong argument exit code 2."""
    try:
        app()
    except FAILURES as error:
        if os.environ.get(DEBUG):
            raise
        errors.print(f"[bold red]Error:[/] {_plain(str(error))}", highlight=False)
        errors.print("[dim]`otdml --traceback ...` shows where.[/]", highlight=False)
        sys.exit(1)


def _plain(text: str) -> str:
    """Text whose square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def _arguments() -> Iterator[None]:
    """Within it a ValueError is a wrong argument: exit code 2 instead of 1."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"otdml {otdml.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", envvar=DEBUG, help="Errors with their traceback.")] = False,
) -> None:
    """Options of every command."""
    if traceback:
        os.environ[DEBUG] = "1"


@app.command(
    epilog=_examples(
        "otdml benchmark -d digits",
        "otdml benchmark -d omniglot -p small --root DATA --seeds 5",
        "otdml benchmark -d digits -m proxy-anchor -m proxy-anchor+nir --out runs/mine",
        "otdml benchmark -d digits -m proxy-nca --dispersion koleo:0.1 --dispersion uniformity:1@proxies",
        "otdml benchmark -d cub --root DATA --weights resnet50-0676ba61.pth",
        "otdml benchmark -d cub -p r50-128 --root DATA --weights none --set model.backbone=resnet18",
    )
)
def benchmark(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Data set, e.g. digits, omniglot.")] = "digits",
    protocol: Protocol = None,
    root: Root = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="A method; repeat for more. Default: the preset's.")
    ] = None,
    dispersion: Spreads = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds 0, 1, ... of each method.", min=1)] = None,
    epochs: Epochs = None,
    hold_out: HoldOut = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the runs. Default: runs/NAME.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Runs side by side.", min=1)] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", help="Threads of each.", min=1)] = 1,
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
    from otdml.benchmarks.display import show_catalogue, show_table, watch
    from otdml.benchmarks.environment import cores
    from otdml.benchmarks.experiment import check_settings, run_grid
    from otdml.benchmarks.presets import named
    from otdml.benchmarks.report import write_report
    from otdml.benchmarks.results import collect, export
    from otdml.benchmarks.runs import Run, plan

    if listed:
        show_catalogue(console)
        return
    with _arguments():
        chosen = named(dataset, protocol, preset, change or ()).starting_from(weights)
        names = [_dispersed(name, arm) for name in method or chosen.compare for arm in (None, *(dispersion or ()))]
        methods = {one.name: one for one in map(chosen.method, names)}.values()
        folder = out or Path("runs") / chosen.name
        data = _tolerance(allow_partial, skip_corrupt)
        run_of = partial(Run.of, chosen, hold_out=hold_out, data=data, epochs=epochs)
        runs = [run_of(one, seed) for seed in range(seeds or chosen.seeds) for one in methods]
        for earlier in collect(folder):
            # What is there stands in the same table, so it must have had the same budget.
            earlier.folder.check(run_of(chosen.method(earlier.method), earlier.seed))
        plan(folder, runs)
        check_settings(runs[0])
    jobs = jobs or max(1, cores() // threads)
    with closing(run_grid(folder, runs, root=root, jobs=jobs, threads=threads)) as states:
        failures = watch(console, states)
    if results := export(folder):
        write_report(folder / "report.html", chosen, results, ["otdml", *sys.argv[1:]], failures)
        show_table(console, results)
        console.print(f"\nReport: [bold]{folder / 'report.html'}[/]", soft_wrap=True, highlight=False)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(runs)} runs failed. The first is {failures[0]}")


def _dispersed(method: str, dispersion: str | None) -> str:
    """The name of a method with a dispersion loss."""
    from otdml.dml.dispersion import Dispersion

    return method if dispersion is None else f"{method}+{Dispersion(dispersion)}"


def _tolerance(allow_partial: bool, skip_corrupt: bool) -> dict[str, Any]:
    """Arguments of a data set that is not as published."""
    wanted = {"allow_partial": allow_partial, "on_corrupt": skip_corrupt and "skip"}
    return {name: value for name, value in wanted.items() if value}


@app.command(epilog=_examples("otdml train -d digits -m proxy-nca+nir --seed 3 --out runs/one"))
def train(
    dataset: Dataset = None,
    method: Annotated[str, typer.Option("--method", "-m", help="Its proxy loss, and arm.")] = "proxy-anchor",
    protocol: Protocol = None,
    root: Root = None,
    dispersion: Annotated[str | None, typer.Option(help=SPREAD)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.", min=0)] = 0,
    epochs: Epochs = None,
    hold_out: HoldOut = False,
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
    from otdml.benchmarks.experiment import check_settings, execute
    from otdml.benchmarks.presets import named
    from otdml.benchmarks.runs import Run, RunFolder

    with _arguments():
        chosen = named(dataset, protocol, preset, change or ()).starting_from(weights)
        data = _tolerance(allow_partial, skip_corrupt)
        arm = chosen.method(_dispersed(method, dispersion))
        run = Run.of(chosen, arm, seed, hold_out=hold_out, data=data, epochs=epochs)
        folder = RunFolder(out or Path("runs") / chosen.name / run.method / f"seed-{seed}")
        folder.check(run)
        check_settings(run)
    execute(run, folder.path, root, progress=console.is_terminal)
    found = folder.metrics()
    console.print(metrics_table(found["last"]))
    if found["best"]:
        console.print(f"\nSelected on held-out classes, epoch {found['best_epoch'] + 1}:", highlight=False)
        console.print(metrics_table(found["best"]))
    console.print(f"\nCheckpoint: [bold]{folder.path / 'last.ckpt'}[/]", soft_wrap=True, highlight=False)


@app.command(epilog=_examples("otdml evaluate runs/digits/proxy-anchor/seed-0/last.ckpt"))
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Default: that of the run.")] = None,
    protocol: Protocol = None,
    root: Root = None,
    split: Annotated[str, typer.Option(help="train, val, trainval or test.")] = "test",
    ks: Annotated[str, typer.Option(help="K of Recall@K, separated by commas.")] = "1,2,4,8",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Retrieval metrics of a checkpoint on a split of a data set.

    Beside the checkpoint of a run lies config.json, which says what the run was trained on; elsewhere name the data
    set with --dataset.
    """
    from otdml.benchmarks.display import metrics_table
    from otdml.benchmarks.models import load_checkpoint, split_for
    from otdml.benchmarks.presets import named
    from otdml.dml.training import evaluate as metrics_on

    with _arguments():
        numbers = tuple(_integers("--ks", ks))
        if protocol and dataset is None:
            raise ValueError("--protocol needs --dataset: without both, the set and protocol of the run are taken.")
        chosen = None if dataset is None else named(dataset, protocol)
    found = metrics_on(load_checkpoint(checkpoint), split_for(checkpoint, chosen, root, split), ks=numbers)
    console.print_json(data=found) if as_json else console.print(metrics_table(found))


@app.command(epilog=_examples("otdml embed runs/digits/proxy-anchor/seed-0 photos --out photos.index"))
def embed(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    images: Annotated[list[Path], typer.Argument(help="A folder of images, or image files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the index.")] = Path("embeddings.index"),
    size: Annotated[int | None, typer.Option(help="Pixels per side. Default: those of the run.", min=4)] = None,
    skip_corrupt: SkipCorrupt = False,
) -> None:
    """Embed images, and keep the vectors with the paths of their files as an index to search.

    The index is a folder: index.faiss, which FAISS reads as well, and items.json with the paths.
    """
    from otdml.benchmarks.models import embedded

    index, skipped = embedded(checkpoint, images, size=size, on_corrupt="skip" if skip_corrupt else "raise")
    for path, reason in skipped.items():
        errors.print(f"[yellow]left out[/] {_plain(f'{path}: {reason}')}", highlight=False)
    index.save(out)
    console.print(f"{len(index)} embeddings: [bold]{out}[/]", soft_wrap=True, highlight=False)


@app.command(
    epilog=_examples("otdml search photos.index query.jpg", "otdml search photos.index new.jpg --html near.html")
)
def search(
    index: Annotated[Path, typer.Argument(help="An index that `otdml embed` made.")],
    image: Annotated[Path, typer.Argument(help="An image file.")],
    k: Annotated[int, typer.Option("--count", "-k", help="How many to show.", min=1)] = 10,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one that made the index.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows the images.")] = None,
) -> None:
    """The images of an index that are most similar to an image, with their cosine similarities."""
    from otdml.benchmarks.models import nearest_images
    from otdml.benchmarks.report import write_matches

    matches = nearest_images(index, image, k, checkpoint)
    for match in matches:
        console.print(f"{match.similarity:.4f}  {_plain(match.path)}", soft_wrap=True, highlight=False)
    if html is not None:
        write_matches(html, image, matches)
        console.print(f"\nPage: [bold]{html}[/]", soft_wrap=True, highlight=False)


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be integers separated by commas, got {text!r}.") from error


@app.command(epilog=_examples("otdml speed sinkhorn --quick", "otdml speed retrieval --out retrieval.json"))
def speed(
    table: Annotated[str, typer.Argument(help="Name of a table; without one, they are listed.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The small cases only.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the measurements as JSON.")] = None,
) -> None:
    """Time this library beside its peers, in one process, with peak memory and the quality reached.

    A peer that is fast and wrong is shown, and left out of the ratios.
    """
    from otdml._checks import check_known
    from otdml.benchmarks.display import show_measurements
    from otdml.benchmarks.speed import TABLES
    from otdml.benchmarks.speed.harness import save

    if not table:
        console.print("Tables: " + ", ".join(TABLES), highlight=False)
        return
    with _arguments():
        module = import_module(TABLES[check_known("table", table, TABLES)])
    measurements = show_measurements(console, module.measurements(quick))
    if out is not None:
        save(out, measurements)
        console.print(f"\nMeasurements: [bold]{out}[/]", soft_wrap=True, highlight=False)


@data_app.command("check", epilog=_examples("otdml data check cub --root DATA"))
def check(
    name: Annotated[str, typer.Argument(help="Data set, e.g. omniglot, cub.")],
    root: Annotated[str | None, typer.Option("--root", help="Its folder.")] = None,
) -> None:
    """Say what of a data set is there, what is missing, and where to get it. Exit code 1 if it cannot be used."""
    from otdml._checks import check_known
    from otdml.benchmarks.experiment import DATASETS

    with _arguments():
        check_known("data set", name, DATASETS)
    from otdml.data.inventory import check as check_data

    found = check_data(name, root)
    console.print(str(found), highlight=False, markup=False)
    if not found.complete:
        raise typer.Exit(1)


@app.command(epilog=_examples("otdml doctor", "otdml doctor keops faiss --timeout 300"))
def doctor(
    engines: Annotated[list[str] | None, typer.Argument(help="Which ones; without a name, all.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that each may take. KeOps compiles.", min=1)] = 120.0,
) -> None:
    """Which engines are present, and do they work? Each is used for a moment, in a process of its own.

    Exit code 1 if one that the library cannot do without is absent or broken.
    """
    from otdml._checks import check_known
    from otdml.doctor import ENGINES, examine

    with _arguments():
        names = [check_known("engine", name, ENGINES) for name in engines or ENGINES]
    signs = {"works": "[green]✓[/]", "absent": "[dim]–[/]", "broken": "[red]✕[/]", "too slow": "[yellow]?[/]"}
    sound = True
    for found in examine(names, timeout=timeout):
        engine = found.engine
        sound = sound and (found.status == "works" or not engine.required)
        line = f"{signs[found.status]} [bold]{engine.name:<13}[/]{found.version:<13} {found.status:<9}"
        console.print(f"{line}[dim]{_plain(engine.purpose)}: {_plain(found.detail)}[/]", highlight=False)
    if not sound:
        raise typer.Exit(1)
