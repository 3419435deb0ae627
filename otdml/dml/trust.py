"""What hyper-parameters of a file may say of networks: names of those that run no foreign code and load no file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otdml._arguments import argument_error
from otdml.dml.backbones import BACKBONES

__all__ = ["check_modules", "check_names"]

# Libraries whose networks a file may name, by a plain name of their registries.
_REGISTRIES = ("timm", "torchvision", "hf")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# Options of networks that say where code, weights or files come from.
_SOURCES = re.compile("remote|code|trust|auto_map|revision|path|file|dir|url|hub|cfg|weights|token|proxies|kernel")


def check_names(settings: Mapping[str, Any], origin: str | Path, remedy: str = "Pass trust=True") -> None:
    """Raise unless what hyper-parameters of unknown origin name is known to run no code, and to load no file.

    These are the networks of this library; and those in the registries of timm, torchvision and transformers by a plain
    name, without weights, with numbers as options.

    Args:
        settings: Arguments of :class:`~otdml.dml.ProxyDML`.
        origin: The file that they are from.
        remedy: How to load it all the same.

    Raises:
        ValueError: The message names the file and the setting.
    """
    name, options = settings.get("backbone", "conv4"), settings.get("backbone_options") or {}
    where = f"{origin} names the network {name!r}"
    refusal = f"which could load files or run code of others. {remedy} if you know where the file is from."
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise ValueError(f"{origin} is damaged: its backbone is {name!r} with options {options!r}.")
    library, _, own = name.partition("/")
    if name not in BACKBONES and (library not in _REGISTRIES or not _PLAIN_NAME.fullmatch(own)):
        raise ValueError(f"{where}, {refusal}")
    if name not in BACKBONES and options.get("pretrained") is not False:
        raise ValueError(f"{where} with weights of its library, {refusal}")
    if library == "hf" and not _is_known(own):
        raise ValueError(f"{where}, which is none of those that transformers has built in, {refusal}")
    allowed = ("pretrained", *(("block",) if name in BACKBONES else ()))
    for key, value in options.items():
        if key not in allowed and (_SOURCES.search(str(key)) or not _is_numeric(value)):
            raise ValueError(f"{where} with the option {key} = {value!r}, {refusal}")


def _is_known(name: str) -> bool:
    """Whether transformers makes a network of this name from its own code; so it is where transformers is absent."""
    try:
        from transformers import CONFIG_MAPPING
    except ModuleNotFoundError:
        # The library is not installed, so that the network cannot be made.
        return True
    return name in CONFIG_MAPPING


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_numeric(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float)


def check_modules(settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise for a network or a loss that was a module, of which settings say nothing, and that is not given."""
    for name in ("backbone", "loss"):
        if name not in settings and name not in given:
            remedy = f"Pass `{name}`, made as it was then."
            raise argument_error(name, "be given, as it was a module", "nothing", remedy)
