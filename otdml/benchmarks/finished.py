"""Finished runs of a benchmark, read from their folders."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from otdml.benchmarks.methods import ARMS, parts
from otdml.benchmarks.runs import RunFolder, place_of
from otdml.dml.losses import LOSSES

__all__ = ["Finished", "collect", "finished_folders"]


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        method: Its name.
        seed: Its seed.
        last: Metrics on the unseen classes after the last epoch.
        best: Those of the epoch selected on held-out training classes, where classes were held out.
        best_epoch: That epoch, counted from 0.
        seconds: Training time.
        folder: Where it lies.
        raw_pixels: Metrics of the images themselves, without a network, where they are known.
        left_out: By split the images that could not be read, with the reason; None where the run does not say.
    """

    method: str
    seed: int
    last: Mapping[str, float]
    best: Mapping[str, float] | None
    best_epoch: int | None
    seconds: float
    folder: RunFolder
    raw_pixels: Mapping[str, float] | None = None
    left_out: Mapping[str, Mapping[str, str]] | None = None

    def metrics(self, checkpoint: str) -> Mapping[str, float]:
        """Metrics of the checkpoint ``"last"`` or ``"best"``; empty if there is none."""
        return (self.last if checkpoint == "last" else self.best) or {}


def collect(out: Path) -> list[Finished]:
    """The finished runs under ``out``, in the order of the methods, then of the seeds.

    A folder that is not at the place of its run, as a copy of one, is passed over with a warning.
    """
    runs = []
    for folder, place in finished_folders(out).items():
        if folder.path == out / place:
            runs.append(_finished(folder))
        else:
            warnings.warn(f"Passed over {folder.path}: its run belongs into {out / place}.", stacklevel=2)
    return sorted(runs, key=lambda run: (_rank(run.method), run.seed))


def finished_folders(out: Path) -> dict[RunFolder, str]:
    """The folders of finished runs under ``out``, each with the place that its run has, which is its own or not.

    Raises:
        ValueError: A folder does not say which run it is of; the message names it.
    """
    folders = [RunFolder(path.parent) for path in sorted(out.glob("*/seed-*/metrics.json"))]
    return {folder: _place(folder) for folder in folders}


def _place(folder: RunFolder) -> str:
    config = folder.config()
    try:
        return place_of(config["run"])
    except (LookupError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: RunFolder, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {error}"
    remedy = "Delete that folder to repeat the run."
    return ValueError(f"{folder.path}: config.json or metrics.json is damaged ({reason}). {remedy}")


def _finished(folder: RunFolder) -> Finished:
    config, found = folder.config(), folder.metrics()
    try:
        run = config["run"]
        finished = Finished(
            run["method"],
            run["seed"],
            {name: float(value) for name, value in found["last"].items()},
            found["best"] and {name: float(value) for name, value in found["best"].items()},
            found["best_epoch"],
            float(found["seconds"]),
            folder,
            found.get("raw_pixels"),
            found.get("left_out"),
        )
        _rank(finished.method)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return finished


def _rank(method: str) -> tuple[int, int, str]:
    loss, arm, dispersion = parts(method)
    return [*LOSSES, loss].index(loss), [*ARMS, arm].index(arm), dispersion
