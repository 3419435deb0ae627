"""The cells of a study: one arm with one seed each, kept as one file each."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otdml._arguments import check_known
from otdml._files import FolderLockedError, folder_lock, write_json
from otdml.benchmarks.environment import environment
from otdml.studies.finished import Finished
from otdml.studies.protocol import Arm, Reading, Study

__all__ = ["Cell", "Progress", "cells", "finished", "run_cells"]


@dataclass(frozen=True)
class Cell:
    """One arm with one seed, and the file of its result.

    Attributes:
        arm: The arm.
        seed: The seed.
        path: The file, which is there if the cell is finished.
        scores: Names of scores that the result must have.
    """

    arm: Arm
    seed: int
    path: Path
    scores: tuple[str, ...] = ()

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
            found = Finished.of(content)
            settings = content["settings"]
            if not isinstance(settings, dict):
                raise ValueError(f"settings is {settings!r}")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path} is damaged ({error}). Delete it to repeat that cell.") from error
        if (found.arm, found.seed) != (self.arm.name, self.seed):
            raise ValueError(f"{self.path} is of {found.arm}, seed {found.seed}. Delete it to repeat that cell.")
        if missing := [name for name in self.scores if name not in found.scores]:
            raise ValueError(f"{self.path} lacks {', '.join(missing)}. Delete it to repeat that cell.")
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

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether the cell is to be done here: it is not finished, and no other process is working on it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(folder_lock(self.path.parent))
            except FolderLockedError:
                yield False
                return
            yield self.read() is None

    def keep(self, found: Finished) -> None:
        """Keep a result: from now on the cell is finished, and is not repeated."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, vars(found) | {"settings": dict(self.arm.settings)})


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
        seeds: Some of its seeds; all if empty.

    Raises:
        ValueError: An arm or a seed is not the study's; the message has those that are.
    """
    chosen = [study.arm(name) for name in dict.fromkeys(arms)] or study.arms
    for seed in seeds:
        check_known(f"seed of {study.name}", str(seed), [str(one) for one in study.seeds])
    scores = tuple(score.name for score in study.scores)
    return [
        Cell(arm, seed, folder / arm.folder / f"seed-{seed}" / "result.json", scores)
        for seed in dict.fromkeys(seeds) or study.seeds
        for arm in chosen
    ]


def finished(wanted: Sequence[Cell], data: str | None = None) -> list[Finished]:
    """The results that are there.

    Args:
        wanted: Where they are looked for.
        data: Hash of the data that they must be of, as far as they say; if None, that of the first one that does.

    Raises:
        ValueError: One is damaged, of other settings, or of other data.
    """
    there = [(cell, found) for cell in wanted if (found := cell.read()) is not None]
    data = data or next((found.data for _, found in there if found.data), None)
    for cell, found in there:
        if found.data not in (None, data):
            raise ValueError(
                f"{cell.path} is of another data set than the one given or other cells of the study. Choose another"
                " folder with --out, or delete it."
            )
    return [found for _, found in there]


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
    found = study.data_hash(data) if study.data_hash else None
    finished(wanted, found)  # Raises for cells of other settings or data, before hours of work.
    for cell in wanted:
        with cell.claimed() as mine:
            if mine:
                yield from _run(study, cell, data, found)


def _run(study: Study, cell: Cell, data: Path | None, data_hash: str | None) -> Iterator[Progress]:
    started, worked = time.perf_counter(), time.process_time()
    yield Progress(cell, None)
    curve: list[Reading] = []
    for reading in study.run(cell.arm.settings, cell.seed, data):
        curve += [reading] if reading.scores else []
        yield Progress(cell, reading)
    if not curve:
        raise ValueError(f"the study {study.name} yielded no scores for {cell.title}.")
    rows, last = [{"step": one.step, **one.scores} for one in curve], dict(curve[-1].scores)
    seconds, processor_seconds = time.perf_counter() - started, time.process_time() - worked
    result = Finished(cell.arm.name, cell.seed, last, rows, seconds, processor_seconds, environment(), data_hash)
    cell.keep(result)
    yield Progress(cell, curve[-1], result)
