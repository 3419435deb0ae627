"""Text of unknown origin in a terminal that reads Rich's markup."""

from rich.markup import escape

from otdml._text import visible

__all__ = ["plain"]


def plain(text: str) -> str:
    r"""Text that is shown as it is: its square brackets are no markup, its control characters no commands.

    A file name may hold sequences that recolour, retitle or reprogram a terminal, and bytes that no encoding has.

    Example:
        >>> print(plain("[red]cat" + chr(27)))
        \[red]cat\x1b
    """
    return escape(visible(text))
