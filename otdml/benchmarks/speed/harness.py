"""Timing of contenders on equal terms, and the table of their ratios.

A speed table yields one :class:`Measurement` per case and contender, ours named ``otdml`` (or ``otdml ...``). A run
returns its *quality* (a marginal error, an objective, a difference to an oracle), and ``accept`` says whether that
is good enough: a contender that is fast and wrong is shown, and left out of the ratios.
"""

import ctypes
import gc
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from otdml._checks import argument_error
from otdml._files import write_json
from otdml.benchmarks.environment import environment

__all__ = [
    "Measurement",
    "Ratio",
    "check_only",
    "earlier",
    "every_case",
    "geometric_mean",
    "measure",
    "only",
    "peak_memory",
    "ratios",
    "save",
]

# What a contender may raise without ending the table.
FAILURES = (RuntimeError, ValueError, MemoryError, NotImplementedError)

Case = dict[str, Any]
# Whether a case is to be measured.
Wanted = Callable[[Case], bool]


def every_case(case: Case) -> bool:
    """True."""
    return True


def only(selections: Sequence[str]) -> Wanted:
    """The cases that agree with one of the selections, or all if there are none.

    Raises:
        ValueError: If a selection is not of the form ``key=value,key=value``.

    Example:
        >>> wanted = only(["n=4096,d=2", "n=128"])
        >>> [wanted({"n": n, "d": 2}) for n in (128, 1024, 4096)]
        [True, False, True]
    """
    for selection in selections:
        pairs = [part.split("=") for part in selection.split(",")]
        if not all(len(pair) == 2 and all(pair) for pair in pairs):
            raise argument_error("only", "be of the form key=value,key=value", repr(selection))
    parsed = [dict(part.split("=") for part in selection.split(",")) for selection in selections]
    return lambda case: not parsed or any(all(str(case.get(k)) == v for k, v in one.items()) for one in parsed)


def check_only(selections: Sequence[str], measurements: Callable[[bool, Wanted], Iterable[Any]], quick: bool) -> None:
    """Raise for a selection that no case of a table agrees with, before anything is measured.

    Args:
        selections: As for :func:`only`.
        measurements: Those of a table.
        quick: Whether only the small cases are looked at.

    Raises:
        ValueError: The message names the selection, and the parameters that cases have.
    """
    cases: list[Case] = []
    # Whether a case is wanted is checked before it is made.
    list(measurements(quick, lambda case: cases.append(case) or False))  # type: ignore[func-returns-value]
    for selection in selections:
        if not any(map(only([selection]), cases)):
            values: dict[str, dict[str, None]] = {}
            for case in cases:
                for key, value in case.items():
                    values.setdefault(key, {})[str(value)] = None
            known = "; ".join(f"{key} = {', '.join(found)}" for key, found in values.items())
            kind = "quick case" if quick else "case"
            raise argument_error("only", f"agree with a {kind} of the table", repr(selection), f"There are {known}.")


@dataclass(frozen=True)
class Measurement:
    """One contender on one case.

    Attributes:
        case: The parameters of the problem, e.g. ``{"n": 1024, "d": 16}``.
        contender: Who ran; ours begin with ``otdml``.
        seconds: The fastest of the repetitions, or NaN if the run failed.
        peak_mib: Peak additional memory of the first run in MiB, or NaN where it cannot be read.
        quality: What the run returned, e.g. its marginal error.
        correct: Whether that was good enough to count.
        note: The reason of a failure, or what disturbed the run.
    """

    case: Case
    contender: str
    seconds: float
    peak_mib: float
    quality: float
    correct: bool
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("seconds", "peak_mib", "quality"):
            # JSON has null in place of what is no number.
            if getattr(self, name) is None:
                object.__setattr__(self, name, math.nan)


@dataclass(frozen=True)
class Ratio:
    """The fastest correct peer's time over ours on one case; above one, we are faster."""

    case: Case
    ours: float
    peer: str
    theirs: float

    @property
    def value(self) -> float:
        return self.theirs / self.ours


def measure(
    case: Case,
    contender: str,
    run: Callable[[], Any],
    *,
    judge: Callable[[Any], float] = float,
    accept: Callable[[float], bool] = lambda quality: True,
    repeats: int = 5,
    budget: float = 10.0,
    least: float = 0.0,
) -> Measurement:
    """Time ``run``: once to warm up and for its memory, then up to ``repeats`` times within ``budget`` seconds.

    Args:
        case: The parameters of the problem.
        contender: Who runs.
        run: What is timed.
        judge: The quality of what ``run`` returned, looked at when the clock has stopped.
        accept: Whether a quality is good enough; if it is not, one run is all.
        repeats: Most runs.
        budget: Seconds that the repetitions may take.
        least: Seconds that they take at least: more of them, where a run is so short that what else the machine does
            for a moment would show in all.
    """
    note = ""
    try:
        start = time.perf_counter()
        found, peak = peak_memory(run)
        elapsed = time.perf_counter() - start
        quality = judge(found)
        times = [elapsed]
        if elapsed < budget and accept(quality):
            repeated, note = _repeated(run, repeats, budget - elapsed, least)
            times = repeated or times
    except FAILURES as error:
        return Measurement(case, contender, math.nan, math.nan, math.nan, False, f"{type(error).__name__}: {error}")
    return Measurement(case, contender, min(times), peak, quality, accept(quality), note)


# Cores that other processes may use without being in the way, and how often a measurement is repeated otherwise.
QUIET, ROUNDS = 0.25, 3


def _repeated(run: Callable[[], object], repeats: int, budget: float, least: float) -> tuple[list[float], str]:
    """The times of repetitions, once more where other processes disturbed them, and a note if they still did."""
    times: list[float] = []
    note = ""
    for _ in range(ROUNDS):
        before, began, first = _elsewhere(), time.perf_counter(), len(times)
        while (spent := time.perf_counter() - began) < budget and (len(times) - first < repeats or spent < least):
            times.append(_timed(run))
        others = (_elsewhere() - before) / (time.perf_counter() - began)
        note = f"disturbed: other processes used {others:.1f} cores" if others > QUIET else ""
        if not note:
            break
    return times, note


def _elsewhere() -> float:
    """The CPU seconds that other processes have used, NaN where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    user, nice, system, _, _, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``run``, and its peak memory in MiB above what was in use before.

    On CUDA that is the allocator's peak. On the CPU the resident set is sampled every millisecond, which sees every
    allocation that lives for longer than that; NaN on systems without ``/proc``. What the C library keeps of memory
    that was freed is given back before, or a later run would seem to need nothing.
    """
    gc.collect()
    _give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    with _ResidentPeak() as resident:
        result = run()
    return result, resident.peak - resident.before


def _give_back() -> None:
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


class _ResidentPeak:
    """The largest resident set of this process, in MiB, while the context is open."""

    def __enter__(self) -> "_ResidentPeak":
        self.before = self.peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(1e-3):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, _resident())
        self._stop.set()
        self._thread.join()


def _resident() -> float:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 / 2**20 if statm.exists() else math.nan


def ratios(measurements: Iterable[Measurement], against: str = "") -> Iterator[Ratio]:
    """For each case in which we and a peer are correct: our fastest against the fastest peer.

    Args:
        measurements: Cases in any order.
        against: How the names of the peers begin that are looked at.
    """
    for rows in _by_case(m for m in measurements if m.correct).values():
        ours = [m for m in rows if m.contender.startswith("otdml")]
        peers = [m for m in rows if not m.contender.startswith("otdml") and m.contender.startswith(against)]
        if ours and peers:
            best, peer = (min(side, key=lambda m: m.seconds) for side in (ours, peers))
            yield Ratio(best.case, best.seconds, peer.contender, peer.seconds)


def _by_case(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for one in measurements:
        found.setdefault(json.dumps(one.case), []).append(one)
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean, NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def earlier(path: Path, table: str = "") -> dict[str, Any]:
    """The measurements in a file, empty if there is none.

    Raises:
        ValueError: It is no such file, or one of another table than ``table``, if that is given.
    """
    if not path.exists():
        return {"measurements": [], "pieces": []}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["measurements"]:
            Measurement(**row)
        for piece in content["pieces"]:
            list(piece["cases"])
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{path} holds no measurements to add to ({error}). Choose another file with --out."
        ) from error
    if table and content.get("table", table) != table:
        raise ValueError(f"{path} holds measurements of the table {content['table']}. Choose another file with --out.")
    return content


def save(path: Path, measurements: list[Measurement], *, table: str = "", merge: bool = False) -> list[Measurement]:
    """Write the measurements, the ratios and the environment as JSON.

    Args:
        path: The file.
        measurements: What was measured now.
        table: The name of their table, which is written down.
        merge: Keep what the file holds of other cases; ``pieces`` then says which environment each case is from, and
            ``environment`` is that of now.

    Returns:
        All measurements that are in the file.
    """
    old = earlier(path, table) if merge else {"measurements": [], "pieces": []}
    now = {"environment": environment(), "cases": [rows[0].case for rows in _by_case(measurements).values()]}
    kept = [Measurement(**row) for row in old["measurements"] if row["case"] not in now["cases"]]
    pieces = [
        piece | {"cases": [case for case in piece["cases"] if case not in now["cases"]]} for piece in old["pieces"]
    ]
    merged = sorted(kept + measurements, key=lambda m: [str(v).zfill(9) for v in m.case.values()])
    found = [asdict(r) | {"ratio": r.value} for r in ratios(merged)]
    content = ({"table": table} if table else {}) | {
        "environment": now["environment"],
        "pieces": [piece for piece in [*pieces, now] if piece["cases"]],
        "measurements": [asdict(m) for m in merged],
        "ratios": found,
        "geometric_mean_ratio": geometric_mean(r["ratio"] for r in found),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return merged
