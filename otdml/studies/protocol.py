"""The one form of all studies: arms × seeds of a function that trains something and yields its scores."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otdml._arguments import argument_error, check_known

__all__ = ["Arm", "Reading", "Run", "Score", "Study", "readings"]


@dataclass(frozen=True)
class Reading:
    """Scores on the way; the last reading of a run holds its result.

    Attributes:
        step: Steps so far.
        of: Steps of the whole run.
        scores: By name, the same names in all readings of a study. Empty for a report of progress alone.
    """

    step: int
    of: int
    scores: Mapping[str, float]


def readings(
    steps: Iterator[int], of: int, count: int, scores: Callable[[], Mapping[str, float]], *, often: int = 20
) -> Iterator[Reading]:
    """Readings of a training: its scores so many times and at its end, and progress in between.

    Args:
        steps: The number of steps so far, after each.
        of: Steps of the whole training.
        count: How many times it is scored.
        scores: What it has reached.
        often: Steps from one report of progress to the next.

    Example:
        >>> [(one.step, len(one.scores)) for one in readings(iter(range(1, 6)), 5, 2, lambda: {"answer": 1.0}, often=3)]
        [(2, 1), (3, 0), (4, 1), (5, 1)]
    """
    every = max(1, of // count)
    for step in steps:
        if step % every == 0 or step == of:
            yield Reading(step, of, scores())
        elif step % often == 0:
            yield Reading(step, of, {})


# What a study runs for an arm's settings, a seed, and the path of its data set (None where it draws its own).
Run = Callable[[Mapping[str, Any], int, Path | None], Iterator[Reading]]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: As in tables. A folder has this name too, so it has no slash and is not a dot or two.
        settings: Every setting that the run of this arm reads, numbers and words.
        against: The arms it is compared with, seed by seed; none for a control.
    """

    name: str
    settings: Mapping[str, Any]
    against: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder of its cells."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Score:
    """A number that a run ends with.

    Attributes:
        name: Its key in a reading.
        title: As in tables.
        better: 1 if more is better, -1 if less is, 0 if it only describes.
        digits: After the point.
    """

    name: str
    title: str
    better: int = 1
    digits: int = 3


@dataclass(frozen=True)
class Study:
    """A question, and the protocol that answers it.

    Attributes:
        name: Of the command and the files.
        question: One sentence that ends in a question mark.
        method: What is trained on what and how it is scored, in a sentence or two.
        arms: What is compared.
        seeds: Of each arm. Arms of one seed must differ in their settings alone: same data, same initial network.
        scores: What the table shows; the first one is the answer.
        run: Trains one arm with one seed.
        needs: What ``--data`` must be the path of; None if the study draws its own data.
        data_hash: Hash of the data set at that path (None where none is needed), by which cells of other data are told
            apart. None if nothing but the settings and the seed decides what the study is trained on.
    """

    name: str
    question: str
    method: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    scores: tuple[Score, ...]
    run: Run
    needs: str | None = None
    data_hash: Callable[[Path | None], str] | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        folders = {arm.folder.casefold() for arm in self.arms}
        if len(folders) < len(names):
            raise argument_error("arms", "have different names, not in spaces and capitals alone", names)
        if any("/" in name or name.strip(". ") == "" for name in names):
            raise argument_error("arms", "have names that folders can have, without a slash", names)
        if len(set(self.seeds)) < len(self.seeds):
            raise argument_error("seeds", "be different ones", self.seeds)
        if not (self.arms and self.seeds and self.scores):
            raise argument_error("arms", "be one or more, as the seeds and the scores", names)
        for arm in self.arms:
            for control in arm.against:
                check_known("control arm", control, [name for name in names if name != arm.name])

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return {arm.name: arm for arm in self.arms}[check_known("arm", name, [arm.name for arm in self.arms])]

    def data(self, path: Path | None) -> Path | None:
        """The path of the data set, after a look whether it is there; None where none is needed.

        Raises:
            ValueError: A data set is needed and not given, or given and not needed.
            FileNotFoundError: There is nothing at the path.
        """
        if self.needs is None:
            if path is not None:
                raise ValueError(f"the study {self.name} draws its own data. Leave --data out.")
            return None
        if path is None:
            raise ValueError(f"the study {self.name} needs --data PATH: {self.needs}.")
        if not path.exists():
            raise FileNotFoundError(f"there is nothing at {path}. The study {self.name} needs {self.needs}.")
        return path
