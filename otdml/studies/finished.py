"""What a finished cell of a study holds, and how it is read from a file that may be damaged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

__all__ = ["Finished"]


@dataclass(frozen=True)
class Finished:
    """What a finished cell holds.

    Attributes:
        arm: Name of the arm.
        seed: The seed.
        scores: The result.
        curve: The scores on the way, each with its ``step``; the last ones are the result.
        seconds: From beginning to end.
        processor_seconds: Time that processors worked on it, all threads together, which other programs on the machine
            do not lengthen.
        environment: Where it was run.
        data: Hash of the data set it was trained on; None if it drew its own, or if that is not known.
    """

    arm: str
    seed: int
    scores: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    seconds: float
    processor_seconds: float
    environment: Mapping[str, str]
    data: str | None = None

    @classmethod
    def of(cls, content: Any) -> "Finished":
        """The cell that JSON describes.

        Raises:
            ValueError: It describes none.

        Example:
            >>> Finished.of({"arm": "none", "seed": 0})
            Traceback (most recent call last):
            ValueError: no scores
        """
        content = _mapping("a cell", content)
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in needed if name not in content]:
            raise ValueError(f"no {missing[0]}")
        if not isinstance(content["arm"], str) or not _is_whole(content["seed"]):
            raise ValueError("no name of an arm, or no seed")
        if not isinstance(content["curve"], list):
            raise ValueError("no curve")
        if not isinstance(content.get("data"), str | None):
            raise ValueError(f"data is {content['data']!r}")
        return cls(
            content["arm"],
            content["seed"],
            _numbers("scores", content["scores"]),
            [_numbers("a curve", row) for row in content["curve"]],
            _number("seconds", content["seconds"]),
            _number("processor_seconds", content["processor_seconds"]),
            _mapping("environment", content["environment"]),
            content.get("data"),
        )


def _mapping(name: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{name} is {content!r}")
    return content


def _numbers(name: str, content: Any) -> dict[str, float]:
    if not _mapping(name, content):
        raise ValueError(f"{name} without a number")
    return {key: _number(key, value) for key, value in content.items()}


def _number(name: str, value: Any) -> float:
    """A number; NaN for None, as which it was written."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
