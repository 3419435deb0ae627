"""Commands about this installation and its data: speed, data sets, engines."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from otdml._text import visible
from otdml.cli.application import arguments, check_writable, command, console, data_app, plain
from otdml.cli.ranges import between

__all__ = ["check", "doctor", "speed"]


@command("otdml speed sinkhorn --quick", "otdml speed sinkhorn --only n=4096,d=16 --out sinkhorn.json")
def speed(
    table: Annotated[str, typer.Argument(help="Name of a table; without one, they are listed.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The small cases only.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="Cases with these parameters, e.g. n=4096,d=16; OUT keeps what it holds of others."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the measurements as JSON.")] = None,
) -> None:
    """Time this library beside its peers, in one process, with peak memory and the quality reached.

    A peer that is fast and wrong is shown, and left out of the ratios.
    """
    from otdml._arguments import check_known
    from otdml.benchmarks.speed import TABLES

    with arguments():
        if not table and (quick or only or out):
            raise ValueError("--quick, --only and --out need a table. Tables: " + ", ".join(TABLES))
        if table:
            check_known("table", table, TABLES)
        if out is not None:
            check_writable("--out", out)
    if not table:
        console.print("Tables: " + ", ".join(TABLES), highlight=False)
        return
    from otdml.benchmarks import display
    from otdml.benchmarks.speed import harness

    with arguments():
        module = import_module(TABLES[table])
        wanted = harness.only(only or [])
        harness.check_only(only or [], module.measurements, quick)
        if out is not None and only:
            harness.earlier(out, table)
    measurements = display.show_measurements(console, module.measurements(quick, wanted))
    if out is not None:
        measurements = harness.save(out, measurements, table=table, merge=bool(only))
    display.show_ratios(console, measurements)
    if out is not None:
        console.print(f"\nMeasurements: [bold]{plain(str(out))}[/]", soft_wrap=True, highlight=False)


@command("otdml data check cub --root DATA", of=data_app, name="check")
def check(
    name: Annotated[str, typer.Argument(help="Data set, e.g. omniglot, cub.")],
    root: Annotated[str | None, typer.Option("--root", help="Its folder.")] = None,
) -> None:
    """Say what of a data set is there, what is missing, and where to get it. Exit code 1 if it cannot be used."""
    from otdml.data.registry import without_folder

    with arguments():
        without_folder(name, root)
    from otdml.data.inventory import check as check_data

    found = check_data(name, root)
    console.print(visible(str(found)), highlight=False, markup=False)
    if not found.complete:
        raise typer.Exit(1)


@command("otdml doctor", "otdml doctor keops faiss --timeout 300")
def doctor(
    engines: Annotated[list[str] | None, typer.Argument(help="Which ones; without a name, all.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that each may take. KeOps compiles.", callback=between(1, 86400))
    ] = 120.0,
) -> None:
    """Which engines are present, and do they work? Each is used for a moment, in a process of its own.

    Exit code 1 if one that the library cannot do without is absent, broken or too slow.
    """
    from otdml._arguments import check_known
    from otdml.doctor import ENGINES, examine

    with arguments():
        names = [check_known("engine", name, ENGINES) for name in engines or ENGINES]
    signs = {"works": "[green]✓[/]", "absent": "[dim]–[/]", "broken": "[red]✕[/]", "too slow": "[yellow]?[/]"}
    sound = True
    for found in examine(names, timeout=timeout):
        engine = found.engine
        sound = sound and (found.status == "works" or not engine.required)
        line = f"{signs[found.status]} [bold]{engine.name:<13}[/]{found.version:<13} {found.status:<9}"
        console.print(f"{line}[dim]{plain(engine.purpose)}: {plain(found.detail)}[/]", highlight=False)
    if not sound:
        raise typer.Exit(1)
