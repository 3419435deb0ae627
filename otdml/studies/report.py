"""What the finished cells of a study say: means over seeds, and differences to the control seed by seed."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from otdml._files import write_json
from otdml.benchmarks.results import Figure, figure, half_width
from otdml.studies.cells import Cell
from otdml.studies.finished import Finished
from otdml.studies.protocol import Arm, Score, Study

__all__ = ["Difference", "Report", "load", "report", "restore", "save"]


@dataclass(frozen=True)
class Difference:
    """An arm less its control, over the seeds that both have finished, with the 95% interval of Student's t."""

    arm: str
    against: str
    score: Score
    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """``"higher"``, ``"lower"``, ``"not shown"`` (the interval holds 0), ``"one seed"``, or ``"not a number"``."""
        if self.n < 2:
            return "one seed"
        if math.isnan(self.low):
            return "not a number"
        if self.low <= 0 <= self.high:
            return "not shown"
        return "higher" if self.mean > 0 else "lower"

    def sentence(self) -> str:
        """The difference in one sentence, with its interval."""
        title = self.score.title
        if self.verdict == "one seed":
            figures = f"{self.mean:+.{self.score.digits}f}"
            return f"{self.arm}: {title} {figures} against {self.against}, one seed, which shows nothing."
        if self.verdict == "not a number":
            return f"{self.arm}: {title} is not a number with some seed of it or of {self.against}."
        if self.verdict == "not shown":
            return f"{self.arm}: no difference in {title} to {self.against} is shown ({self.interval})."
        return f"{self.arm}: {title} is {self.verdict} than with {self.against} ({self.interval})."

    @property
    def interval(self) -> str:
        """The mean, its 95% interval, and the number of seeds, in words."""
        mean, low, high = self._written
        return f"{mean}, 95% interval {low} to {high}, {self.n} seeds"

    @property
    def figures(self) -> str:
        """The mean and its 95% interval."""
        mean, low, high = self._written
        return f"{mean}, {low} to {high}"

    @property
    def _written(self) -> list[str]:
        """The three numbers, with as many more digits as it takes for no bound but zero to be written as zero."""
        numbers = [self.mean, self.low, self.high]
        digits = self.score.digits
        while digits < 12 and any(value and round(value, digits) == 0 for value in numbers[1:]):
            digits += 1
        return [f"{value:+.{digits}f}" for value in numbers]


@dataclass(frozen=True)
class Report:
    """The cells of a study that are finished, and how many there are in all.

    Attributes:
        name: Of the study.
        question: Of the study.
        method: Of the study.
        arms: Those with a finished cell or without.
        scores: The first one is the answer.
        seeds: Of the study.
        runs: The finished cells.
    """

    name: str
    question: str
    method: str
    arms: tuple[Arm, ...]
    scores: tuple[Score, ...]
    seeds: tuple[int, ...]
    runs: tuple[Finished, ...]

    @property
    def complete(self) -> bool:
        """Whether every arm has been run with every seed."""
        wanted = {(arm.name, seed) for arm in self.arms for seed in self.seeds}
        return wanted <= {(run.arm, run.seed) for run in self.runs}

    @property
    def hours(self) -> float:
        """Hours of all cells, one after the other, from the beginning to the end of each."""
        return sum(run.seconds for run in self.runs) / 3600

    @property
    def processor_hours(self) -> float:
        """Hours that processors worked on them."""
        return sum(run.processor_seconds for run in self.runs) / 3600

    def of(self, arm: str) -> list[Finished]:
        """The runs of an arm, in the order of their seeds."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def mean(self, arm: str, score: str) -> Figure:
        """Mean and standard deviation of a score over the seeds of an arm."""
        return figure([run.scores[score] for run in self.of(arm)])

    def text(self, arm: str, score: Score) -> str:
        """The mean of a score over the seeds of an arm, with half its 95% interval where there is one."""
        value = self.mean(arm, score.name)
        width = half_width(value)
        return f"{value.mean:.{score.digits}f}" + ("" if math.isnan(width) else f" ± {width:.{score.digits}f}")

    def difference(self, arm: str, against: str, score: Score) -> Difference | None:
        """One arm less another; None where no seed is common to both."""
        ours, theirs = ({run.seed: run.scores[score.name] for run in self.of(one)} for one in (arm, against))
        found = figure([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
        if not found.n:
            return None
        width = half_width(found)
        return Difference(arm, against, score, found.mean, found.mean - width, found.mean + width, found.n)

    def differences(self, score: Score | None = None) -> list[Difference]:
        """Every arm less those it is compared with, in one score, the first one if None."""
        pairs = [(arm.name, against) for arm in self.arms for against in arm.against]
        found = [self.difference(*pair, score or self.scores[0]) for pair in pairs]
        return [one for one in found if one is not None]

    @property
    def standing(self) -> str:
        """``"all N cells have been run"``, or how many have been run so far."""
        count = len(self.arms) * len(self.seeds)
        return f"all {count} cells have been run" if self.complete else f"running: {len(self.runs)} of {count} cells"

    def finding(self) -> str:
        """All comparisons in one sentence, those that differ first, and how much has been run if not all has.

        In brackets are the mean difference and its 95% interval, and the number of seeds where not all have as many;
        of many arms that are not shown to differ one range that holds their intervals. Of one seed it is the best
        arm.
        """
        compared = self.differences()
        shown = [one for one in compared if one.verdict in VERDICTS]
        counts = {one.n for one in shown}
        parts = [told for verdict in VERDICTS for told in _told(verdict, shown, with_seeds=len(counts) > 1)]
        if parts:
            seeds = f"with {counts.pop()} seeds, " if len(counts) == 1 else ""
            text = f"{seeds}{self.scores[0].title} is {'; '.join([*parts, *_unshown(compared)])}"
        else:
            text = self._of_one_seed() if compared else "nothing can be said yet"
        sentence = text[0].upper() + text[1:]
        return sentence + ("." if self.complete else f" ({self.standing}).")

    def _of_one_seed(self) -> str:
        """The best arm on the seeds that all arms which have been run have in common, by which settings are chosen."""
        score, nothing = self.scores[0], "one seed shows nothing"
        values = {arm.name: {run.seed: run.scores[score.name] for run in self.of(arm.name)} for arm in self.arms}
        present = {name: of_seeds for name, of_seeds in values.items() if of_seeds}
        common = set.intersection(*map(set, present.values()))
        means = {name: figure([of_seeds[seed] for seed in common]).mean for name, of_seeds in present.items()}
        known = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        if not known:
            return nothing
        best, extreme = (min, "lowest") if score.better < 0 else (max, "highest")
        arm = best(known, key=known.__getitem__)
        return f"{nothing}; {score.title} is {extreme} with {arm} ({known[arm]:.{score.digits}f})"


# In the order of a finding.
VERDICTS = ("higher", "lower", "not shown")


def _told(verdict: str, differences: Sequence[Difference], *, with_seeds: bool) -> Iterator[str]:
    """The parts of a finding on the comparisons with one verdict, one for each arm that others are compared with."""
    for against in dict.fromkeys(one.against for one in differences if one.verdict == verdict):
        those = [one for one in differences if (one.verdict, one.against) == (verdict, against)]
        listed = ", ".join(f"{one.arm} ({one.figures}{f', {one.n} seeds' if with_seeds else ''})" for one in those)
        if verdict != "not shown":
            yield f"{verdict} with {listed} than with {against}"
        else:
            listed = listed if len(those) <= FEW else _together(those, with_seeds=with_seeds)
            yield f"not shown to differ from {against} with {listed}"


def _unshown(differences: Sequence[Difference]) -> Iterator[str]:
    """The parts of a finding on the comparisons that have no interval."""
    for verdict, text in (("one seed", "one seed alone of"), ("not a number", "not a number with some seed of")):
        if names := [one.arm for one in differences if one.verdict == verdict]:
            yield f"{text} {', '.join(dict.fromkeys(names))}"


# Arms that differ by nothing that is shown, whose figures a reader of one sentence still wants.
FEW = 2


def _together(differences: Sequence[Difference], *, with_seeds: bool) -> str:
    """The arms by name, and one range that holds all their intervals."""
    digits = differences[0].score.digits
    low, high = min(one.low for one in differences), max(one.high for one in differences)
    names = ", ".join(f"{one.arm}{f' with {one.n} seeds' if with_seeds else ''}" for one in differences)
    return f"{names} (all intervals within {low:+.{digits}f} to {high:+.{digits}f})"


def report(study: Study, runs: Sequence[Finished], seeds: Sequence[int] = ()) -> Report:
    """The report of a study from its finished cells."""
    seeds = tuple(seeds or study.seeds)
    return Report(study.name, study.question, study.method, study.arms, study.scores, seeds, tuple(runs))


def save(path: Path, found: Report) -> None:
    """Write a report as JSON, with every cell in it, and the means and differences for readers without this library."""
    content = asdict(found)
    content["means"] = [
        {"arm": arm.name, "score": score.name, **asdict(found.mean(arm.name, score.name))}
        for arm in found.arms
        for score in found.scores
        if found.of(arm.name)
    ]
    content["differences"] = [
        asdict(one) | {"score": one.score.name, "verdict": one.verdict}
        for score in found.scores
        for one in found.differences(score)
    ]
    content["finding"] = found.finding()
    content |= {"hours": found.hours, "processor_hours": found.processor_hours}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def load(path: Path) -> Report:
    """The report that :func:`save` has written. Means and differences are computed again from its cells.

    Raises:
        ValueError: The file holds no report; the message says why.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Report(
            content["name"],
            content["question"],
            content["method"],
            tuple(Arm(arm["name"], dict(arm["settings"]), tuple(arm["against"])) for arm in content["arms"]),
            tuple(Score(**score) for score in content["scores"]),
            tuple(content["seeds"]),
            tuple(map(Finished.of, content["runs"])),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no report of a study ({error}). `otdml study NAME --json FILE` writes one."
        ) from error
    arms, runs = {arm.name for arm in found.arms}, [(run.arm, run.seed) for run in found.runs]
    if strangers := [arm for arm, _ in runs if arm not in arms]:
        raise ValueError(f"{path} is no report of a study: it has a cell of {strangers[0]}, which is no arm of it.")
    if len(set(runs)) < len(runs):
        raise ValueError(f"{path} is no report of a study: it has a cell twice.")
    return found


def restore(path: Path, study: Study, wanted: Sequence[Cell]) -> None:
    """Keep the cells of a saved report, so that the study goes on from there; those that are finished stay.

    Args:
        path: What :func:`save` has written.
        study: What the cells are of.
        wanted: The cells that are taken from it, if it has them. One that a process is working on is left to it.

    Raises:
        ValueError: It is no report, or one of another study or of other settings; nothing has been kept then.
    """
    published = load(path)
    if published.name != study.name:
        raise ValueError(f"{path} is a report of {published.name}, not of {study.name}.")
    settings = {arm.name: arm.settings for arm in published.arms}
    runs = {(run.arm, run.seed): run for run in published.runs}
    there = [(cell, run) for cell in wanted if (run := runs.get((cell.arm.name, cell.seed))) and cell.read() is None]
    for cell, run in there:
        if differences := "; ".join(cell.differences(settings[run.arm])):
            raise ValueError(f"{path} is of other settings ({run.arm}: {differences}). The study has changed since.")
        if missing := [name for name in cell.scores if name not in run.scores]:
            raise ValueError(f"{path} lacks {', '.join(missing)} of {cell.title}. The study has changed since.")
    for cell, run in there:
        with cell.claimed() as free:
            if free:
                cell.keep(run)
