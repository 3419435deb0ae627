"""English text that is there without a download: docstrings of installed packages and Python's own manual."""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from otdml._arguments import argument_error
from otdml._checks import check_integer

__all__ = ["Corpus", "corpus", "docstrings", "manual", "tokens"]

UNKNOWN = "<unknown>"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Corpus:
    """Text as numbers of its tokens.

    Attributes:
        words: The vocabulary, the most frequent token first; the last one stands for all others.
        train: Tokens to fit to, shape (n,).
        test: Tokens of other texts, shape (m,).
    """

    words: Sequence[str]
    train: Tensor
    test: Tensor


def docstrings(package: str) -> list[str]:
    """All docstrings of an installed package, one text per module, read from its files without importing them.

    Args:
        package: Its name, e.g. ``"numpy"``. Folders and files whose name begins with ``test`` are left out.

    Raises:
        ValueError: It is not installed.
    """
    try:
        found = find_spec(package)
    except (ImportError, ValueError, AttributeError):  # A part of no package, a relative name, or no name.
        found = None
    if found is None or not found.submodule_search_locations:
        raise argument_error("package", "be installed, and be a folder", package)
    root = Path(found.submodule_search_locations[0])
    files = (path for path in sorted(root.rglob("*.py")) if not _tests(path.relative_to(root)))
    return [text for path in files if (text := "\n\n".join(_docstrings(path)))]


def manual() -> list[str]:
    """The topics of ``help()``: parts of Python's manual, one text per topic."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return [topics[name] for name in sorted(topics)]


def tokens(text: str) -> list[str]:
    """Words in small letters, and marks of sentences; digits and all else are left out.

    Example:
        >>> tokens("The 3 values (of x), as floats.")
        ['the', 'values', '(', 'of', 'x', ')', ',', 'as', 'floats', '.']
    """
    return re.findall(r"[a-z]+|[.,;:()]", text.lower())


def corpus(texts: Iterable[str], vocabulary: int, *, every: int = 10) -> Corpus:
    """Texts as numbers of tokens, of which some are held out.

    A paragraph that has come before is left out, so that nothing held out is among what a model is fitted to, word
    for word.

    Args:
        texts: Two or more, in order; the first, and then every ``every``-th, is held out.
        vocabulary: Number of tokens; all but the most frequent of the training texts become one.
        every: See above; two or more.

    Example:
        >>> found = corpus(["b a c", "a a", "a b", "a b"], 3, every=4)
        >>> found.words, found.train, found.test
        (('a', 'b', '<unknown>'), tensor([0, 0, 0, 1]), tensor([1, 0, 2]))
    """
    vocabulary, every = check_integer("vocabulary", vocabulary), check_integer("every", every, least=2)
    if isinstance(texts, str):
        raise argument_error("texts", "be several texts", "one", "Write `[texts]` for one.", TypeError)
    parts: tuple[list[str], list[str]] = [], []
    seen: set[str] = set()
    for i, text in enumerate(texts):
        for paragraph in re.split(r"\n\s*\n", text):
            words = tokens(paragraph)
            if (key := " ".join(words)) not in seen:
                seen.add(key)
                parts[i % every > 0].extend(words)
    held_out, known = parts
    if not (known and held_out):
        found = f"{len(known)} words to train on and {len(held_out)} to test on"
        raise argument_error("texts", "hold words of both parts", found)
    frequent = tuple(word for word, _ in Counter(known).most_common(vocabulary - 1))
    number = {word: i for i, word in enumerate(frequent)}
    train, test = (torch.tensor([number.get(word, len(frequent)) for word in part]) for part in (known, held_out))
    return Corpus((*frequent, UNKNOWN), train, test)


def _tests(path: Path) -> bool:
    return any(part.startswith("test") for part in path.parts)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        # Escapes that Python does not know are warned of; a text does not depend on what becomes of warnings.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # A file of another version of Python, or of another encoding.
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (found := ast.get_docstring(node)):
            yield found
