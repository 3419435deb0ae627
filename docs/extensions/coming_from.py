"""The directive ``coming-from``: calls of other libraries beside ours, from the rows that a test runs.

Each library is a section: what its tensors are, the imports, a pair of texts for each row, and what is not here.
"""

from collections.abc import Iterator
from typing import Any

from coming_from import PEERS, Absent, Peer, Row
from docutils import nodes
from extensions.speed_tables import list_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def page(peers: tuple[Peer, ...] = PEERS) -> str:
    """The reStructuredText of all sections."""
    return "\n\n".join(part for peer in peers for part in section(peer)) + "\n"


def section(peer: Peer) -> Iterator[str]:
    """Everything about one library."""
    yield f"{peer.name}\n{'-' * len(peer.name)}\n\n{peer.setting}"
    yield pair(peer.name, peer.theirs, peer.ours)
    for row in peer.rows:
        yield f".. rubric:: {row.name}\n   :heading-level: 3\n\n{told(peer, row)}"
        yield pair(peer.name, row.theirs, row.ours)
    yield ".. rubric:: Not here, or another thing\n   :heading-level: 3"
    yield list_table(("there", "here"), [cells(one) for one in peer.absent], "40 60", "stacked absent")


def told(peer: Peer, row: Row) -> str:
    """The note, in what derivatives are the same, and from which version of theirs on."""
    slopes = " and ".join(f"``{name}``" for name in row.gradients)
    since = f" Since {peer.name} {row.since}." if row.since else ""
    return row.note + (f" The same gradient in {slopes}." if slopes else "") + since


def pair(name: str, theirs: str, ours: str) -> str:
    """Two texts side by side."""
    return "\n\n".join([".. container:: beside", block(name, theirs), block("otdml", ours)])


def block(name: str, text: str) -> str:
    lines = [
        ".. code-block:: python",
        f"   :caption: {name}",
        "",
        *(f"   {line}".rstrip() for line in text.split("\n")),
    ]
    return "\n".join(f"   {line}".rstrip() for line in lines)


def cells(absent: Absent) -> tuple[str, str]:
    return ", ".join(f"``{name}``" for name in absent.names), absent.instead.replace("\n", " ")


class ComingFrom(SphinxDirective):
    """The sections of all libraries."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(page(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("coming-from", ComingFrom)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
