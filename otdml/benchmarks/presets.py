"""How a data set is benchmarked: one declarative file per protocol."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from otdml._checks import argument_error, check_known
from otdml.benchmarks.methods import METHODS, Method, parts
from otdml.benchmarks.methods import method as known_method

__all__ = ["Preset", "Published", "preset", "preset_files"]

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Published:
    """A figure from the literature, to stand beside ours.

    Attributes:
        method: A method of :data:`METHODS`, or the name its authors gave it.
        metric: Key of the metric, e.g. ``"recall@1"``.
        value: The figure, in [0, 1].
        source: Who published it, and with which network.
        second_hand: Whether it was taken from another paper than its authors'.
    """

    method: str
    metric: str
    value: float
    source: str
    second_hand: bool = False


@dataclass(frozen=True)
class Preset:
    """Data, network, budget and tuned settings of one benchmark, read from ``presets/NAME.toml``.

    Attributes:
        name: File name without its suffix.
        title: One line on what is compared.
        dataset: Key of the data set.
        data: Its arguments (protocol, image size, ...).
        augment: Arguments of the augmentation; none if empty.
        model: Arguments of :class:`~otdml.dml.ProxyDML` that all methods share.
        training: Arguments of :class:`~otdml.dml.TrainingConfig`.
        compare: Names of the methods to run unless told otherwise.
        seeds: Number of seeds unless told otherwise.
        settings: Settings tuned on held-out training classes, by method. Those of a loss hold for its ``+nir`` arm
            as well, and those of that arm for its control.
        published: Figures of the literature.
        note: What a reader of the figures should know.
    """

    name: str
    title: str
    dataset: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    compare: tuple[str, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    note: str = ""

    def method(self, name: str) -> Method:
        """The method of that name, with the settings tuned for this benchmark.

        A dispersion loss adds to a method, and changes none of its settings.

        Raises:
            ValueError: There is no such method; the message lists those there are.
        """
        known = known_method(name)
        tuned = METHODS[known.loss].changed(self.settings.get(known.loss, {}))
        if not known.arm:
            return replace(tuned, dispersion=known.dispersion)
        own = {key: getattr(tuned, key) for key in ("loss_options", "loss_weight", "lr", "weight_decay")}
        shared = own | {"warmup_epochs": tuned.warmup_epochs, "frozen_epochs": tuned.frozen_epochs}
        head = METHODS[f"{known.loss}+nir"].changed(shared).changed(self.settings.get(f"{known.loss}+nir", {}))
        return replace(head if known.arm == "+nir" else head.control, dispersion=known.dispersion)


def preset_files() -> dict[str, Path]:
    """The files of all presets that come with the library, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def preset(name: str | Path) -> Preset:
    """The preset of that name, or in that TOML file.

    Raises:
        ValueError: There is no such preset, or its file does not say what it must.

    Example:
        >>> preset("digits").dataset
        'digits'
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = preset_files()[check_known("benchmark", str(name), preset_files())]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    return _parsed(path, content)


def _parsed(path: Path, content: dict[str, Any]) -> Preset:
    names = [f.name for f in fields(Preset)]
    for key in content:
        check_known(f"key in {path.name}", key, names)
    missing = {"title", "dataset", "model", "training", "compare"} - set(content)
    if missing:
        raise argument_error(path.name, f"set {', '.join(sorted(missing))}", sorted(content))
    for name in [*("".join(parts(one)[:2]) for one in content["compare"]), *content.get("settings", {})]:
        check_known(f"method in {path.name}", name, METHODS)
    content["published"] = tuple(Published(**entry) for entry in content.get("published", ()))
    return Preset(name=path.stem, **content | {"compare": tuple(content["compare"])})
