"""The command-line application: consoles, help pages and errors."""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

import otdml
from otdml._markup import plain
from otdml._text import in_one_line, visible
from otdml._warnings import SolverWarning

__all__ = [
    "DEBUG",
    "FAILURES",
    "app",
    "arguments",
    "check_folder",
    "check_writable",
    "command",
    "console",
    "data_app",
    "errors",
    "notes",
    "plain",
    "resumable",
    "tell_of",
]

DEBUG = "OTDML_TRACEBACK"
# Errors that a user can cause; any other is a defect of the library and shows its traceback.
FAILURES = (ValueError, TypeError, RuntimeError, OSError, ImportError, ArithmeticError)
console = Console()
errors = Console(stderr=True)
app = typer.Typer(
    name="otdml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Optimal transport for PyTorch, and proxy-based metric learning with it.",
    epilog="Start with [bold]otdml benchmark --dataset glyphs[/bold]: seven methods, a report, two minutes.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data sets.")
app.add_typer(data_app, name="data")

Function = TypeVar("Function", bound=Callable[..., None])


def command(*examples: str, of: typer.Typer = app, name: str | None = None) -> Callable[[Function], Function]:
    """Make a function a command; its help page is its docstring, paragraph by paragraph, and ends with examples."""

    def register(function: Function) -> Function:
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return of.command(name, help=text, epilog="\n\n".join(["[bold]Examples[/bold]", *examples]))(function)

    return register


@contextmanager
def arguments() -> Iterator[None]:
    """Within it a wrong value or type is a wrong argument: exit code 2 instead of 1."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(visible(str(error))) from error


@contextmanager
def notes() -> Iterator[None]:
    """Warnings of files passed over and of solvers as lines, once each, for their place in the code is no user's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="Passed over")
        warnings.simplefilter("always", SolverWarning)
        shown, told = warnings.showwarning, set[str]()

        def note(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if not (str(message).startswith("Passed over") or issubclass(category, SolverWarning)):
                shown(message, category, *rest)
            elif str(message) not in told:
                told.add(str(message))
                errors.print(f"[yellow]note[/] {plain(str(message))}", soft_wrap=True, highlight=False)

        warnings.showwarning = note  # type: ignore[assignment]
        yield


@contextmanager
def resumable() -> Iterator[None]:
    """Within it an interrupt, or SIGTERM in a training, says how to go on before it ends the command."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        errors.print("[yellow]Stopped. The same command goes on from here.[/]", highlight=False)
        raise


def tell_of(what: str, images: Iterable[tuple[str, str]]) -> None:
    """Name images, each in a line with the reason why it is ``what``, such as left out."""
    for path, reason in images:
        errors.print(f"[yellow]{what}[/] {plain(in_one_line(f'{path}: {reason}'))}", soft_wrap=True, highlight=False)


def check_writable(option: str, path: Path) -> None:
    """Raise unless a file can be written at ``path``: what takes long is not done for a place that is none.

    Raises:
        ValueError: The message names the option and the path.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder. Name a file.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path} is a device or a pipe. Name a file.")
    path = Path(os.path.realpath(path))
    _check_place(option, path, path.absolute().parent)


def check_folder(option: str, path: Path) -> None:
    """Raise unless files can be written into the folder, which may have to be made.

    Raises:
        ValueError: The message names the option and the path.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} {path} must be a folder, and is a file.")
    _check_place(option, path, path.absolute())


def _check_place(option: str, path: Path, folder: Path) -> None:
    """Raise unless files can be written in a folder, or in the innermost one around it that is there."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"{option} {path}: nothing can be written in {place}.")


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
    os.environ[DEBUG] = "1" if traceback else ""
