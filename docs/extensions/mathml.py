"""Formulas as MathML, which browsers draw themselves: no script, no font and no network.

A formula that cannot be converted is a warning, so that a build with warnings as errors has none.
"""

from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)
CONVERTER = LatexToMathML(fancy_error=False)


def mathml(formula: str, *, block: bool = False) -> str:
    """The ``<math>`` element of a formula; lines of a block are parted by ``\\\\`` or by an empty line."""
    lines = [line for line in formula.split("\n\n") if line.strip()]
    formula = r" \\ ".join(lines)
    if block and r"\\" in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    return CONVERTER.convert_with_local_state(formula, displaystyle=block)


def _visit(translator: HTML5Translator, node: nodes.Element, tag: str) -> None:
    try:
        found = mathml(node.astext(), block=tag == "div")
    except LatexError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        found = translator.encode(node.astext())
    translator.body.append(translator.starttag(node, tag, "", CLASS="math notranslate nohighlight") + found)
    translator.body.append(f"</{tag}>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    inline, block = (lambda self, node, tag=tag: _visit(self, node, tag) for tag in ("span", "div"))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
