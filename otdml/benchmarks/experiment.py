"""One run from its configuration to its metrics, and a grid of runs side by side."""

import inspect
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from otdml._checks import argument_error, check_known
from otdml._files import folder_lock, write_text
from otdml.benchmarks.environment import cores
from otdml.benchmarks.exhibits import exhibits, save_exhibits, thumbnails
from otdml.benchmarks.finished import finished_folders
from otdml.benchmarks.runs import WEIGHTS, Run, RunFolder, plan
from otdml.data.augment import Distort
from otdml.data.registry import named_dataset
from otdml.distributed import from_first, is_first
from otdml.dml.config import TrainingConfig
from otdml.dml.fingerprint import file_hash, fingerprint
from otdml.dml.protocols import ImagesInMemory, queries
from otdml.dml.retrieval import retrieval_metrics

if TYPE_CHECKING:
    from otdml.dml import FitResult

__all__ = [
    "RunState",
    "check_data",
    "execute",
    "load_split",
    "run_grid",
    "takes",
]


@dataclass(frozen=True)
class RunState:
    """State of a run of a grid: ``"waiting"``, ``"running"``, ``"finished"`` or ``"failed"`` with a message."""

    run: Run
    folder: RunFolder
    status: str
    message: str = ""

    @property
    def latest(self) -> dict[str, float]:
        """The last row of the learning curve, empty before the first epoch."""
        return (self.folder.curve() or [{}])[-1]


def check_data(run: Run, root: str | None, devices: int | None = None) -> None:
    """Raise where the data set is not there or not whole, once for all runs of a grid and before any of them.

    Sets that live in memory are only looked for: to read them twice would take as long as a short run.

    Raises:
        FileNotFoundError: It is not there; the message says where it is published.
        ValueError: It is not as published, or has fewer classes than a batch, or a class fewer images; or ``devices``
            processes cannot share a batch of it.
    """
    if named_dataset(run.dataset).ink is None or root is None or not Path(root).is_dir():
        options = {name: value for name, value in run.data.items() if name != "on_corrupt"}
        split = load_split(run.dataset, root, "train" if run.hold_out else "trainval", options)
        _check_batch(run, split, devices)


def _check_batch(run: Run, split: Any, devices: int | None) -> None:
    """Raise where a batch has more classes than there are, or more images of each than the smallest has."""
    wanted = run.training.get("classes_per_batch") or 0
    if wanted > len(split.classes):
        remedy = f"Pass --set training.classes_per_batch={len(split.classes)}, or less."
        raise argument_error("classes_per_batch", f"be at most {len(split.classes)}, the classes", wanted, remedy)
    counts, each = split.labels.bincount(minlength=len(split.classes)), run.training.get("samples_per_class", 4)
    if each > int(counts.min()):
        smallest, few = split.classes[int(counts.argmin())], int((counts < each).sum())
        remedy = f"Pass --set training.samples_per_class={int(counts.min())}"
        remedy += f", or leave such classes out with --set data.least={each}." if takes(run.dataset, "least") else "."
        must = f"be at most {int(counts.min())}, the images of {smallest}"
        got = f"{each}, and {few} of {len(counts)} classes have fewer"
        raise argument_error("samples_per_class", must, got, remedy)
    batch = (wanted or min(32, len(split.classes))) * each
    if devices and batch % devices:
        raise argument_error("devices", f"share a batch of {batch} images evenly", devices)


def takes(dataset: str, option: str) -> bool:
    """Whether the data set of that name has an argument of that name."""
    return option in inspect.signature(named_dataset(dataset).kind).parameters


def load_split(dataset: str, root: str | None, split: str, options: Mapping[str, Any]) -> Any:
    """A split of the data set of that name."""
    kind = named_dataset(dataset).kind
    for name in options:
        check_known(f"option of {dataset}", name, list(inspect.signature(kind).parameters)[2:])
    return kind(root, split=split, **options)


def execute(
    run: Run, path: Path, root: str | None = None, *, progress: bool = False, devices: int | None = None
) -> None:
    """Train, evaluate and leave everything a report needs in the folder ``path``; a finished run is not repeated.

    A run that was stopped goes on from its last checkpoint and ends with the numbers it would have had. With
    ``devices``, or under ``torchrun``, several processes share it, and the first one writes.

    Raises:
        ValueError: The folder holds a run of another configuration.
    """
    from otdml.dml import ProxyDML
    from otdml.dml.training import fit

    folder = RunFolder(path)
    folder.check(run)
    splits, inputs = _inputs(run, root)
    folder.check_inputs(inputs)
    if folder.finished:
        return
    names = list(splits)
    train, test = splits[names[0]], splits["test"]
    module = ProxyDML(num_classes=len(train.classes), seed=run.seed, **run.model)
    config = _budget(run, devices)
    path.mkdir(parents=True, exist_ok=True)
    # Locked until the metrics are written, not only during training.
    with folder_lock(path) if is_first() else nullcontext():
        if is_first():
            # After data and settings have been checked.
            folder.claim(run, inputs)
        found = fit(
            module,
            train,
            val=splits.get("val"),
            test=test,
            folder=path,
            config=config,
            augment=_augmentation(run),
            progress=progress,
        )
        from_first(lambda: _finish(folder, splits, found, config.ks))


def _inputs(run: Run, root: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The splits that a run needs by name, and the hashes of all that it reads: these, and weights to start from."""
    names = ("train", "val", "test") if run.hold_out else ("trainval", "test")
    splits = {name: load_split(run.dataset, root, name, run.data) for name in names}
    hashes = {name: fingerprint(split) for name, split in splits.items()}
    weights = _weights(run.model)
    return splits, hashes | ({WEIGHTS: file_hash(weights)} if weights else {})


def _weights(model: Mapping[str, Any]) -> Path | None:
    """The file of weights that a network starts from; those of an installed package are told by its version."""
    path = Path(model.get("backbone_options", {}).get("weights") or "")
    return path if path.is_file() else None


def _check_finished(out: Path, folders: Mapping[Path, Run], root: str | None) -> None:
    """Raise where a run that is there was made with other images or weights, also one that was not asked for now.

    All finished runs of a folder stand in one table. Sets are read once for all runs that share them.
    """
    # A seed of the Reality Check protocol has the test classes of its folds.
    asked = {_inputs_key(run.config(), whole=whole): run for run in folders.values() for whole in (True, False)}
    found = {path: _inputs_key(run.config()) for path, run in folders.items() if RunFolder(path).begun}
    found |= {folder.path: _inputs_key(folder.config()["run"]) for folder in _others(out, folders)}
    seen: dict[str, dict[str, str]] = {}
    for path, key in found.items():
        if key in asked:
            if key not in seen:
                seen[key] = _inputs(asked[key], root)[1]
            RunFolder(path).check_inputs(seen[key])


def _others(out: Path, folders: Mapping[Path, Run]) -> list[RunFolder]:
    """Folders of finished runs that stand in the table with those of ``folders``, and of their folds."""
    there = [folder.path for folder, place in finished_folders(out).items() if folder.path == out / place]
    folds = [path.parent for whole in there for path in sorted(whole.glob("fold-*/metrics.json"))]
    return [RunFolder(path) for path in [*there, *folds] if path not in folders]


def _inputs_key(run: Mapping[str, Any], *, whole: bool = False) -> str:
    """A text that runs share which read the same splits and weights; that of all folds if ``whole``."""
    data = dict(run.get("data", {}))
    if whole or isinstance(data.get("fold"), str):
        data.pop("fold", None)
    weights = _weights(run.get("model", {}))
    return repr((run.get("dataset"), sorted(data.items(), key=str), run.get("hold_out"), weights))


def _budget(run: Run, devices: int | None) -> TrainingConfig:
    settings = {**run.training, "seed": run.seed, "ks": tuple(run.training.get("ks", (1, 2, 4, 8)))}
    return TrainingConfig(**settings | ({"devices": devices} if devices else {}))


def _finish(folder: RunFolder, splits: Mapping[str, Any], found: "FitResult", ks: tuple[int, ...]) -> None:
    """Leave what a report shows, and then the metrics, which say that the run is finished."""
    z, test = found.test_embeddings, splits["test"]
    assert z is not None
    shown = exhibits(z, test.labels, test.classes, thumbnails(test), queries(test))
    save_exhibits(folder.path / "exhibits.npz", shown)
    folder.finish(
        {
            "last": _on_test(found.last),
            "best": None if found.best is None else _on_test(found.best),
            "best_epoch": found.best_epoch,
            "seconds": found.seconds,
            "raw_pixels": _raw_pixels(test, ks),
            "left_out": {name: split.skipped for name, split in splits.items() if getattr(split, "skipped", {})},
        }
    )


def _raw_pixels(test: Any, ks: tuple[int, ...]) -> dict[str, float] | None:
    """Metrics of the images themselves, which a network has to beat; None for sets that do not live in memory."""
    images = test.images if isinstance(test, ImagesInMemory) else None
    return None if images is None else retrieval_metrics(images.flatten(1).float(), test.labels, ks=ks)


def _augmentation(run: Run) -> Distort | None:
    return Distort(**run.augment) if run.augment else None


def _on_test(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}


def run_grid(
    out: Path,
    runs: Sequence[Run],
    *,
    root: str | None = None,
    jobs: int | None = 1,
    threads: int = 1,
    devices: int | None = None,
    poll: float = 0.5,
) -> Generator[list[RunState], None, None]:
    """Execute the runs that are not finished, ``jobs`` at a time in processes of ``threads`` threads each.

    One failure does not stop the others: its traceback is left in its folder as ``error.log``. Where a process is
    killed, the runs beside it fail too, and those that wait are executed in new processes.

    Args:
        out: Folder of the benchmark; the runs get ``out/METHOD/seed-S``.
        runs: What to run.
        root: Folder of the data set.
        jobs: Processes; as many as there are cores for if None.
        threads: Threads of each.
        devices: GPUs, or processes, that share every batch of a run, as in :func:`execute`.
        poll: Seconds between two reports.

    Yields:
        The state of every run, every ``poll`` seconds and once at the end. Closing the iterator stops the processes.

    Raises:
        ValueError: A folder holds a run of another configuration.
    """
    folders, jobs = plan(out, runs), jobs or max(1, cores() // (threads * (devices or 1)))
    _check_finished(out, folders, root)
    out.mkdir(parents=True, exist_ok=True)
    grid = _Grid(folders, [path for path in folders if not RunFolder(path).finished], root, devices)
    while grid.waiting:
        with _workers(jobs, threads, out / "workers.log") as pool:
            whole = True
            while grid.running or (whole and grid.waiting):
                whole = whole and grid.begin(pool, jobs)
                yield grid.states()
                whole = grid.settle(poll) and whole
    yield grid.states()


@dataclass
class _Grid:
    """Runs that wait for a process, have one, or have failed."""

    folders: Mapping[Path, Run]
    waiting: list[Path]
    root: str | None
    devices: int | None
    running: dict[Future, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def begin(self, pool: ProcessPoolExecutor, jobs: int) -> bool:
        """Give waiting runs to a pool as far as it has processes; whether it could take them."""
        while self.waiting and len(self.running) < jobs:
            path = self.waiting[0]
            try:
                future = pool.submit(execute, self.folders[path], path, self.root, devices=self.devices)
            except BrokenProcessPool:
                return False
            self.running[future] = self.waiting.pop(0)
        return True

    def settle(self, poll: float) -> bool:
        """Note which runs have ended within ``poll`` seconds; whether their pool is still whole."""
        done, _ = wait(self.running, timeout=poll, return_when=FIRST_COMPLETED)
        errors = [(self.running.pop(future), future.exception()) for future in done]
        self.failed |= {path: _recorded(path, error) for path, error in errors if error}
        return not any(isinstance(error, BrokenProcessPool) for _, error in errors)

    def states(self) -> list[RunState]:
        found = []
        for path, run in self.folders.items():
            folder = RunFolder(path)
            status = "failed" if path in self.failed else "running" if path in self.running.values() else "waiting"
            found.append(RunState(run, folder, "finished" if folder.finished else status, self.failed.get(path, "")))
        return found


def _recorded(path: Path, error: BaseException) -> str:
    """Message about a run that failed; its traceback is written into the folder if possible."""
    if isinstance(error, BrokenProcessPool):
        return "its process, or one beside it, was killed, perhaps for want of memory: fewer --jobs need less"
    if isinstance(error, SystemExit):
        return "its process was told to end (SIGTERM); the same command goes on from there"
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "error.log", "".join(traceback.format_exception(error)))
    except OSError:
        # The disk itself may have failed; the message is returned in any case.
        return str(error)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _workers(jobs: int, threads: int, log: Path) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes are stopped at once if the block is left early."""
    earlier = multiprocessing.active_children()
    # Spawned, because a forked child of a process that has used OpenMP threads or CUDA may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _prepare, (threads, str(log)))
    complete = False
    try:
        yield pool
        complete = True
    finally:
        children = [child for child in multiprocessing.active_children() if child not in earlier]
        for child in () if complete else children:
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _prepare(threads: int, log: str) -> None:
    """Set up a worker: its number of threads, its output in a file, and its end when the parent process ends."""
    torch.set_num_threads(threads)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
