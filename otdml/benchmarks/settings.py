"""What can be set: the tables of a preset, with the type and the range of every key.

One class per table, whose fields are the parameters of what the table reaches; a test holds them to its signature. They
are read without torch, so that a wrong word is refused at once. Nothing is converted: ``"64"`` is no number, and
``"False"`` no boolean.
"""

import inspect
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, Field, PlainValidator, create_model

from otdml._arguments import check_known
from otdml.benchmarks.fields import (
    Count,
    Magnitude,
    Neighbours,
    NumberOrRates,
    OnCorrupt,
    Positive,
    Rates,
    Share,
    Table,
    Text,
    Whole,
    Width,
    one_of,
)
from otdml.benchmarks.methods import METHODS, parts
from otdml.data.registry import DATASETS, named_dataset
from otdml.dml.losses import LOSSES
from otdml.dml.names import DispersionName

__all__ = [
    "BACKBONES",
    "DATA_OPTIONS",
    "LOSS_OPTIONS",
    "Augment",
    "Figure",
    "MethodSettings",
    "Model",
    "NIROptions",
    "PresetFile",
    "RunModel",
    "RunTraining",
    "Table",
    "Training",
    "WeightsOf",
    "data_options_of",
    "options_of",
]

LIBRARIES = ("timm", "torchvision", "hf")
PRECISIONS = (
    *("auto", "64-true", "64", "32-true", "32", "16-mixed", "16-true", "16", "bf16-mixed", "bf16-true", "bf16"),
    *("transformer-engine", "transformer-engine-float16"),
)
RECALL = "recall@"
# Parameters of a loss or a data set that presets do not set.
NOT_PLAIN = ("num_classes", "dim", "generator", "root", "split", "transform", "fold")


def _backbone(name: str) -> str:
    library, _, rest = name.partition("/")
    if rest and library in LIBRARIES:
        return name
    return check_known("backbone", name, [*BACKBONES, *(f"{library}/NAME" for library in LIBRARIES)])


def _method(name: str) -> str:
    loss, arm, dispersion = parts(name)
    check_known("method", loss + arm, METHODS)
    if dispersion:
        DispersionName.parsed(dispersion)
    return name


def _metric(name: str) -> str:
    k = name.removeprefix(RECALL)
    if name.startswith(RECALL) and k.isdecimal() and int(k) > 0:
        return name
    return check_known("metric", name, [f"{RECALL}1", "r_precision", "map@r", "map@1000", "nmi"])


def _devices(value: Any) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1024):
        return value
    raise ValueError(f"must be an integer from 1 to 1024, or 'auto', got {value!r}")


class Model(Table):
    """Arguments of :class:`~otdml.dml.ProxyDML` that all methods of a preset share."""

    backbone: Annotated[str, AfterValidator(_backbone)] = "conv4"
    backbone_options: dict[str, Any] | None = None
    dim: Width = 64
    head: Annotated[str, one_of("head", ("linear", "layernorm"))] = "linear"
    pool: Annotated[str, one_of("pool", ("avg", "max", "avgmax"))] = "avg"
    optimizer: Annotated[str, one_of("optimizer", ("adamw", "adam", "sgd"))] = "adamw"
    lr: NumberOrRates = 1e-3
    weight_decay: NumberOrRates = 0.0
    schedule: Annotated[str, one_of("schedule", ("cosine", "step", "constant"))] = "cosine"
    step_epochs: Count | None = None
    step_factor: Positive = 0.5
    warmup_epochs: Whole = 0
    frozen_epochs: Whole = 0
    clip: Positive | None = None
    freeze_bn: bool = False
    frozen: Text | None = None


class MethodSettings(Table):
    """Settings tuned for a method, in place of those that all share."""

    loss_options: dict[str, Any] = {}
    loss_weight: Magnitude = 1.0
    nir_weight: Magnitude = 0.0
    nir_options: dict[str, Any] = {}
    lr: Rates = Rates()
    weight_decay: Rates = Rates()
    warmup_epochs: Whole | None = None
    frozen_epochs: Whole | None = None


class RunModel(Model):
    """All of :class:`~otdml.dml.ProxyDML` that a run sets: what all methods share, and what is the method's own."""

    loss: Annotated[str, one_of("loss", tuple(LOSSES))] = "proxy-anchor"
    loss_options: dict[str, Any] | None = None
    loss_weight: Magnitude = 1.0
    nir_weight: Magnitude = 0.0
    nir_options: dict[str, Any] | None = None
    dispersion: Annotated[str, AfterValidator(lambda text: str(DispersionName.parsed(text)))] | None = None


class Training(Table):
    """Settings of :class:`~otdml.dml.TrainingConfig`."""

    epochs: Count = 30
    classes_per_batch: Count | None = None
    samples_per_class: Count = 4
    batches_per_epoch: Count | None = None
    ks: Annotated[list[Neighbours], Field(min_length=1)] = [1, 2, 4, 8]
    select: Annotated[str, AfterValidator(_metric)] = "map@r"
    val_every: Whole = 1
    test_every: Whole = 0
    eval_batch_size: Count = 512
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    precision: Annotated[str, one_of("precision", PRECISIONS)] = "32-true"
    accelerator: Text = "auto"
    devices: Annotated[int | str, PlainValidator(_devices)] = 1
    num_nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    strategy: Text = "auto"
    compile: bool = False
    crops: Annotated[int, Field(ge=0, le=10_000)] = 0
    maps: Text | None = None
    tensorboard: bool = False


class RunTraining(Training):
    """Training settings of a run, which may include its seed."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0


class Augment(Table):
    """Settings of :class:`~otdml.data.Distort`."""

    degrees: Magnitude = 15.0
    scale: Magnitude = 0.15
    shear: Magnitude = 0.2
    translate: Magnitude = 0.08
    elastic: Magnitude = 0.0
    strokes: Magnitude = 0.0


class DigitsData(Table):
    """Settings of :class:`~otdml.data.Digits`."""

    rotations: bool = False


class GlyphsData(Table):
    """Settings of :class:`~otdml.data.Glyphs`."""

    size: Annotated[int, Field(ge=4, le=96)] = 28
    samples: Annotated[int, Field(ge=2, le=1000)] = 12


class OmniglotData(Table):
    """Settings of :class:`~otdml.data.Omniglot`."""

    protocol: Annotated[str, one_of("protocol", ("small", "full"))] = "small"
    size: Annotated[int, Field(ge=4, le=105)] = 28
    crop: bool = False
    rotations: bool = False
    allow_partial: bool = False
    on_corrupt: OnCorrupt = "raise"


class PhotographsData(Table):
    """Settings of :class:`~otdml.data.ProtocolImages`."""

    size: Annotated[int, Field(ge=4, le=4096)] = 224
    resize: Annotated[int, Field(ge=4, le=8192)] | None = None
    least_area: Annotated[float, Field(gt=0, le=1)] = 0.08
    allow_partial: bool = False
    on_corrupt: OnCorrupt = "raise"


class FolderData(Table):
    """Settings of :class:`~otdml.data.ClassFolders`."""

    size: Annotated[int, Field(ge=4, le=4096)] = 224
    level: Annotated[str, one_of("level", ("innermost", "outermost"))] = "innermost"
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    split_seed: Whole = 0
    least: Count = 1
    on_corrupt: OnCorrupt = "raise"


DATA_OPTIONS: dict[str, type[Table]] = {
    "glyphs": GlyphsData,
    "digits": DigitsData,
    "omniglot": OmniglotData,
    "folder": FolderData,
    **{name: PhotographsData for name, known in DATASETS.items() if known.listed},
}


def data_options_of(dataset: str) -> type[Table]:
    """The table of a data set's options: that written here, or else one of its signature, as for a loss."""
    return DATA_OPTIONS[dataset] if dataset in DATA_OPTIONS else _signature(named_dataset(dataset).kind)


class ProxyAnchorOptions(Table):
    """Options of :class:`~otdml.dml.ProxyAnchor`."""

    alpha: Positive = 32.0
    delta: Magnitude = 0.1


class ProxyNCAOptions(Table):
    """Options of :class:`~otdml.dml.ProxyNCA`."""

    temperature: Positive = 1 / 9


class SoftTripleOptions(Table):
    """Options of :class:`~otdml.dml.SoftTriple`."""

    centres: Annotated[int, Field(ge=1, le=1000)] = 10
    lam: Positive = 20.0
    gamma: Positive = 0.1
    delta: Magnitude = 0.01
    tau: Magnitude = 0.2


class PotentialFieldOptions(Table):
    """Options of :class:`~otdml.dml.PotentialField`."""

    centres: Annotated[int, Field(ge=1, le=1000)] = 15
    alpha: Positive = 3.0
    delta: Positive = 0.2


class MultiSimilarityOptions(Table):
    """Options of :class:`~otdml.dml.MultiSimilarity`."""

    alpha: Positive = 2.0
    beta: Positive = 50.0
    base: float = 0.5
    epsilon: Positive | None = None


LOSS_OPTIONS: dict[str, type[Table]] = {
    "proxy-anchor": ProxyAnchorOptions,
    "proxy-nca": ProxyNCAOptions,
    "soft-triple": SoftTripleOptions,
    "potential-field": PotentialFieldOptions,
    "multi-similarity": MultiSimilarityOptions,
}


def options_of(loss: str) -> type[Table]:
    """The table of a loss's options: that written here, or else one of its signature, for which torch is imported."""
    return LOSS_OPTIONS[loss] if loss in LOSS_OPTIONS else _signature(LOSSES[loss].kind)


def _signature(kind: Any) -> type[Table]:
    """A table of the options of a class, without ranges."""
    hints = get_type_hints(kind.__init__)
    plain = {name: hints[name] for name in inspect.signature(kind).parameters if name not in NOT_PLAIN}
    fields: dict[str, Any] = {name: (hint, None) for name, hint in plain.items() if name in hints}
    return create_model(f"{kind.__name__}Options", __base__=Table, **fields)


class NIROptions(Table):
    """Options of :class:`~otdml.dml.NIR`."""

    objective: Annotated[str, one_of("objective", ("nll", "exp_nll"))] = "nll"
    cap: Positive = 20.0
    detach_embeddings: bool = False
    detach_proxies: bool = False


class Conv4Options(Table):
    """Options of :func:`~otdml.dml.backbones.conv4`."""

    widths: Annotated[list[Width], Field(min_length=1, max_length=32)] = [32, 64, 128, 256]
    in_channels: Width = 1


class NamedResNetOptions(Table):
    """Options of :func:`~otdml.dml.backbones.resnet18` and :func:`~otdml.dml.backbones.resnet50`."""

    in_channels: Width = 3
    small_images: bool = False
    weights: Text | None = None


class ResNetOptions(NamedResNetOptions):
    """Options of :class:`~otdml.dml.backbones.ResNet`."""

    block: Annotated[str, one_of("block", ("basic", "bottleneck"))] = "basic"
    depths: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(min_length=1, max_length=32)] = [2, 2, 2, 2]
    widths: Annotated[list[Width], Field(min_length=1, max_length=32)] = [64, 128, 256, 512]


class EfficientNetOptions(Table):
    """Options of :func:`~otdml.dml.backbones.efficientnet_lite0` and its larger siblings."""

    weights: Text | None = None


BACKBONES: dict[str, type[Table]] = {
    "conv4": Conv4Options,
    "resnet": ResNetOptions,
    "resnet18": NamedResNetOptions,
    "resnet50": NamedResNetOptions,
    **dict.fromkeys(("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"), EfficientNetOptions),
}


class Figure(Table):
    """A published figure."""

    method: Text
    metric: Annotated[str, AfterValidator(_metric)]
    value: Share
    source: Text
    second_hand: bool = False


class WeightsOf(Table):
    """Pretrained weights to start from."""

    what: Text
    address: Text
    installed: bool = False


class PresetFile(Table):
    """A preset as a whole; what its tables hold depends on one another, and is looked at apart."""

    title: Text
    dataset: Annotated[str, one_of("data set", tuple(DATASETS))]
    compare: Annotated[list[Annotated[str, AfterValidator(_method)]], Field(min_length=1)]
    model: Model
    training: Training
    data: dict[str, Any] = {}
    augment: Augment = Augment()
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 3
    settings: dict[str, MethodSettings] = {}
    published: list[Figure] = []
    weights: WeightsOf | None = None
    note: str = ""
    never_run: bool = False
