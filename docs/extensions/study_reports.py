"""What every study found, from the JSON that ``otdml study`` has written.

The directive ``study-findings`` holds one sentence per study, and ``study-reports`` their tables and figures.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from extensions.speed_tables import list_table, machine
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from otdml import studies
from otdml.studies.report import Report, load


def section(found: Report, figure: str | None) -> str:
    """The question, one sentence per comparison, the table, the curves, and where and how long it ran."""
    parts = [f".. _study-{found.name}:", f"{found.question}\n{'^' * len(found.question)}", found.method]
    parts += ["\n".join(f"* {one.sentence()}" for one in found.differences())]
    parts += [table(found)]
    parts += [f".. image:: {figure}\n   :alt: {found.scores[0].title} of every arm and seed"] if figure else []
    data = " --data PATH" if studies.named(found.name).needs else ""
    parts += [
        f".. code-block:: console\n\n   $ otdml study {found.name}{data} --json docs/figures/studies/{found.name}.json"
    ]
    return "\n\n".join([*parts, told(found)]) + "\n\n"


def table(found: Report) -> str:
    """The mean of every score over the seeds, with its 95% interval, of the arms that have been run."""
    heads = ("arm", "seeds", *(score.title for score in found.scores))
    rows = [
        (
            arm.name,
            f"{len(found.of(arm.name))} of {len(found.seeds)}",
            *(found.text(arm.name, score) for score in found.scores),
        )
        for arm in found.arms
        if found.of(arm.name)
    ]
    widths = " ".join(["24", "8", *["10"] * len(found.scores)])
    return list_table(heads, rows, widths, "stacked labelled")


def told(found: Report) -> str:
    """How much has been run, for how long, and where."""
    places = dict.fromkeys(machine(dict(run.environment)) for run in found.runs)
    hours = f"{found.hours:.2f} hours one after the other, {found.processor_hours:.2f} hours of a processor"
    standing = f"{found.standing.capitalize()}; {hours} ({'; '.join(places)})"
    absent = ", ".join(arm.name for arm in found.arms if not found.of(arm.name))
    return f"± is half the 95% interval over the seeds. {standing}." + (f" Not run yet: {absent}." if absent else "")


def spent(reports: list[Report]) -> str:
    """What all of them took."""
    cells, hours = sum(len(found.runs) for found in reports), sum(found.processor_hours for found in reports)
    return f"All {cells} cells together worked {hours:.2f} hours on one processor core, {hours / 2:.2f} on two."


def reports(folder: Path) -> dict[str, list[Report]]:
    """The reports in a folder on each topic that has some."""
    paths = {topic: [folder / f"{name}.json" for name in names] for topic, names in studies.topics().items()}
    found = {topic: [load(path) for path in of_topic if path.is_file()] for topic, of_topic in paths.items()}
    return {topic: of_topic for topic, of_topic in found.items() if of_topic}


def findings(folder: Path) -> str:
    """The reStructuredText of one sentence for each study with a report in a folder, by topic."""
    parts = []
    for topic, found in reports(folder).items():
        parts.append(f".. rubric:: {topic}")
        parts += [f":ref:`{one.name} <study-{one.name}>`. {one.question} {one.finding()}" for one in found]
    return "".join(f"{part}\n\n" for part in parts)


def page(folder: Path) -> str:
    """The reStructuredText of all studies that have a report in a folder, by topic, and the names of the others."""
    found = reports(folder)
    text = ""
    for topic, of_topic in found.items():
        text += f"{topic}\n{'~' * len(topic)}\n\n"
        for one in of_topic:
            figure = f"figures/studies/{one.name}.svg" if (folder / f"{one.name}.svg").is_file() else None
            text += section(one, figure)
    there = [one for of_topic in found.values() for one in of_topic]
    names = {one.name for one in there}
    absent = [f"``{name}``" for name in studies.names() if name not in names]
    text += f"What is behind\n~~~~~~~~~~~~~~\n\n{spent(there)}\n\n" if there else ""
    return text + (f"Not run yet: {', '.join(absent)}.\n\n" if absent else "")


class StudyFindings(SphinxDirective):
    """What the studies that have a report in ``docs/figures/studies`` found, in a sentence each."""

    write = staticmethod(findings)

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir) / "figures" / "studies"
        for name in studies.names():
            self.env.note_dependency(str(folder / f"{name}.json"))
        return self.parse_text_to_nodes(self.write(folder), allow_section_headings=True)


class StudyReports(StudyFindings):
    """Their tables and figures."""

    write = staticmethod(page)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("study-findings", StudyFindings)
    app.add_directive("study-reports", StudyReports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
