"""A study in the terminal: the list of studies, the progress of one, and its table."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from otdml._tables import fitting
from otdml.studies import cells
from otdml.studies.protocol import Score, Study
from otdml.studies.report import Report

__all__ = ["show_studies", "show_study", "watch_study"]


def show_studies(console: Console, topics: Mapping[str, Sequence[Study]], folder: Path) -> None:
    """The studies on each topic, with how much of each has been run in ``folder``."""
    longest = max(len(study.name) for studies in topics.values() for study in studies)
    for topic, studies in topics.items():
        table = Table(title=f"[bold]{escape(topic)}[/]", title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("study", no_wrap=True, header_style="dim", min_width=longest)
        table.add_column("cells", no_wrap=True, header_style="dim")
        table.add_column("question", header_style="dim", overflow="fold")
        for study in studies:
            wanted = cells.cells(study, folder / study.name)
            done = sum(cell.path.exists() for cell in wanted)
            needs = f" [dim]Needs --data: {escape(study.needs)}.[/]" if study.needs else ""
            table.add_row(study.name, f"{done} of {len(wanted)}", escape(study.question) + needs)
        console.print(Padding(table, (0, 0, 1, 0)))


def watch_study(
    console: Console, study: Study, wanted: Sequence[cells.Cell], progress: Iterable[cells.Progress]
) -> None:
    """Show progress until it ends, with one line for each cell that has finished."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    done = sum(cell.path.exists() for cell in wanted)
    with Progress(*columns, console=console, transient=True) as bars:
        whole = bars.add_task("[bold]cells", total=len(wanted), completed=done)
        part = bars.add_task("", total=None)
        for state in progress:
            if state.result is not None:
                done += 1
                bars.update(whole, completed=done)
                score = study.scores[0]
                value = f"{state.result.scores[score.name]:.{score.digits}f}"
                title, seconds = escape(f"{state.cell.title}: {score.title}"), f"{state.result.seconds:.0f} s"
                line = f"[green]✓[/] {title} {value} in {seconds}"
                bars.console.print(line, highlight=False)
            elif state.reading is None:
                bars.reset(part, description=escape(state.cell.title), total=None)
            else:
                bars.update(part, total=state.reading.of, completed=state.reading.step)


def show_study(console: Console, found: Report) -> None:
    """The question, the mean of each score with its 95% interval, and the answer as one sentence per arm."""
    console.print(f"[bold]{escape(found.question)}[/]", highlight=False)
    console.print(escape(found.method), highlight=False)
    for table in fitting(console, found.scores if found.runs else (), partial(_figures, found)):
        console.print(table)
    for difference in found.differences():
        console.print(escape(difference.sentence()), highlight=False)
    if absent := [arm.name for arm in found.arms if not found.of(arm.name)]:
        console.print(f"[dim]Not run yet: {escape(', '.join(absent))}.[/]", highlight=False)
    spent = f"{found.hours:.2f} hours, {found.processor_hours:.2f} hours of a processor"
    console.print(f"[dim]{len(found.runs)} cells: {spent}.[/]", highlight=False)


def _figures(found: Report, scores: Sequence[Score]) -> Table:
    """A row per arm that has been run, and a column per score. Only names are wrapped."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm", overflow="fold")
    for name in ("seeds", *(score.title for score in scores)):
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    for arm in found.arms:
        if count := len(found.of(arm.name)):
            figures = [found.text(arm.name, score) for score in scores]
            table.add_row(escape(arm.name), f"{count} of {len(found.seeds)}", *figures)
    return table
