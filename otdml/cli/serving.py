"""The command that shows an index in a browser."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otdml.cli.application import command, console, errors, plain
from otdml.cli.images import Exact, Trust
from otdml.cli.ranges import between

if TYPE_CHECKING:
    from otdml.server.site import Site

__all__ = ["serve"]


@command("otdml serve photos.index", "otdml serve photos.index --port 0 --no-browser")
def serve(
    index: Annotated[Path, typer.Argument(help="An index that `otdml embed` made.")],
    port: Annotated[
        int,
        typer.Option(
            "--port", "-p", help="Port of the loopback address; 0 for one that is free.", callback=between(0, 65535)
        ),
    ] = 8765,
    k: Annotated[
        int, typer.Option("--count", "-k", help="How many neighbours to show.", callback=between(1, 192))
    ] = 24,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one that made the index.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, and open no browser.")] = False,
    exact: Exact = False,
    trust: Trust = False,
) -> None:
    """Look around in an index, and search it by images of your own, on a page in your browser.

    Click an image to see those nearest to it with their similarity and class, or drop one of your own. The page is
    served on the loopback address alone, to whoever has the key in the address that is printed. Nothing leaves this
    machine, and of its files only the images of the index are read.
    """
    from otdml.benchmarks.runs import checkpoint_file

    if not index.exists():
        raise FileNotFoundError(f"{index} is no index: there is nothing of that name. Make one with `otdml embed`.")
    if checkpoint is not None:
        checkpoint_file(checkpoint)
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"a page is served by {package}, which is not installed: pip install 'otdml[serve]'"
            )
    from otdml.server.application import application
    from otdml.server.launch import address, can_show, listening, new_key, run
    from otdml.server.site import Site

    with listening(port) as listener:
        site = Site(index, checkpoint, trust=trust, count=k, exact=exact)
        _tell(site)
        key = new_key()
        shown = address(listener, key)
        console.print(f"{len(site.collection):,} images on [bold]{shown}[/]", soft_wrap=True, highlight=False)
        console.print("[dim]Ctrl+C stops it.[/]")
        run(application(site, key), listener, shown if not no_browser and can_show() else None)
    console.print("Stopped.")


def _tell(site: "Site") -> None:
    """Say which images of the index cannot be shown, and whether it can be searched.

    Raises:
        FileNotFoundError: None of its images is where it was.
    """
    missing, looked = site.collection.missing()
    if missing:
        path, reason = next(iter(missing.items()))
        found = f"{len(missing)} of {looked} images that were looked at cannot be shown, such as {path}: {reason}."
        remedy = "Move them back, or make the index again with `otdml embed`."
        if len(missing) == looked:
            raise FileNotFoundError(f"{found} {remedy}")
        errors.print(f"[yellow]note[/] {plain(f'{found} {remedy}')}", soft_wrap=True, highlight=False)
    if site.closed:
        said = f"images of your own cannot be searched. {site.closed} Name a checkpoint with --checkpoint."
        errors.print(f"[yellow]note[/] {plain(said)}", soft_wrap=True, highlight=False)
