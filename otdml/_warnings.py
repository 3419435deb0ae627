"""Warnings that point at the caller's line."""

import sys
import warnings

__all__ = ["SolverWarning", "warn_caller"]


class SolverWarning(RuntimeWarning):
    """A result is less exact than it was asked for."""


def warn_caller(message: str) -> None:
    """A :class:`SolverWarning` at the line that called the library, by whatever way through its modules."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("otdml", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SolverWarning, stacklevel=level)
