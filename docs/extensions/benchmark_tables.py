"""The directives ``benchmark-tables`` and ``nir-finding``: what ``otdml benchmark`` wrote into ``results.json``.

Files lie in ``docs/figures/benchmarks`` under the names of their presets. Called as a program, this writes what they
say of handwriting and of photographs into the README.
"""

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from docutils import nodes
from extensions.speed_tables import list_table, machine
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from otdml.benchmarks.baselines import PIXELS
from otdml.benchmarks.finished import Finished
from otdml.benchmarks.presets import Preset, preset
from otdml.benchmarks.report import metric_title, percent
from otdml.benchmarks.results import Comparison, Figure, comparisons, figure, methods_of, metric_names
from otdml.benchmarks.runs import RunFolder
from otdml.data.registry import named_dataset

SHOWN = ("recall@1", "recall@4", "r_precision", "map@r")
COMPARED = ("recall@1", "map@r")
NOT_NUMBERS = ("method", "seed", "checkpoint", "seconds", "left_out")
README = Path(__file__).parents[2] / "README.md"
FILES = Path(__file__).parents[1] / "figures" / "benchmarks"
PHOTOGRAPHS, LARGER = ("cars-lite0", "cub-lite0"), ("cars-lite0-224", "cub-lite0-224")
HANDWRITING = ("omniglot-small",)
# What stands in the README between the marks of this name, and the same with larger images below it.
MARKED = {"omniglot": (HANDWRITING, ()), "photographs": (PHOTOGRAPHS, LARGER)}


@dataclass(frozen=True)
class Results:
    """A file with the preset that it is of.

    Attributes:
        preset: Its preset.
        runs: Its finished runs.
        baselines: Metrics of what was not trained, by name.
        environments: Where runs were made.
    """

    preset: Preset
    runs: list[Finished]
    baselines: Mapping[str, Mapping[str, float]]
    environments: list[Mapping[str, str]]

    @property
    def standing(self) -> str:
        """How many of the recipe's runs are finished."""
        wanted = {(name, seed) for name in self.preset.compare for seed in range(self.preset.seeds)}
        done = wanted & {(run.method, run.seed) for run in self.runs}
        return f"{len(done)} of {len(wanted)} runs"

    def compared(self, metric: str) -> list[Comparison]:
        return comparisons(self.runs, metric)

    def of(self, method: str, metric: str) -> Figure:
        return figure([run.last[metric] for run in self.runs if run.method == method and metric in run.last])


def load(path: Path) -> Results:
    """What a file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    runs = [
        Finished(
            row["method"],
            row["seed"],
            {name: value for name, value in row.items() if name not in NOT_NUMBERS},
            None,
            None,
            row["seconds"],
            RunFolder(path.parent),
        )
        for row in content["runs"]
    ]
    made = [row["environment"] for row in content.get("environments", ())]
    return Results(preset(path.stem), runs, content["baselines"], made)


def found(names: Iterable[str], folder: Path) -> dict[str, Results]:
    return {name: load(folder / f"{name}.json") for name in names if (folder / f"{name}.json").is_file()}


# ---- tables


def section(one: Results, command: str) -> str:
    """The table of a benchmark, its differences, the command and the machine."""
    metrics = [name for name in SHOWN if name in metric_names(one.runs)]
    rows = [(name, "", *(f"{100 * row[m]:.1f}" for m in metrics)) for name, row in one.baselines.items()]
    for method in methods_of(one.runs):
        figures = [one.of(method, m) for m in metrics]
        rows.append((f"``{method}``", str(figures[0].n), *(unbroken(percent(value)) for value in figures)))
    heads = ("method", "seeds", *(metric_title(m) for m in metrics))
    widths = " ".join(["26", "7", *["11"] * len(metrics)])
    parts = [f"{one.preset.title}. Percent, mean ± standard deviation over the seeds; {one.standing}.\n"]
    parts += [list_table(heads, rows, widths, "stacked labelled"), differences(one)]
    parts += [f".. code-block:: console\n\n   $ {command}"]
    places = dict.fromkeys(machine({k: v for k, v in made.items() if k != "code"}) for made in one.environments)
    parts += ["Measured on " + "; ".join(places) + "."] if places else []
    return "\n\n".join(part for part in parts if part) + "\n\n"


def differences(one: Results) -> str:
    """The head against its control arm and its loss, seed by seed; empty where nothing is compared."""
    by_metric = [one.compared(metric) for metric in COMPARED]
    rows = [
        (f"``{cells[0].method}`` minus ``{cells[0].against}``", str(cells[0].n), *(unbroken(spread(c)) for c in cells))
        for cells in zip(*by_metric, strict=True)
        if cells[0].n
    ]
    if not rows:
        return ""
    heads = ("difference", "seeds", *(metric_title(metric) for metric in COMPARED))
    told = "In points, seed by seed, with 95 % intervals (Student's t):\n\n"
    return told + list_table(heads, rows, "46 8 23 23", "stacked labelled")


def unbroken(text: str) -> str:
    """The text on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def spread(c: Comparison) -> str:
    """A difference in points with its interval, where there is one."""
    points = f"{100 * c.difference:+.2f}"
    return points if math.isnan(c.low) else f"{points} ({100 * c.low:+.2f} to {100 * c.high:+.2f})"


# ---- what the head does, in sentences


def finding(results: Sequence[Results]) -> str:
    """What NIR does against its control arm: a count over sets, losses and metrics, and a line for each of them."""
    cells = [c for one, metric in product(results, COMPARED) for c in heads_of(one.compared(metric))]
    known = [c for c in cells if not math.isnan(c.low)]
    if not known:
        return "Nothing can be said of one seed.\n\n"
    count = {
        verdict: sum(c.verdict == verdict for c in known) for verdict in ("better", "worse", "no difference shown")
    }
    *titles, last = (named_dataset(one.preset.dataset).title for one in results)
    sets = f"{', '.join(titles)} and {last}" if titles else last
    text = (
        f"On {sets}, NIR is better than its control arm in {count['better']} of {len(known)} comparisons"
        f" ({'sets, ' if titles else ''}losses, and two metrics), worse in {count['worse']}, and in"
        f" {count['no difference shown']} no difference is shown.\n\n"
    )
    return text + "\n".join(f"* {line}" for one in results for line in sentences(one)) + "\n\n"


def heads_of(found: Iterable[Comparison]) -> list[Comparison]:
    """The head against its control arm."""
    return [c for c in found if c.against.endswith("+nir-control") and c.n]


def sentences(one: Results) -> Iterator[str]:
    """One for each loss that has the head."""
    for recall, precision in zip(*(heads_of(one.compared(metric)) for metric in COMPARED), strict=True):
        base = next(c for c in one.compared("recall@1") if (c.method, c.against) == (recall.method, base_of(recall)))
        yield (
            f"{named_dataset(one.preset.dataset).title}, ``{recall.method}`` minus its control arm:"
            f" R@1 {spread(recall)}, MAP@R {spread(precision)}; minus ``{base.against}``: R@1 {spread(base)};"
            f" {recall.n} seed{'s' * (recall.n > 1)}."
        )


def base_of(c: Comparison) -> str:
    return c.method.removesuffix("+nir")


# ---- the README


def readme_table(results: Sequence[Results], larger: Sequence[Results]) -> str:
    """R@1 and MAP@R of every method on every set, as Markdown; below, those of larger images."""
    titles = [f"{short(one)} {metric_title(m)}" for one in results for m in COMPARED]
    lines = [f"| method | {' | '.join(titles)} |", f"|---{'|---' * len(titles)}|"]
    lines += [*untrained_rows(results, results), *rows_of(results, results)]
    scaled = [row for row in untrained_rows(larger, results) if not row.startswith(f"| {PIXELS}")]
    scaled += rows_of(larger, results)
    return "\n".join([*lines, *(row.replace(" |", ", 224 pixels |", 1) for row in scaled)]) + "\n"


def untrained_rows(results: Sequence[Results], columns: Sequence[Results]) -> Iterator[str]:
    """A line for each score of what was not trained, pixels first."""
    there = {one.preset.dataset: one.baselines for one in results}
    names = dict.fromkeys(name for baselines in there.values() for name in baselines)
    for name in sorted(names, key=lambda name: name != PIXELS):
        known = [(there.get(one.preset.dataset, {}).get(name), m) for one, m in pairs(columns)]
        yield f"| {name} | {' | '.join(f'{100 * row[m]:.1f}' if row else '' for row, m in known)} |"


def rows_of(results: Sequence[Results], columns: Sequence[Results]) -> Iterator[str]:
    """A line for each method, with the figures of those results that are of the data sets of the columns."""
    there = {one.preset.dataset: one for one in results}
    for method in dict.fromkeys(name for one in results for name in methods_of(one.runs)):
        of = [
            there[one.preset.dataset].of(method, m) if one.preset.dataset in there else None
            for one, m in pairs(columns)
        ]
        yield f"| `{method}` | {' | '.join(percent(f) if f and f.n else '' for f in of)} |"


def pairs(results: Sequence[Results]) -> list[tuple[Results, str]]:
    return list(product(results, COMPARED))


def short(one: Results) -> str:
    return named_dataset(one.preset.dataset).title.split("-")[0]


def readme_text(results: Sequence[Results], larger: Sequence[Results]) -> str:
    """The table, how much of it has been run, and what NIR does."""
    standing = "; ".join(f"{short(one)}: {one.standing}" for one in results)
    told = f"{standing}. {finding(results).splitlines()[0]}"
    return f"{readme_table(results, larger)}\n{textwrap.fill(told, 120, break_on_hyphens=False)}\n"


def rewritten(readme: str, folder: Path = FILES) -> str:
    """The README with what the files say, between its marks."""
    for name, (names, larger) in MARKED.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = readme.split(begin)
        text = readme_text(*(list(found(of, folder).values()) for of in (names, larger)))
        readme = f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"
    return readme


# ---- the directives


class BenchmarkTables(SphinxDirective):
    """The tables of one file: its name, and below it the command that wrote it."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name, folder = self.arguments[0], Path(self.env.srcdir) / "figures" / "benchmarks"
        self.env.note_dependency(str(folder / f"{name}.json"))
        there = found([name], folder)
        text = section(there[name], "\n   $ ".join(self.content)) if there else f"``{name}`` has not been run.\n"
        return self.parse_text_to_nodes(text)


class NIRFinding(SphinxDirective):
    """What the files of these names say of NIR."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        folder, names = Path(self.env.srcdir) / "figures" / "benchmarks", self.arguments[0].split()
        for name in names:
            self.env.note_dependency(str(folder / f"{name}.json"))
        return self.parse_text_to_nodes(finding(list(found(names, folder).values())))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("benchmark-tables", BenchmarkTables)
    app.add_directive("nir-finding", NIRFinding)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
