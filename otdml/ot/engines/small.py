"""Sinkhorn's iterations with a small kernel, by NumPy, whose calls take a third of torch's."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from otdml.ot.engines.base import DRIFT

__all__ = ["FIRST", "SMALL", "Array", "ArrayIterations", "NumPyArray", "Scaling", "scaled", "small_iterations"]

NumPyArray: TypeAlias = NDArray[Any]
Array = TypeVar("Array", Tensor, NumPyArray)
# c and t of the scalings c s^-t that follow from sums s with a kernel; None for a t of one.
Scaling = tuple[Array, Array | float | None]

# Entries of a kernel up to which NumPy is quicker on a CPU.
SMALL = 2**16
# Iterations between two looks at the error; and those that are made anyway, as derivatives gain by more of them than
# the marginals need. More are made where they will do and each look finds half of the error of the last: where it falls
# slowly, what is within the tolerance may be far from the solution if it is not extrapolated.
LOOK, FIRST = 4, 12


def scaled(
    kernel: Array, transposed: Array, rows: Scaling[Array], columns: Scaling[Array], v: Array
) -> Iterator[tuple[Array, Array, Array]]:
    """For each iteration the column scalings, and the kernel's products with these and with the row scalings."""
    (a, power), (b, other_power) = rows, columns
    while True:
        by_row = v @ transposed
        sums = (a / by_row if power is None else a * by_row**-power) @ kernel
        yield v, by_row, sums
        v = b / sums if other_power is None else b * sums**-other_power


@dataclass(frozen=True)
class ArrayIterations:
    """Some iterations.

    Attributes:
        by_row: The kernel's sums over the columns in the last of them, shape (n,).
        by_column: Those over the rows in each, shape (times, m).
        errors: The L1 distance of the plan's column sums to the weights before each, relative to the mass, shape
            (times,); None for a penalty on the columns.
        settled: Whether the last of these is within the tolerance, and the kernel accurate.
    """

    by_row: NumPyArray
    by_column: NumPyArray
    errors: NumPyArray | None = None
    settled: bool = False


def small_iterations(
    kernel: NumPyArray,
    rows: Scaling[NumPyArray],
    columns: Scaling[NumPyArray],
    weights: NumPyArray,
    start: NumPyArray,
    *,
    times: int,
    tol: float,
    enough: float = 0.0,
) -> ArrayIterations:
    """At most ``times`` iterations, and fewer where the error is within ``tol`` or will not be.

    Args:
        kernel: Shape (n, m).
        rows: Row scalings from the sums over columns.
        columns: Column scalings from the sums over rows.
        weights: Column weights, shape (m,).
        start: Column scalings to start from, shape (m,).
        times: Most iterations.
        tol: Relative L1 error of the column marginal.
        enough: One within which fewer than the first iterations will do.
    """
    mass, before, after, error, exact = weights.sum(), [], [], math.inf, columns[1] is None
    made = itertools.islice(scaled(kernel, kernel.T, rows, columns, start), times if exact else min(times, FIRST))
    for v, by_row, sums in made:  # noqa: B007
        before.append(v)
        after.append(sums)
        if exact and len(after) % LOOK == 0:
            last, error = error, np.abs(v * sums - weights).sum() / mass
            rate, looks = error / last, (times - len(after)) // LOOK
            if error <= enough:
                break
            if len(after) >= FIRST and (error <= tol or not (rate <= 0.5 and error * rate**looks <= tol)):
                break
    by_column = np.array(after)
    if not exact:
        return ArrayIterations(by_row, by_column)
    errors = np.abs(np.array(before) * by_column - weights).sum(-1) / mass
    furthest = max(np.abs(np.log(by_row)).max(), np.abs(np.log(by_column[-1])).max())
    return ArrayIterations(by_row, by_column, errors, bool(errors[-1] <= tol and furthest <= DRIFT))
