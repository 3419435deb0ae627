"""One run in its folder: the settings that determine its numbers, and the files it writes."""

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otdml._files import write_text
from otdml.benchmarks.environment import environment, native_precision, unlike
from otdml.benchmarks.methods import Method
from otdml.benchmarks.presets import Preset
from otdml.benchmarks.validation import check, run_problems
from otdml.dml.config import MEANS

__all__ = ["WEIGHTS", "Run", "RunFolder", "check_settings", "checkpoint_file", "place_of", "plan"]

# Among hashes of the splits that a run reads, that of the file of weights it starts from.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Run:
    """One method, one seed, and every setting that determines the numbers.

    Attributes:
        method: Its name.
        seed: Of the network's initial values, the batches and the augmentation. Where ``training`` has ``crops``, these
            and their augmentation are the same for all seeds, and a seed draws with which of them each image begins.
        dataset: Key of the data set.
        data: Its arguments.
        augment: Arguments of the augmentation.
        model: Arguments of :class:`~otdml.dml.ProxyDML`, but for the number of classes.
        training: Arguments of :class:`~otdml.dml.TrainingConfig`.
        hold_out: Train without the validation classes and select the epoch on them, or train on all.
    """

    method: str
    seed: int
    dataset: str
    data: Mapping[str, Any]
    augment: Mapping[str, Any]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    hold_out: bool = False

    @classmethod
    def of(
        cls,
        preset: Preset,
        method: Method,
        seed: int,
        *,
        hold_out: bool = False,
        data: Mapping[str, Any] | None = None,
        **training: Any,
    ) -> "Run":
        """The run of a preset's method; ``data`` and ``training`` replace the preset's settings of those names.

        A ``precision`` of ``"auto"`` becomes this machine's, so that it is written down with the rest.
        """
        settings = {**preset.training, **{key: value for key, value in training.items() if value is not None}}
        if settings.get("precision") == "auto":
            settings["precision"] = native_precision()
        images = {**preset.data, **(data or {})}
        return cls(
            method.name, seed, preset.dataset, images, preset.augment, preset.arguments(method), settings, hold_out
        )

    @property
    def place(self) -> str:
        """Its folder, below that of its benchmark."""
        return place_of(vars(self))

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.method}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def fold(self) -> int | None:
        """The fold of the training classes that it is validated on, in the Reality Check protocol."""
        return _fold(self.data)

    def config(self) -> dict[str, Any]:
        """Every setting, as plain types."""
        return json.loads(json.dumps(vars(self), default=dict))

    @property
    def fingerprint(self) -> str:
        """A hash of all that determines the numbers."""
        return hashlib.sha256(json.dumps(_numbers(self.config()), sort_keys=True).encode()).hexdigest()[:16]


def place_of(run: Mapping[str, Any]) -> str:
    """The folder of a run with this configuration, below that of its benchmark.

    Example:
        >>> place_of({"method": "proxy-nca", "seed": 2, "data": {"fold": 0}})
        'proxy-nca/seed-2/fold-0'
    """
    fold = _fold(run.get("data", {}))
    return "/".join([run["method"], f"seed-{run['seed']}", *([] if fold is None else [f"fold-{fold}"])])


def _fold(data: Mapping[str, Any]) -> int | None:
    fold = data.get("fold")
    return fold if isinstance(fold, int) else None


@dataclass(frozen=True)
class RunFolder:
    """Files of a run: ``config.json``, ``curve.csv``, ``metrics.json``, ``exhibits.npz``, checkpoints."""

    path: Path

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").exists()

    def config(self) -> dict[str, Any]:
        return _read_json(self.path / "config.json")

    def metrics(self) -> dict[str, Any]:
        return _read_json(self.path / "metrics.json")

    def curve(self) -> list[dict[str, float]]:
        """One mapping per epoch; a column without a value in an epoch is left out there."""
        path = self.path / "curve.csv"
        if not path.exists():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
            return [{key: float(value) for key, value in row.items() if key and value} for row in rows]
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{path} is damaged ({error}). Delete its folder to repeat that run.") from error

    @property
    def begun(self) -> bool:
        """Whether an epoch has been trained here: a run that failed before leaves its folder to any other."""
        return self.finished or (self.path / "last.ckpt").exists()

    def claim(self, run: Run, inputs: Mapping[str, str] | None = None) -> None:
        """Make this the folder of ``run``: write its configuration, or check the one that is there.

        The hashes of what it reads are written down with it, for :meth:`check_inputs`.

        Where a run goes on with other versions or on another machine, that is written down beside the first ones.

        Raises:
            ValueError: The folder holds a run of another configuration; the message says what differs.
        """
        self.check(run)
        if self.begun and (self.path / "config.json").exists():
            if unlike(self.environments()[-1][1], now := environment()):
                content = self.config()
                content["continued"] = [*content.get("continued", []), {"epoch": len(self.curve()), "environment": now}]
                write_text(self.path / "config.json", json.dumps(content, indent=1))
            return
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": run.fingerprint, "run": run.config(), "environment": environment()}
        content |= {} if inputs is None else {"inputs": dict(inputs)}
        write_text(self.path / "config.json", json.dumps(content, indent=1))

    def environments(self) -> list[tuple[int, dict[str, str]]]:
        """Machines and versions of the run, each with the epoch from which it counts, from 0."""
        content = self.config()
        try:
            later = [(int(one["epoch"]), dict(one["environment"])) for one in content.get("continued", [])]
            return [(0, dict(content.get("environment", {}))), *later]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            path = self.path / "config.json"
            raise ValueError(f"{path} is damaged ({error}). Delete its folder to repeat that run.") from error

    def moves(self, now: Mapping[str, str] | None = None) -> list[str]:
        """Changes of versions and machine between the parts of a resumed run, a phrase each.

        Args:
            now: An environment that it is about to go on in.
        """
        if not (self.path / "config.json").exists():
            return []
        found = self.environments() + ([] if now is None else [(len(self.curve()), dict(now))])
        return [
            f"{name} {old} until epoch {epoch}, {new} from then on"
            for (_, before), (epoch, after) in itertools.pairwise(found)
            for name, (old, new) in unlike(before, after).items()
        ]

    def check(self, run: Run) -> None:
        """Raise unless the folder is free, or already that of ``run``."""
        if not (self.path / "config.json").exists():
            return
        there = self.config()
        if not isinstance(there, dict) or not {"fingerprint", "run"} <= there.keys() or not _is_run(there["run"]):
            raise ValueError(f"{self.path / 'config.json'} is of another program. Choose another folder with --out.")
        if self.begun and there["fingerprint"] != run.fingerprint:
            differences = list(_differences(_numbers(there["run"]), _numbers(run.config())))
            remedy = "Choose another folder with --out, or delete that one."
            if [said.partition(":")[0] for said in differences] == ["training.precision"]:
                # That of a preset is the machine's.
                begun = there["run"]["training"].get("precision", "32-true")
                remedy = f"Pass --set training.precision={begun} to go on as it was begun. Or c{remedy[1:]}"
            what = "; ".join(differences) or "an earlier format"
            raise ValueError(f"{self.path} holds a run of another configuration ({what}). {remedy}")

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """Raise where the run has read other images or weights than those with these hashes, by split and ``WEIGHTS``.

        Raises:
            ValueError: The message names the splits, or the weights.
        """
        if not self.begun or not (self.path / "config.json").exists():
            return
        content = self.config()
        # As earlier versions called it.
        there = content.get("inputs", content.get("images", {}))
        others = [name for name, found in inputs.items() if there.get(name, found) != found]
        remedy = "Choose another folder with --out, or delete that one."
        if splits := [name for name in others if name != WEIGHTS]:
            what = f"{' and '.join(splits)} {'hold' if len(splits) > 1 else 'holds'} other images or labels now"
            raise ValueError(f"{self.path} holds a run on another state of the data set: {what}. {remedy}")
        if others:
            raise ValueError(f"{self.path} holds a run from other weights: their file has changed since. {remedy}")

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics: from now on the run is finished, and is not repeated."""
        # Of an earlier attempt that failed.
        (self.path / "error.log").unlink(missing_ok=True)
        write_text(self.path / "metrics.json", json.dumps(metrics, indent=1))


def checkpoint_file(path: Path) -> Path:
    """The checkpoint at ``path``, or the last one in the run folder ``path``.

    Raises:
        FileNotFoundError: There is none; the message names some that are near.
    """
    file = path / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        near = _near(path.parent)
        hint = f" Near it: {', '.join(map(str, near))}." if near else ""
        raise FileNotFoundError(f"there is no checkpoint {file}.{hint}")
    return file


def _near(folder: Path, most: int = 5, looks: int = 500) -> list[Path]:
    """Some checkpoints below a folder; at most a few hundred names are read, as the folder may be a home directory."""
    found: list[Path] = []
    waiting = [folder]
    while waiting and looks > 0 and len(found) < most:
        with suppress(OSError), os.scandir(waiting.pop(0)) as entries:
            seen = sorted(itertools.islice(entries, looks), key=lambda entry: entry.name)
            looks -= len(seen)
            found += [Path(entry.path) for entry in seen if entry.name.endswith(".ckpt") and entry.is_file()]
            folders = (entry for entry in seen if not entry.name.startswith("."))
            waiting += [Path(entry.path) for entry in folders if entry.is_dir(follow_symlinks=False)]
    return found[:most]


def check_settings(*runs: Run) -> None:
    """Raise for a setting that nothing takes, or of another type or range, before any process is started.

    Raises:
        ValueError: The message names every such setting, and the one that may have been meant.
    """
    for run in runs:
        check(run.method, run_problems(run.config()))


def plan(out: Path, runs: Sequence[Run]) -> dict[Path, Run]:
    """The folder of each run, ``out`` and its place, after checking that none is another run's."""
    folders = {out / run.place: run for run in runs}
    for path, run in folders.items():
        RunFolder(path).check(run)
    return folders


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there. Delete its folder to repeat that run.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete its folder to repeat that run.") from error


def _is_run(content: Any) -> bool:
    """Whether the tables that are compared are there."""
    return isinstance(content, dict) and all(
        isinstance(content.get(name), dict) for name in ("training", "model", "data")
    )


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what only says how a machine gets to the numbers, such as the workers that load."""
    training = {name: value for name, value in config["training"].items() if name not in MEANS}
    return {**config, "training": training}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*there, *here}):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old} there, {new} here"
