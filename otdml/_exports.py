"""Public names of a package, imported on first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["exports"]


def exports(
    package: str, homes: Mapping[str, str], *, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose import loads none of its modules.

    Args:
        package: Its name.
        homes: The module below it that defines each public name.
        extra: The extra of this library that brings what these modules import, which an error then names.
    """

    def get(name: str) -> Any:
        if name not in homes:
            there = ", ".join(sorted(homes))
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {there}")
        try:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if extra is None or missing == "otdml":
                raise
            raise ModuleNotFoundError(f"{name} needs {missing}: pip install 'otdml[{extra}]'", name=missing) from error

    def names() -> list[str]:
        return [*vars(sys.modules[package]), *homes]

    return get, names
