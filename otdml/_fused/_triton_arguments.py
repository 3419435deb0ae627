"""Arguments of the Triton kernels, in groups; the compiler flattens their fields."""

from typing import Any, NamedTuple

__all__ = ["Clouds", "Factors", "Output", "Parts", "Shape"]


class Clouds(NamedTuple):
    """Two clouds of points, the factor of their distances, and the integers that bar pairs.

    Attributes:
        x: Shape (batch, n, d), or feature by feature (batch, d, n).
        y: Likewise with m points.
        factor: Of a distance or an angle, shape (batch,), and then that of one of the batch.
        barred_x: Shape (1, n) or (3, n).
        barred_y: Shape (1, m) or (3, m).
        n: Rows.
        m: Columns.
        d: Features.
        stride_x: From one of the batch to the next.
        stride_y: Likewise.
    """

    x: Any
    y: Any
    factor: Any
    barred_x: Any
    barred_y: Any
    n: Any
    m: Any
    d: Any
    stride_x: Any
    stride_y: Any


class Parts(NamedTuple):
    """How the columns are split: the size of the batch, the number of parts, and the columns of one."""

    batch: Any
    parts: Any
    span: Any


class Factors(NamedTuple):
    """The right factor of a plan product.

    Attributes:
        v: Shape (batch, m, e).
        last: One more column, shape (batch, m).
        left: Factors of the rows in the weights of pairs, shape (batch, n, r).
        right: Those of the columns, shape (batch, m, r).
        e: Columns of ``v``.
        r: Features of the weights.
    """

    v: Any
    last: Any
    left: Any
    right: Any
    e: Any
    r: Any


class Output(NamedTuple):
    """The product with the columns, shape (parts, batch, n, e), and with the last one, shape (parts, batch, n)."""

    columns: Any
    last: Any


class Shape(NamedTuple):
    """Compile-time constants of a kernel.

    Attributes:
        FORM: Of the cost.
        FEW: Number of features where the loop over them is written out, or zero.
        WIDE: Whether a tile is a matrix product.
        BARRED: Vectors of integers that bar pairs: 0, 1, or 2 for three of them.
        PRECISION: Of matrix products.
        SINGLE: Whether one of them takes all features.
        BLOCK_N: Rows of a tile.
        BLOCK_M: Columns.
        BLOCK_D: Features of one matrix product.
        SLOPE: Whether the plan is multiplied by the slope of the cost.
        EXCESS: Whether one is subtracted from it.
        WEIGHTED: Whether pairs have weights.
        BLOCK_E: Columns of a factor that a program takes; with 0 there is only the last.
    """

    FORM: int
    FEW: int
    WIDE: bool
    BARRED: int
    PRECISION: str
    SINGLE: bool
    BLOCK_N: int
    BLOCK_M: int
    BLOCK_D: int
    SLOPE: bool = False
    EXCESS: bool = False
    WEIGHTED: bool = False
    BLOCK_E: int = 0
