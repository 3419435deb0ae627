"""Tables in a terminal that is narrower than they are."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["fitting"]

Column = TypeVar("Column")


def fitting(console: Console, columns: Sequence[Column], table: Callable[[Sequence[Column]], Table]) -> Iterator[Table]:
    """Columns in as many tables, to be shown below one another, as it takes for no figure to be cut off or folded.

    Args:
        console: Where they are shown.
        columns: What the columns are of.
        table: A table of some of them, with the names of the rows.
    """
    while columns:
        tables = [table(columns[: n + 1]) for n in range(len(columns))]
        count = max((n for n, one in enumerate(tables, 1) if _width(console, one) <= console.width), default=1)
        yield tables[count - 1]
        columns = columns[count:]


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum
