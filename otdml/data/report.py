"""The findings of a check of a data set."""

from dataclasses import dataclass, field

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The findings of a check; ``str`` makes text of them.

    Attributes:
        name: Name of the data set.
        root: Where it was looked for.
        there: What is there, a line each.
        wrong: What is missing or damaged, a line each; empty if the set can be used as published.
        remedy: What to do about it.
    """

    name: str
    root: str
    there: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    remedy: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing or damaged."""
        return not self.wrong

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.root}: {'complete' if self.complete else 'not complete'}"]
        lines += [f"  + {line}" for line in self.there] + [f"  - {line}" for line in self.wrong]
        return "\n".join([*lines, self.remedy] if self.wrong and self.remedy else lines)
