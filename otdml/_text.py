"""Text of unknown origin, such as names of files, made safe to display."""

from unicodedata import category

__all__ = ["in_one_line", "visible"]

# Marks that change the direction of text, by which one name can be made to look like another.
_DIRECTIONS = frozenset(map(chr, [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]))


def in_one_line(text: str) -> str:
    r"""Text as by :func:`visible`, line ends and tabs as escapes too: for lists of a line each.

    Example:
        >>> print(in_one_line("two" + chr(10) + "lines.jpg"))
        two\nlines.jpg
    """
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def visible(text: str) -> str:
    r"""Text with control characters, marks of direction and lone surrogates as escapes; line ends and tabs stay.

    Example:
        >>> print(visible(chr(27) + "[31mred.jpg"))
        \x1b[31mred.jpg
    """
    # Cc: control characters, Cs: bytes that are no UTF-8.
    hidden = {c for c in text if c in _DIRECTIONS or (category(c) in ("Cc", "Cs") and c not in "\n\t")}
    return "".join(ascii(c)[1:-1] if c in hidden else c for c in text)
