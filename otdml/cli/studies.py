"""The command that runs a study, and shows what it says so far."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otdml.cli.application import arguments, check_folder, check_writable, command, console, notes, plain, resumable
from otdml.cli.ranges import between

if TYPE_CHECKING:
    from otdml.studies.cells import Cell
    from otdml.studies.protocol import Study
    from otdml.studies.report import Report

__all__ = ["study"]


@command(
    "otdml study",
    "otdml study sprites-base --seeds 100 --arm 'beta 1' --arm 'beta 8'",
    "otdml study sprites-base --show --json docs/figures/studies/sprites-base.json",
    "otdml study sprites-base --from docs/figures/studies/sprites-base.json",
    "otdml study dsprites-base --data dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
)
def study(
    name: Annotated[str, typer.Argument(help="Name of a study; without one, they are listed.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of its cells. Default: runs/NAME.")] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="An arm; repeat for more. Default: all.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", help="A seed; repeat for more. Default: all.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Its data set, for the studies that need one.")] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", help="Threads of this command.", callback=between(1))] = 1,
    report: Annotated[
        Path | None, typer.Option("--from", help="A report that --json has written: its cells are taken, not repeated.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Run nothing; show what has been run.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw it; the suffix is the format.")] = None,
) -> None:
    """Answer one question about a loss by its fixed protocol: arms × seeds, with a control and intervals.

    Every finished cell is a file, so the same command goes on where it was stopped; given twice, the two share the
    cells. A report holds all its cells, from which --from goes on, on another machine say. A table is printed at the
    end, of all cells that are there.
    """
    from otdml.studies.display import show_studies, show_study

    with arguments():
        if not name and (out or arm or seeds or data or report or show or json or figure):
            raise ValueError("these options need the name of a study. `otdml study` lists them.")
        if show and (arm or seeds or data):
            raise ValueError("--show shows all that has been run: leave out --arm, --seeds and --data.")
        _check_files(json, figure)
    from otdml import studies

    if not name:
        topics = {topic: [studies.named(one) for one in names] for topic, names in studies.topics().items()}
        show_studies(console, topics, Path("runs"))
        return
    with arguments():
        check_folder("--out", out or Path("runs"))
        chosen = studies.named(name)
        wanted = _cells(chosen, out, arm, seeds)
        path = None if show else chosen.data(data)
        if report is not None:
            _restore(report, chosen, out)
    if not show:
        _run(chosen, wanted, path, threads)
    found = _report(chosen, out)
    show_study(console, found)
    _keep(found, json, figure)


def _check_files(json: Path | None, figure: Path | None) -> None:
    """Raise unless both files can be written, before anything that takes long."""
    for option, path in (("--json", json), ("--figure", figure)):
        if path is not None:
            check_writable(option, path)
    if figure is not None:
        from otdml.studies.figure import check_format

        check_format(figure)
    if json is not None and json == figure:
        raise ValueError(f"--json and --figure are one file, {json}. Name two.")


def _cells(study: "Study", out: Path | None, arms: list[str] | None, seeds: list[int] | None) -> "list[Cell]":
    from otdml.studies.cells import cells

    return cells(study, out or Path("runs") / study.name, arms or (), seeds or ())


def _restore(path: Path, study: "Study", out: Path | None) -> None:
    """Take all cells of a report that has them."""
    from otdml.studies.report import restore

    restore(path, study, _cells(study, out, None, None))


def _run(study: "Study", wanted: "list[Cell]", data: Path | None, threads: int) -> None:
    import torch

    from otdml.studies.cells import run_cells
    from otdml.studies.display import watch_study

    torch.set_num_threads(threads)
    with notes(), resumable():
        watch_study(console, study, wanted, run_cells(study, wanted, data))


def _report(study: "Study", out: Path | None) -> "Report":
    """The report of every cell of the study that is there, whichever of them were asked for now."""
    from otdml.studies.cells import finished
    from otdml.studies.report import report

    return report(study, finished(_cells(study, out, None, None)))


def _keep(found: "Report", json: Path | None, figure: Path | None) -> None:
    """Write the files that were asked for."""
    from otdml.studies.figure import draw
    from otdml.studies.report import save

    if json is not None:
        save(json, found)
        console.print(f"Report: [bold]{plain(str(json))}[/]", soft_wrap=True, highlight=False)
    if figure is not None:
        if not found.runs:
            raise ValueError(f"no cell of {found.name} is finished, so there is nothing to draw.")
        draw(found, figure)
        console.print(f"Figure: [bold]{plain(str(figure))}[/]", soft_wrap=True, highlight=False)
