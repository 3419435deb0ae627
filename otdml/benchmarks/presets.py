"""How a data set is benchmarked: one declarative file per protocol."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from otdml._checks import argument_error, check_known
from otdml.benchmarks.methods import METHODS, Method, parts
from otdml.benchmarks.methods import method as known_method

__all__ = ["Preset", "Published", "Weights", "named", "preset", "preset_files"]

FOLDER = Path(__file__).parent / "presets"
T = TypeVar("T")


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
class Weights:
    """The pretrained weights that the published figures of a preset start from.

    Attributes:
        what: Of which network, trained on what.
        address: Where they are published.
    """

    what: str
    address: str


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
        weights: Pretrained weights to start from; None where networks start from random ones.
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
    weights: Weights | None = None
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

    def starting_from(self, weights: str | Path | None) -> "Preset":
        """This preset with its backbone starting from the file ``weights``, or from random numbers if ``"none"``.

        Raises:
            ValueError: The preset needs weights and none are given, or the other way round, or there is no such file.
        """
        options = dict(self.model.get("backbone_options", {}))
        if str(weights) == "none":
            # Other libraries would download their own weights unless told not to.
            elsewhere = "/" in str(self.model.get("backbone")) and "weights" not in options
            return self._with({**options, "pretrained": False}) if elsewhere else self
        if weights is None and ("weights" in options or self.weights is None):
            return self
        if weights is None:
            raise ValueError(f"{self.name} starts from pretrained weights, and none are given. {_remedy(self.weights)}")
        if self.weights is None:
            raise ValueError(f"{self.name} starts from random weights: --weights is not for it.")
        if not Path(weights).exists():
            raise ValueError(f"--weights: there is no file {weights}. {_remedy(self.weights)}")
        return self._with({**options, "weights": str(Path(weights).resolve())})

    def _with(self, options: Mapping[str, Any]) -> "Preset":
        return replace(self, model={**self.model, "backbone_options": options})


def _remedy(weights: Weights | None) -> str:
    known = f"Get those of {weights.what} from {weights.address}, and pass" if weights else "Pass"
    return f"{known} --weights FILE; or --weights none to start from random ones, far below the published figures."


def preset_files() -> dict[str, Path]:
    """The files of all presets that come with the library, by name."""
    found = {path.stem: path for path in FOLDER.glob("[!_]*.toml")}
    return {name: found[name] for name in sorted(found)}


def preset(name: str | Path, changes: Sequence[str] = ()) -> Preset:
    """The preset of that name, or in that TOML file.

    Args:
        name: A name of :func:`preset_files`, or the path of a ``.toml`` file.
        changes: Settings on top of it, as ``"training.epochs=3"``: lines of TOML, in which a text needs no quotes.

    Raises:
        ValueError: There is no such preset, or its file does not say what it must.

    Example:
        >>> preset("digits", ["training.epochs=3"]).training["epochs"]
        3
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = preset_files()[check_known("benchmark", str(name), preset_files())]
    content = _extended(path)
    for change in changes:
        content = _merged(content, _change(change))
    return _parsed(path, content)


def named(
    dataset: str | None, protocol: str | None = None, path: Path | None = None, changes: Sequence[str] = ()
) -> Preset:
    """The preset of a data set and its protocol, or of the file ``path``; ``changes`` as for :func:`preset`.

    Raises:
        ValueError: None is named, or one that is not there; the message says which there are.

    Example:
        >>> named("omniglot", "small").name
        'omniglot-small'
    """
    if path is not None:
        if protocol:
            raise ValueError("--protocol belongs to --dataset: the file of --preset says its own.")
        return preset(path, changes)
    known = preset_files()
    if dataset is None:
        raise ValueError(f"name a data set with --dataset, or a file with --preset. There is {', '.join(known)}.")
    protocols = [name.removeprefix(f"{dataset}-") for name in known if name.startswith(f"{dataset}-")]
    if protocols and protocol is None and dataset not in known:
        raise ValueError(
            f"{dataset} has several protocols: say which with --protocol {' or --protocol '.join(protocols)}."
        )
    if protocol and (protocols or dataset in known):
        check_known(f"protocol of {dataset}", protocol, protocols)
    return preset(f"{dataset}-{protocol}" if protocol else dataset, changes)


def _extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a file on top of what it extends."""
    if path.resolve() in below:
        raise ValueError(f"{path} extends itself, by way of {', '.join(place.name for place in below)}.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    names = content.pop("extends", [])
    found: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        found = _merged(found, _extended(_place(name, path.parent), (*below, path.resolve())))
    return _merged(found, content)


def _place(name: str, folder: Path) -> Path:
    """The file that ``name`` means in a preset of ``folder``."""
    if name.endswith(".toml"):
        return folder / name
    known = {path.stem: path for path in FOLDER.glob("*.toml")}
    return known[check_known("preset to extend", name, known)]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; of all else, what is above."""
    merged = dict(below)
    for key, value in above.items():
        earlier = merged.get(key)
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            merged[key] = _merged(earlier, value)
        else:
            merged[key] = value
    return merged


def _change(text: str) -> dict[str, Any]:
    """A setting of the command line as a table, e.g. ``training.epochs=3``."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ValueError(
            f"--set must be KEY=VALUE, such as training.epochs=3 or model.backbone=resnet18, got {text!r}."
        )
    for line in (text, f"{key} = {json.dumps(value.strip())}"):
        try:
            return tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
    raise ValueError(f"--set cannot read {text!r}: KEY is a path such as model.dim, VALUE is TOML.")


def _parsed(path: Path, content: dict[str, Any]) -> Preset:
    names = [f.name for f in fields(Preset)]
    for key in content:
        check_known(f"key in {path.name}", key, names)
    missing = {"title", "dataset", "model", "training", "compare"} - set(content)
    if missing:
        raise argument_error(path.name, f"set {', '.join(sorted(missing))}", sorted(content))
    for name in [*("".join(parts(one)[:2]) for one in content["compare"]), *content.get("settings", {})]:
        check_known(f"method in {path.name}", name, METHODS)
    content["published"] = tuple(_table(path, Published, entry) for entry in content.get("published", ()))
    if "weights" in content:
        content["weights"] = _table(path, Weights, content["weights"])
    return Preset(name=path.stem, **content | {"compare": tuple(content["compare"])})


def _table(path: Path, kind: type[T], entry: Mapping[str, Any]) -> T:
    try:
        return kind(**entry)
    except TypeError as error:
        raise ValueError(f"{path.name}, {kind.__name__.lower()}: {error}.") from error
