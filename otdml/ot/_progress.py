"""Progress of long solves, shown on a terminal."""

import sys
import time
from contextvars import ContextVar
from types import TracebackType

__all__ = ["Progress", "pulse"]

# Seconds after which a solve is long.
LONG = 3.0

# The solve that runs in this context, for the blocks of a long iteration to report to.
_CURRENT: "ContextVar[Progress | None]" = ContextVar("progress", default=None)


class Progress:
    """One line on the standard error stream, if that is a terminal and the solve is long; gone when it ends."""

    def __init__(self, tol: float, max_iter: int) -> None:
        self.tol, self.max_iter = tol, max_iter
        self.began, self.shown = time.monotonic(), False
        self.iteration, self.error = 0, float("inf")

    def __enter__(self) -> "Progress":
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._token)
        if self.shown:
            self._write("")

    def show(self, iteration: int, error: float) -> None:
        """Say how far the solve has come."""
        self.iteration, self.error = iteration, error
        self.pulse(0.0)

    def pulse(self, done: float) -> None:
        """Say which share of the next iteration's present pass over the costs is done."""
        if time.monotonic() - self.began > LONG and sys.stderr is not None and sys.stderr.isatty():
            self.shown = True
            left = f"marginal error {self.error:.1e}, to be {self.tol:.0e}" if self.iteration else "first pass"
            share = f" ({done:.0%} of a pass)" if 0 < done < 1 else ""
            self._write(f"Sinkhorn: iteration {self.iteration} of at most {self.max_iter}{share}, {left}")

    def _write(self, line: str) -> None:
        # Return to the first column, and clear what the line before has left.
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def pulse(done: float) -> None:
    """Tell the solve that runs, if any, which share of a pass over the costs is done."""
    if done < 1 and (current := _CURRENT.get()) is not None:
        current.pulse(done)
