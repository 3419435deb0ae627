"""On which machine and with which versions the runs of a table were made, and from which epoch on."""

from collections import Counter
from collections.abc import Iterator, Sequence

from otdml.benchmarks.finished import Finished
from otdml.benchmarks.runs import RunFolder

__all__ = ["differences", "environments"]


def _folders(run: Finished) -> Iterator[tuple[str, RunFolder]]:
    """The folder of a run, or those of its four networks in the Reality Check protocol, by name."""
    folds = sorted(run.folder.path.glob("fold-*/config.json"))
    for path in folds:
        yield f"{run.method}, seed {run.seed}, {path.parent.name}", RunFolder(path.parent)
    if not folds:
        yield f"{run.method}, seed {run.seed}", run.folder


def environments(runs: Sequence[Finished]) -> list[tuple[list[str], dict[str, str]]]:
    """Each environment that runs were made in, with the names of the runs, in order."""
    found: list[tuple[list[str], dict[str, str]]] = []
    for name, folder in (pair for run in runs for pair in _folders(run)):
        for epoch, environment in folder.environments():
            names = next((names for names, known in found if known == environment), None)
            if names is None:
                names = []
                found.append((names, environment))
            names.append(f"{name}, from epoch {epoch}" if epoch else name)
    return found


def differences(runs: Sequence[Finished]) -> list[str]:
    """Sentences about runs made with different versions or on different machines; none if all agree."""
    folders = [pair for run in runs for pair in _folders(run)]
    said = [
        f"{name}, was stopped and went on elsewhere: {'; '.join(moves)}."
        for name, folder in folders
        if (moves := folder.moves())
    ]
    latest = [folder.environments()[-1][1] for _, folder in folders]
    for key in dict.fromkeys(key for environment in latest for key in environment):
        values = Counter(environment.get(key, "unknown") for environment in latest)
        if len(values) > 1:
            shares = ", ".join(f"{value} ({count} of {len(latest)})" for value, count in values.items())
            said.append(f"Not all runs were made with the same {key}: {shares}.")
    return said
