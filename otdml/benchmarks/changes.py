"""Settings that are changed on the command line: their notation, and whether they have an effect."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otdml._arguments import check_known
from otdml.benchmarks.methods import METHODS, Method, parts
from otdml.benchmarks.validation import dotted
from otdml.data.registry import named_dataset
from otdml.dml.losses import LOSSES
from otdml.dml.names import PART_NAMES

if TYPE_CHECKING:
    from otdml.benchmarks.presets import Preset

__all__ = ["TABLES", "Key", "leaves", "merged", "nested", "overridden", "parsed", "unread"]

Key = tuple[str, ...]
TABLES = ("model", "training", "data", "augment", "settings")
# Other keys of a preset, and what changes them.
OPTIONS = {"seeds": "--seeds", "compare": "--method", "dataset": "--dataset", "weights": "--weights"}
SEGMENT = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z0-9_+-]+))\s*(?:\.|$)""")
FORM = "--set must be KEY=VALUE, such as training.epochs=3 or model.backbone=resnet18"


def parsed(text: str) -> tuple[Key, Any]:
    """Key and value of ``KEY=VALUE``: VALUE is TOML, or Python, or else a text without quotes.

    Example:
        >>> parsed("model.freeze_bn=False"), parsed("model.backbone=resnet18")
        ((('model', 'freeze_bn'), False), (('model', 'backbone'), 'resnet18'))
    """
    written, equals, value = text.partition("=")
    key = tuple(_segments(written))
    if not equals or not key or "\n" in text:
        raise ValueError(f"{FORM}, got {text!r}.")
    if key[0] in OPTIONS:
        raise ValueError(f"--set {key[0]}: it is {OPTIONS[key[0]]} that sets this.")
    if len(key) == 1:
        raise ValueError(f"{FORM}, got {text!r}.")
    check_known("table to --set", key[0], TABLES)
    return key, _value(value.strip(), text)


def _segments(written: str) -> Iterator[str]:
    """The parts of a dotted key; none if it is not one."""
    found, place = [], 0
    while place < len(written):
        match = SEGMENT.match(written, place)
        if not match:
            return
        found.append(match[1] or match[2] or match[3])
        place = match.end()
    if not written.rstrip().endswith("."):
        yield from found


def _value(text: str, whole: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        pass
    try:
        # Python's notation of booleans, None and numbers such as .5.
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if not text or text[0] in "[{\"'":
            remedy = "VALUE is TOML: 3, 1e-3, true, [1, 2], { backbone = 1e-3 }, or a text"
            raise ValueError(f"--set cannot read the value in {whole!r}: {remedy}.") from None
        return text
    return list(value) if isinstance(value, tuple) else value


def nested(key: Key, value: Any) -> dict[str, Any]:
    """The table in which ``key`` has ``value``.

    Example:
        >>> nested(("model", "lr", "head"), 0.1)
        {'model': {'lr': {'head': 0.1}}}
    """
    for part in reversed(key):
        value = {part: value}
    return value


def leaves(content: Mapping[str, Any], above: Key = ()) -> dict[Key, Any]:
    """Every key below the tables of ``content`` with its value.

    Example:
        >>> leaves({"model": {"dim": 8, "lr": {"head": 0.1}}})
        {('model', 'dim'): 8, ('model', 'lr', 'head'): 0.1}
    """
    found: dict[Key, Any] = {}
    for name, value in content.items():
        key = (*above, name)
        found |= leaves(value, key) if isinstance(value, Mapping) and value else {key: value}
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; of all else, what is above. Another backbone leaves the options of the former."""
    found = dict(below)
    if "backbone" in above and above["backbone"] != below.get("backbone", "conv4"):
        found.pop("backbone_options", None)
    for key, value in above.items():
        earlier = found.get(key)
        both = isinstance(value, Mapping) and isinstance(earlier, Mapping)
        found[key] = merged(earlier, value) if both else value  # type: ignore[arg-type]
    return found


def unread(preset: "Preset", keys: Iterable[Key], methods: Sequence[str], hold_out: bool = True) -> list[str]:
    """Keys whose value would not take effect in the intended runs, with the key that overrides it.

    Args:
        preset: What is run.
        keys: Keys that somebody has set.
        methods: Names of the methods that are run.
        hold_out: Whether classes are held out for validation.
    """
    keys = list(keys)
    found = [_without_effect(preset, key, methods, hold_out) or _of_none(key, methods) for key in keys]
    return [said for said in found if said] or overridden(preset, keys, methods)


def overridden(preset: "Preset", keys: Iterable[Key], methods: Sequence[str]) -> list[str]:
    """Keys of the model that settings of a method override, unless these are among the keys, too."""
    keys = [one for key in keys for one in _by_part(preset, key)]
    found = [_overridden(preset, key, methods, keys) for key in keys if key[0] == "model"]
    return [said for said in found if said]


def _by_part(preset: "Preset", key: Key) -> list[Key]:
    """A rate of the whole model is that of each part."""
    rates = preset.model.get(key[1]) if key[0] == "model" and len(key) == 2 else None
    if key[1] in ("lr", "weight_decay") and rates is not None and not isinstance(rates, Mapping):
        return [(*key, part) for part in PART_NAMES if part != "flow"]
    return [key]


def _without_effect(preset: "Preset", key: Key, methods: Sequence[str], hold_out: bool) -> str:
    """Message that a key has no effect beside another setting, as far as that is known."""
    heads = [name for name in methods if parts(name)[1] == "+nir"]
    proxies = [name for name in methods if LOSSES[parts(name)[0]].has_proxies]
    schedule, epochs = preset.model.get("schedule", "cosine"), preset.training.get("epochs", 30)
    photographs = named_dataset(preset.dataset).ink is None
    reasons = {
        ("model", "frozen_epochs"): preset.model.get("frozen_epochs", 0) > epochs and f"training has {epochs} epochs",
        ("model", "step_epochs"): schedule != "step" and f"model.schedule is {schedule}, and it belongs to step",
        ("model", "step_factor"): schedule != "step" and f"model.schedule is {schedule}, and it belongs to step",
        ("training", "select"): not hold_out and "no epoch is selected without --hold-out",
        ("training", "val_every"): not hold_out and "nothing is validated without --hold-out",
        ("training", "workers"): not photographs and f"the images of {preset.dataset} live in memory",
        ("training", "maps"): not preset.training.get("crops") and "nothing is kept without training.crops",
        ("model", "lr", "proxies"): not proxies and "no method with proxies is run",
        ("model", "weight_decay", "proxies"): not proxies and "no method with proxies is run",
        ("model", "lr", "flow"): not heads and "no method with a flow is run: +nir",
        ("model", "weight_decay", "flow"): not heads and "no method with a flow is run: +nir",
    }
    reason = reasons.get(key)
    if key[0] == "settings" and key[2:] == ("nir_options", "cap"):
        objective = preset.method(key[1]).nir_options.get("objective", "nll")
        reason = objective != "exp_nll" and f"the objective is {objective}, and it belongs to exp_nll"
    return f"`{dotted(key)}` has no effect here: {reason}." if reason else ""


def _overridden(preset: "Preset", key: Key, methods: Sequence[str], keys: Sequence[Key]) -> str:
    """Message that settings of a method override a setting of all, unless they are set, too."""
    for name in methods:
        for later in _settings_of(preset.method(name)):
            own = ("settings", later, *key[1:])
            if own not in keys and _has(preset.settings.get(later, {}), key[1:]):
                return (
                    f"`{dotted(key)}` does not reach {name}: `{dotted(own)}` comes later. "
                    "Set that as well, or name the methods that are meant with --method."
                )
    return ""


def _settings_of(method: Method) -> list[str]:
    """Names of the settings that apply to a method, highest precedence first."""
    return [f"{method.loss}+nir", method.loss] if method.arm else [method.loss]


def _has(settings: Any, key: Key) -> bool:
    for part in key:
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True


def _of_none(key: Key, methods: Sequence[str]) -> str:
    """Message that a change is for a method that is not run."""
    if key[0] != "settings":
        return ""
    loss, arm, _ = parts(key[1])
    of_head = key[2] in ("nir_weight", "nir_options")
    reached = [name for name in methods if loss == parts(name)[0] and (parts(name)[1] or not arm)]
    reached = [name for name in reached if parts(name)[1] == "+nir"] if of_head else reached
    if reached or key[1] not in METHODS:
        return ""
    return f"`{dotted(key)}` has no effect here: {key[1]} is not run. Name it with --method."
