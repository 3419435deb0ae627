"""Progress of long solves, shown on a terminal."""

import sys
import time
from types import TracebackType

__all__ = ["Progress"]

# Seconds after which a solve is long.
LONG = 3.0


class Progress:
    """One line on the standard error stream, if that is a terminal and the solve is long; gone when it ends."""

    def __init__(self, tol: float, max_iter: int) -> None:
        self.tol, self.max_iter = tol, max_iter
        self.began, self.shown = time.monotonic(), False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self._write("")

    def show(self, iteration: int, error: float) -> None:
        """Say how far the solve has come."""
        if time.monotonic() - self.began > LONG and sys.stderr is not None and sys.stderr.isatty():
            self.shown = True
            left = f"marginal error {error:.1e}, to be {self.tol:.0e}"
            self._write(f"Sinkhorn: iteration {iteration} of at most {self.max_iter}, {left}")

    def _write(self, line: str) -> None:
        # Return to the first column, and clear what the line before has left.
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
