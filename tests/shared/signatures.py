"""The options of every public signature, for tests that hold all of them to one law."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["PACKAGES", "parameters"]

PACKAGES = (
    *("otdml.ot", "otdml.losses", "otdml.losses.dispersion", "otdml.dml", "otdml.data", "otdml.dml.backbones"),
    *("otdml.kernel_sums", "otdml.sphere", "otdml.neighbors", "otdml.kmeans", "otdml.distributed", "otdml.measures"),
    *("otdml.plot", "otdml.disentanglement", "otdml.contrast", "otdml.language", "otdml.studies"),
    *("otdml.costs", "otdml.kernels"),
)


def members(name: str, thing: Any) -> dict[str, Callable[..., Any]]:
    """A public name, and the public methods of a class."""
    found = {name: thing}
    if inspect.isclass(thing):
        kinds = (classmethod, staticmethod)
        found |= {
            f"{name}.{key}": getattr(thing, key)
            for key, value in vars(thing).items()
            if not key.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
        }
    return {label: member for label, member in found.items() if callable(member)}


def parameters() -> Iterator[tuple[str, Callable[..., Any], inspect.Parameter]]:
    """Name, callable and parameter, for every parameter of every public signature."""
    seen: dict[str, Any] = {}
    shown = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            for label, member in members(name, getattr(module, name)).items():
                if seen.setdefault(label, member) == member and label not in shown:
                    shown.add(label)
                elif seen[label] == member:
                    continue
                else:
                    # Two functions of one name, in two packages.
                    label = f"{package.removeprefix('otdml.')}.{label}"
                for parameter in inspect.signature(member).parameters.values():
                    yield label, member, parameter
