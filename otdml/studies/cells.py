"""The cells of a study: one arm with one seed each, kept as one file each."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otdml._files import FolderLockedError, folder_lock, write_text
from otdml.benchmarks.environment import environment
from otdml.studies.protocol import Arm, Reading, Study

__all__ = ["Cell", "Finished", "Progress", "cells", "finished", "run_cells"]


@dataclass(frozen=True)
class Finished:
    """What a finished cell holds.

    Attributes:
        arm: Name of the arm.
        seed: The seed.
        scores: The result.
        curve: The scores on the way, each with its ``step``; the last ones are the result.
        seconds: From beginning to end.
        processor_seconds: Time that processors worked on it, which other programs on the machine do not lengthen.
        environment: Where it was run.
    """

    arm: str
    seed: int
    scores: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    seconds: float
    processor_seconds: float
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One arm with one seed, and the file of its result.

    Attributes:
        arm: The arm.
        seed: The seed.
        path: The file, which is there if the cell is finished.
    """

    arm: Arm
    seed: int
    path: Path

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.arm.name}, seed {self.seed}"

    def read(self) -> Finished | None:
        """The result; None if the cell is not finished.

        Raises:
            ValueError: The file is damaged, or of other settings; the message says which.
        """
        if not self.path.exists():
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            settings = content.pop("settings")
            found = Finished(**content)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged ({error}). Delete it to repeat that cell.") from error
        differences = "; ".join(self.differences(settings))
        if differences:
            raise ValueError(
                f"{self.path} is of other settings ({differences}). Choose another folder with --out, or delete it."
            )
        return found

    def differences(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Where settings, as they are read from a file, are not those of the arm, in words."""
        here = json.loads(json.dumps(dict(self.arm.settings)))
        for key in sorted({*settings, *here}):
            if settings.get(key) != here.get(key):
                yield f"{key}: {settings.get(key)} there, {here.get(key)} here"

    def write(self, curve: Sequence[Reading], seconds: float, processor_seconds: float) -> Finished:
        """Keep the result of a run that has ended here."""
        rows = [{"step": one.step, **one.scores} for one in curve]
        last = dict(curve[-1].scores)
        found = Finished(self.arm.name, self.seed, last, rows, seconds, processor_seconds, environment())
        self.keep(found)
        return found

    def keep(self, found: Finished) -> None:
        """Keep a result: from now on the cell is finished, and is not repeated."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(vars(found) | {"settings": dict(self.arm.settings)}, indent=1))


@dataclass(frozen=True)
class Progress:
    """Where a cell stands: its last reading, None before the first one, and its result when it is finished."""

    cell: Cell
    reading: Reading | None
    result: Finished | None = None


def cells(study: Study, folder: Path, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
    """The cells of a study: every arm with the first seed, then with the second, so that a part is a fair part.

    Args:
        study: The study.
        folder: Of its files.
        arms: Names of the arms to take; all if empty.
        seeds: Seeds to take instead of the study's.
    """
    chosen = [study.arm(name) for name in arms] or study.arms
    places = {arm.name: folder / arm.name.replace(" ", "-") for arm in chosen}
    return [
        Cell(arm, seed, places[arm.name] / f"seed-{seed}" / "result.json")
        for seed in seeds or study.seeds
        for arm in chosen
    ]


def finished(wanted: Sequence[Cell]) -> list[Finished]:
    """The results that are there."""
    return [found for cell in wanted if (found := cell.read()) is not None]


def run_cells(study: Study, wanted: Sequence[Cell], data: Path | None = None) -> Iterator[Progress]:
    """Run the cells that are not finished, one after the other.

    A cell that another command is running is left to it.

    Args:
        study: What they are cells of.
        wanted: Which.
        data: Path of the data set.

    Yields:
        Progress at the beginning of a cell, after each reading, and with the result at its end.
    """
    finished(wanted)  # Raises for cells of other settings, before hours of work.
    for cell in wanted:
        cell.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with folder_lock(cell.path.parent):
                if cell.read() is None:
                    yield from _run(study, cell, data)
        except FolderLockedError:
            continue


def _run(study: Study, cell: Cell, data: Path | None) -> Iterator[Progress]:
    started, worked = time.perf_counter(), time.process_time()
    yield Progress(cell, None)
    curve: list[Reading] = []
    for reading in study.run(cell.arm.settings, cell.seed, data):
        curve += [reading] if reading.scores else []
        yield Progress(cell, reading)
    if not curve:
        raise ValueError(f"the study {study.name} yielded no scores for {cell.title}.")
    yield Progress(cell, curve[-1], cell.write(curve, time.perf_counter() - started, time.process_time() - worked))
