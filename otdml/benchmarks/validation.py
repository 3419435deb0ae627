"""Messages about wrong settings: one sentence per key, before anything runs."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from otdml._arguments import check_known
from otdml.benchmarks.fields import NUMBER, TABLE, Table
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.settings import (
    BACKBONES,
    Augment,
    NIROptions,
    PresetFile,
    RunModel,
    RunTraining,
    data_options_of,
    options_of,
)
from otdml.dml.config import TrainingConfig
from otdml.dml.losses import LOSSES
from otdml.dml.names import DispersionName

__all__ = ["check", "dotted", "preset_problems", "run_problems"]

MUST: Mapping[str, str] = {
    "missing": "be set",
    "int_type": "be an integer",
    "int_from_float": "be an integer",
    "int_parsing_size": "be an integer of fewer digits",
    "float_type": "be a number",
    "finite_number": "be finite",
    "bool_type": "be true or false",
    "string_type": "be text",
    "string_too_short": "not be empty",
    "too_short": "not be empty",
    "too_long": "have at most {max_length} entries",
    "list_type": "be a list",
    "dict_type": "be a table",
    "model_type": "be a table",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be below {lt}",
    "less_than_equal": "be at most {le}",
}
# Keys that a user may expect, and the settings that have their effect.
OF_METHOD = 'is set for each method: settings."proxy-anchor".{0}, or settings."proxy-anchor+nir".{0}'
OF_HEAD = 'belongs to the head: settings."proxy-anchor+nir".{0}'
ELSEWHERE: Mapping[str, str] = {
    "model.loss": "is the method's: --method, or compare in a preset",
    "model.dispersion": "is part of the method's name: --dispersion, or proxy-anchor+koleo:0.1 in compare",
    **{f"model.{key}": OF_METHOD.format(key) for key in ("loss_options", "loss_weight")},
    **{f"model.{key}": OF_HEAD.format(key) for key in ("nir_weight", "nir_options")},
    "model.seed": "is the run's: --seed of train, --seeds of benchmark",
    "training.seed": "is the run's: --seed of train, --seeds of benchmark",
    "model.num_classes": "follows from the data set",
    "data.fold": "belongs to --reality-check, which takes each fold in turn",
    "data.root": "is --root",
    "data.split": "follows from --hold-out",
    "data.transform": "follows from data.size",
}
BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: Sequence[str | int]) -> str:
    """A path of keys as TOML writes it.

    Example:
        >>> dotted(["settings", "proxy-anchor+nir", "lr", "proxies"])
        'settings."proxy-anchor+nir".lr.proxies'
    """
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if BARE.fullmatch(part) else f'"{part}"')
    return text


def check(name: str, problems: Sequence[str]) -> None:
    """Raise one error that lists all problems of ``name``, unless there are none."""
    if problems:
        raise ValueError(f"{name}: " + "\n".join(dict.fromkeys(problems)))


def preset_problems(content: Mapping[str, Any]) -> list[str]:
    """Problems of a preset, a sentence each."""
    found = _problems(PresetFile, content)
    if found:
        # Messages about consequences of a wrong key would be confusing.
        return found
    found += _data_problems(content["dataset"], content.get("data", {}))
    found += _model_problems(content["model"])
    found += _training_problems(content["training"])
    for name, settings in content.get("settings", {}).items():
        found += _method_problems(name, settings)
    return found


def run_problems(config: Mapping[str, Any]) -> list[str]:
    """Problems of the settings of a run, a sentence each."""
    model, data = config["model"], {key: value for key, value in config["data"].items() if key != "fold"}
    found = _data_problems(config["dataset"], data)
    found += _problems(Augment, config["augment"], "augment")
    found += _problems(RunTraining, config["training"], "training") or _training_problems(config["training"])
    wrong = _problems(RunModel, model, "model") or _model_problems(model)
    loss = model.get("loss", "proxy-anchor")
    if not wrong:
        wrong += _problems(options_of(loss), model.get("loss_options") or {}, "model", "loss_options")
        wrong += _problems(NIROptions, model.get("nir_options") or {}, "model", "nir_options")
        wrong += list(_whole_model_problems(model))
    if config["training"].get("crops") and model.get("frozen") is None:
        wrong.append("`training.crops` must be 0 for a network that trains as a whole: name a layer as `model.frozen`.")
    return found + wrong


def _problems(table: type[Table], content: Any, *prefix: str) -> list[str]:
    """Problems of a table: values of another type or out of range, and unknown keys."""
    try:
        table.model_validate(content)
    except ValidationError as error:
        # Misspelt keys first: a missing key may be one of them.
        errors = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        return [_sentence(one, table, prefix) for one in errors]
    return []


def _sentence(error: Mapping[str, Any], table: type[Table], prefix: Sequence[str]) -> str:
    key = [*prefix, *(part for part in error["loc"] if part not in (NUMBER, TABLE))]
    kind, context, got = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return _unknown(key, _fields(table, error["loc"][:-1]))
    if kind == "value_error":
        return f"`{dotted(key)}`: {context['error']}"
    bounds = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in context.items()}
    must = MUST[kind].format(**bounds) if kind in MUST else error["msg"].lower()
    return f"`{dotted(key)}` must {must}" + ("." if kind == "missing" else f", got {_shown(got)}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unknown(key: Sequence[str | int], known: Sequence[str]) -> str:
    """Message about an unknown key, with the key that has its effect, or the closest one."""
    whole = dotted(key)
    if whole in ELSEWHERE:
        return f"`{whole}` is not read: it {ELSEWHERE[whole]}."
    place = f"setting of {dotted(key[:-1])}" if len(key) > 1 else "key"
    return _message(check_known, place, str(key[-1]), known)


def _fields(table: type[Table], path: Sequence[str | int]) -> list[str]:
    """The keys of the table at a path below ``table``."""
    for part in path:
        found = _tables(table.model_fields[part].annotation) if part in table.model_fields else []
        table = found[0] if found else table
    return list(table.model_fields)


def _tables(annotation: Any) -> list[type[Table]]:
    """The tables that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for part in getattr(annotation, "__args__", ()) for table in _tables(part)]


def _message(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The message of the error that a function raises for its arguments, empty if it raises none."""
    try:
        function(*arguments, **options)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def _data_problems(dataset: str, data: Mapping[str, Any]) -> list[str]:
    return _problems(data_options_of(dataset), data, "data")


def _training_problems(training: Mapping[str, Any]) -> list[str]:
    """Problems that concern several keys: the metric to select by must be one that is computed."""
    settings = dict(training)
    if "ks" in settings:
        settings["ks"] = tuple(settings["ks"])
    said = _message(TrainingConfig, **settings)
    return [f"`training.select`: {said}"] if said else []


def _model_problems(model: Mapping[str, Any]) -> list[str]:
    name, options = model.get("backbone", "conv4"), model.get("backbone_options") or {}
    if name not in BACKBONES:
        # Networks of other libraries check their own options.
        return []
    found = _problems(BACKBONES[name], options, "model", "backbone_options")
    if not found and name == "resnet":
        depths, widths = options.get("depths", [2] * 4), options.get("widths", [0] * 4)
        if len(depths) != len(widths):
            must = f"name one number per width, {len(widths)}"
            found.append(f"`model.backbone_options.depths` must {must}, got {len(depths)}.")
    return found


def _method_problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    key = dotted(["settings", name])
    if said := _message(check_known, "method in settings", name, METHODS):
        return [said]
    method = METHODS[name]
    if method.arm == "+nir-control":
        head = dotted(["settings", f"{method.loss}+nir"])
        return [f"`{key}` is not read: the control arm has all settings of the head, {head}."]
    found = _problems(options_of(method.loss), settings.get("loss_options", {}), "settings", name, "loss_options")
    found += _problems(NIROptions, settings.get("nir_options", {}), "settings", name, "nir_options")
    if not method.arm:
        head = f"{method.loss}+nir" if f"{method.loss}+nir" in METHODS else "proxy-anchor+nir"
        own = [option for option in ("nir_weight", "nir_options") if option in settings]
        what = "is not read: it belongs to a head"
        found += [f"`{key}.{option}` {what}, {dotted(['settings', head, option])}." for option in own]
    elif settings.get("nir_weight", 1) == 0:
        found.append(f"`{key}.nir_weight` must be above 0, got 0: the arm without a flow is {method.loss}+nir-control.")
    return found


def _whole_model_problems(model: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the settings of a method together with those that all share."""
    rates = model.get("lr")
    if isinstance(rates, Mapping) and "backbone" not in rates:
        yield "`model.lr.backbone` must be set where rates are set by part: parts that are not named have it."
    loss, dispersion = model.get("loss", "proxy-anchor"), model.get("dispersion") or ""
    if dispersion and DispersionName.parsed(dispersion).place == "proxies" and not LOSSES[loss].has_proxies:
        yield f"`model.dispersion` {dispersion} is of proxies, and {loss} has none: leave out @proxies."
    if model.get("nir_weight") and model.get("dim", 64) < 2:
        yield "`model.dim` must be at least 2 for a NIR head, got 1."
