"""Numbers of a command line with a range, and the messages about those outside of it."""

import math
from collections.abc import Callable
from typing import TypeVar

import typer

__all__ = ["between"]

Number = TypeVar("Number", int, float)


def between(least: int, most: float = math.inf) -> Callable[[Number | None], Number | None]:
    """A callback of an option that lets a number from ``least`` to ``most`` pass, and None.

    The parsers of options say it in other words from release to release.

    Example:
        >>> between(1, 10)(3)
        3
    """
    must = f"at least {least}" if most == math.inf else f"from {least} to {most}"

    def check(value: Number | None) -> Number | None:
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"must be {must}, got {value}.")
        return value

    return check
