"""The command line. Heavy imports wait until a command needs them, so that help is quick."""

import os
import sys

from otdml.cli import experiments, images, serving, studies, tools
from otdml.cli.application import DEBUG, FAILURES, app, errors, plain

__all__ = ["app", "experiments", "images", "main", "serving", "studies", "tools"]


def main() -> None:
    """Run the command line; a failure is one message and exit code 1, a wrong argument exit code 2."""
    # The processes of loaders, grids and trainers import nothing from the folder that they are started in.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        app()
    except FAILURES as error:
        if os.environ.get(DEBUG) == "1":
            raise
        errors.print(f"[bold red]Error:[/] {plain(str(error))}", highlight=False)
        errors.print("[dim]`otdml --traceback ...` shows where.[/]", highlight=False)
        sys.exit(1)
