"""The directive ``speed-tables``: what ``otdml speed TABLE --out FILE`` wrote, as tables that one can read.

First one line per table, then a section for each: the mean ratio, the cases with the smallest ones, who took no part
and why, the machine, and every case folded away. A table without a file is named as not measured.
"""

import importlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from otdml.benchmarks.speed import TABLES
from otdml.benchmarks.speed.harness import Measurement, Ratio, geometric_mean, ratios

WORST = 5


# Where some cases were measured: processor, threads and versions, and these cases.
Place = tuple[dict[str, str], list[dict[str, Any]]]


def read(path: Path) -> tuple[list[Measurement], list[Place]]:
    """The measurements of a file, and the places they were made at; pieces of one place are one."""
    content = json.loads(path.read_text(encoding="utf-8"))
    measured = [Measurement(**row) for row in content["measurements"]]
    everything = {"environment": content["environment"], "cases": [m.case for m in measured]}
    places: list[Place] = []
    for piece in content.get("pieces") or [everything]:
        same = [cases for environment, cases in places if environment == piece["environment"]]
        if same:
            same[0].extend(piece["cases"])
        else:
            places.append((piece["environment"], list(piece["cases"])))
    return measured, places


def duration(seconds: float) -> str:
    """Three digits, in milliseconds or seconds."""
    if math.isnan(seconds):
        return "–"
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1e3 * seconds, "ms")
    digits = max(0, 2 - math.floor(math.log10(max(value, 1e-2)) + 1e-4))
    return f"{value:.{digits}f} {unit}"


def memory(mib: float) -> str:
    """Nothing where it is unknown or below what sampling can tell."""
    if not mib >= 0.5:
        return ""
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def said(value: Any) -> str:
    """A parameter of a case as text."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def case_text(case: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {said(value)}" for key, value in case.items())


# ---- one line per table, and a section for each, in reStructuredText


def overview(tables: dict[str, list[Measurement]]) -> str:
    """A table of the tables."""
    rows = []
    for name, measured in tables.items():
        found = list(ratios(measured))
        values = [ratio.value for ratio in found]
        slowest = min(found, key=lambda ratio: ratio.value, default=None)
        worst = f"{slowest.value:.2f}: {case_text(slowest.case)}, {slowest.peer}" if slowest else "no peer"
        mean = f"{geometric_mean(values):.2f}" if values else "–"
        faster = f"{sum(value > 1 for value in values)} of {len(values)}"
        rows.append((f"`{name}`_", mean, faster, worst))
    heads = ("table", "mean ratio", "we are faster in", "smallest ratio, and where")
    return list_table(heads, rows, "14 14 18 54", "stacked labelled overview")


def section(name: str, measured: list[Measurement], places: Sequence[Place]) -> str:
    """Everything about one table."""
    told = importlib.import_module(TABLES[name]).__doc__ or ""
    found = list(ratios(measured))
    parts = [f"{name}\n{'~' * len(name)}", told.strip(), verdict(found)]
    if len(found) > 1:
        heads, rows = ("case", "otdml", "fastest correct peer", "ratio"), sorted(found, key=lambda r: r.value)[:WORST]
        shown = [
            (case_text(r.case), duration(r.ours), f"{duration(r.theirs)}, {r.peer}", f"{r.value:.2f}") for r in rows
        ]
        parts.append(f"Where we look worst:\n\n{list_table(heads, shown, '40 15 33 12', 'stacked labelled worst')}")
    absent = "\n".join(f"* {line}" for line in left_out(measured))
    parts += [f"Left out of the ratios:\n\n{absent}"] if absent else []
    parts += [folded(f"Every case ({len({case_text(m.case) for m in measured})})", full_table(measured, places))]
    parts += [f".. code-block:: console\n\n   $ otdml speed {name} --out docs/figures/speed/{name}.json"]
    parts += [where(places)]
    return "\n\n".join(parts) + "\n\n"


def verdict(found: list[Ratio]) -> str:
    """The mean of the ratios, how many are above one, and whose."""
    if not found:
        return "No peer computes this, so there is no ratio."
    values = [ratio.value for ratio in found]
    faster, peers = sum(value > 1 for value in values), Counter(ratio.peer for ratio in found)
    each = ", ".join(f"{peer} ({count})" for peer, count in peers.most_common())
    return (
        f"The fastest correct peer takes **{geometric_mean(values):.2f} ×** our time, in the geometric mean of"
        f" {len(values)} ratios. We are faster in {faster} of {len(values)}. The fastest correct peer is {each}."
    )


def left_out(measured: Iterable[Measurement]) -> Iterator[str]:
    """Who took no part, why, and in how many cases."""
    reasons: dict[str, Counter[str]] = {}
    for one in measured:
        if not one.correct:
            reasons.setdefault(one.contender, Counter())[reason(one)] += 1
    for contender, why in reasons.items():
        yield f"{contender}: " + "; ".join(f"{text} ({count})" for text, count in why.most_common())


def reason(measurement: Measurement) -> str:
    """Why a contender does not count, without the figures that differ from case to case."""
    if measurement.note.startswith("left out"):
        return "expected to take too long, not run"
    return plain(measurement.note) if math.isnan(measurement.seconds) else "not correct"


def first_line(note: str) -> str:
    return note.strip().partition("\n")[0]


def plain(note: str, length: int = 120) -> str:
    """The first line of a message, as text that means nothing to reStructuredText."""
    line = first_line(note) or "failed"
    line = line if len(line) <= length else line[:length].rsplit(" ", 1)[0] + " ..."
    return "".join(f"\\{c}" if c in r"\*_`|<>" else c for c in line)


def where(places: Sequence[Place]) -> str:
    """One sentence, or one for each place with the number that the table of all cases gives it."""
    if len(places) == 1:
        return f"Measured on {machine(places[0][0])}."
    rows = [f"#. {len(cases)} {'case' if len(cases) == 1 else 'cases'}: {machine(made)}." for made, cases in places]
    return "Measured in pieces, numbered in the table of every case:\n\n" + "\n".join(rows)


def machine(made: dict[str, str]) -> str:
    known = {"processor", "threads", "gpu", "system", "otdml", "python"}
    versions = ", ".join(f"{name} {version}" for name, version in made.items() if name not in known)
    accelerator = "" if made.get("gpu", "none") == "none" else f" and {made['gpu']}"
    return (
        f"{made.get('processor', 'an unnamed processor')}{accelerator}, {made.get('threads', '?')} threads,"
        f" Python {made.get('python', '?')}, otdml {made.get('otdml', '?')}, {versions}"
    )


def list_table(heads: Iterable[str], rows: Iterable[Iterable[str]], widths: str, kind: str) -> str:
    lines = [".. list-table::", f"   :class: {kind}", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (heads, *rows):
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines)


# ---- every case, in HTML


def folded(title: str, body: str) -> str:
    inside = f'<details class="speed"><summary>{escape(title)}</summary>{body}</details>'
    return ".. raw:: html\n\n   " + inside.replace("\n", "\n   ")


def full_table(measured: list[Measurement], places: Sequence[Place] = ()) -> str:
    """Cases as rows and contenders as columns; one table for each set of parameters.

    Where there are several places, a first column has the number of each case's.
    """
    several = len(places) > 1
    number = {json.dumps(case): i for i, (_, cases) in enumerate(places, 1) for case in cases}
    parts = []
    for keys, group in groupby(measured, key=lambda m: tuple(m.case)):
        rows = list(group)
        contenders = list(dict.fromkeys(m.contender for m in rows))
        titles = [*(["piece"] if several else []), *keys, "ratio", *contenders]
        heads = "".join(f"<th>{escape(title)}</th>" for title in titles)
        body = []
        for key, case in groupby(rows, key=lambda m: json.dumps(m.case)):
            piece = [f"<td>{number.get(key, '')}</td>"] if several else []
            body.append(f"<tr>{''.join([*piece, *cells(keys, contenders, list(case))])}</tr>")
        # A line each, as lines of more than 10,000 characters are an error.
        table = f'<table class="docutils"><tr>{heads}</tr>{chr(10).join(body)}</table>'
        parts.append(f'<div class="table-wrapper">{table}</div>')
    return "\n".join(parts)


def cells(keys: Iterable[str], contenders: Iterable[str], rows: list[Measurement]) -> Iterator[str]:
    """One case: its parameters, a cell for each contender, and the ratio."""
    yield from (f"<td>{escape(said(rows[0].case[key]))}</td>" for key in keys)
    ratio, there = next(ratios(rows), None), {m.contender: m for m in rows}
    yield f"<td>{ratio.value:.2f}</td>" if ratio else "<td></td>"
    best = min((m.seconds for m in rows if m.correct), default=math.nan)
    yield from (cell(there[name], best) if name in there else "<td></td>" for name in contenders)


def cell(measurement: Measurement, best: float) -> str:
    """Time, memory, and a word where the result does not count."""
    kind = "" if measurement.correct else " class=out"
    time = duration(measurement.seconds)
    time = f"<strong>{time}</strong>" if measurement.correct and measurement.seconds == best else time
    remark = first_line(measurement.note) or ("" if measurement.correct else f"not correct: {measurement.quality:.2g}")
    small = [escape(text) for text in (memory(measurement.peak_mib), remark.removeprefix("left out: ")[:60]) if text]
    quality = "" if math.isnan(measurement.quality) else f' title="quality {measurement.quality:.4g}"'
    return f"<td{kind}{quality}>{time}{''.join(f'<small>{text}</small>' for text in small)}</td>"


class SpeedTables(SphinxDirective):
    """All tables that have a file in ``docs/figures/speed``."""

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir) / "figures" / "speed"
        for name in TABLES:
            self.env.note_dependency(str(folder / f"{name}.json"))
        return self.parse_text_to_nodes(report(folder), allow_section_headings=True)


def report(folder: Path) -> str:
    """The reStructuredText of all tables of a folder."""
    found = {name: read(folder / f"{name}.json") for name in TABLES if (folder / f"{name}.json").is_file()}
    absent = [f"``otdml speed {name}``" for name in TABLES if name not in found]
    text = overview({name: measured for name, (measured, _) in found.items()}) + "\n\n" if found else ""
    text += f"Not measured here: {', '.join(absent)}.\n\n" if absent else ""
    return text + "".join(section(name, measured, places) for name, (measured, places) in found.items())


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("speed-tables", SpeedTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
