"""What a call of another library beside ours consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any


def unindent(one: Any, *names: str) -> None:
    """Take the indentation of the file off the texts of these names."""
    for name in names:
        object.__setattr__(one, name, cleandoc(getattr(one, name)))


@dataclass(frozen=True)
class Row:
    """One call of another library beside ours.

    The last line of each text is an expression, and the two have the same value on the same inputs.

    Attributes:
        name: What is computed.
        theirs: Their call, as one writes it after the imports of the library.
        ours: Ours, likewise.
        note: The constants that differ, in reStructuredText.
        gradients: Inputs in which the two values have the same derivatives.
        digits: The largest difference that is allowed, relative to the largest entry.
        compared: ``"values"`` in the order they are in, ``"sets"`` of tuples in any order, or ``"members"``: what they
            draw is among what we have.
        since: The first version of the library that has it, if some that work with ours have not.
    """

    name: str
    theirs: str
    ours: str
    note: str
    gradients: Sequence[str] = ()
    digits: float = 1e-6
    compared: str = "values"
    since: str = ""

    def __post_init__(self) -> None:
        unindent(self, "theirs", "ours", "note")


@dataclass(frozen=True)
class Absent:
    """What a library has and this one has not.

    Attributes:
        names: Dotted names of it.
        instead: What to use, in reStructuredText.
        since: The first version of it that has them all, if some that work with ours have not.
    """

    names: Sequence[str]
    instead: str
    since: str = ""

    def __post_init__(self) -> None:
        unindent(self, "instead")


@dataclass(frozen=True)
class Peer:
    """A library, and what people call of it.

    Attributes:
        name: As it is written.
        package: As it is installed.
        setting: What its tensors are and what differs everywhere, in reStructuredText.
        theirs: Imports of their texts.
        ours: Imports of our texts.
        rows: Its calls.
        absent: What has no counterpart.
    """

    name: str
    package: str
    setting: str
    theirs: str
    ours: str
    rows: Sequence[Row]
    absent: Sequence[Absent]

    def __post_init__(self) -> None:
        unindent(self, "setting", "theirs", "ours")
