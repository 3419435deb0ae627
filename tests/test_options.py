"""Every option that is a number or a generator: numbers of NumPy and tensors of one count, and nothing else does."""

import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from draws import drawn, seeded
from signatures import parameters
from torch import Tensor, nn

from otdml.contrast import Encoder, Pairs
from otdml.data import Digits
from otdml.disentanglement import Autoencoder, Objective, Schedule
from otdml.dml import ClassBalancedBatchSampler, EmbeddingIndex, ProxyDML, TripletMargin, reference_flow
from otdml.kernels import gaussian
from otdml.language import TiedLanguageModel, Training
from otdml.losses import SinkhornDivergence
from otdml.neighbors import Gallery

X, Y, Z = (
    drawn(6, 3, dtype=torch.float32),
    drawn(6, 3, seed=1, dtype=torch.float32),
    drawn(6, 3, seed=2, dtype=torch.float32),
)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
NAMES = [f"{group}/{name}" for group in "abc" for name in "xyz"]
IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
BYTES = (255 * IMAGES).byte()
GREY = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(4))

# What is no option, and why.
NOT_OPTIONS = {
    "what a function returns": "BarycenterResult GromovResult LowRankResult OTResult FitResult DCI Scores Reading",
    "forms of a cost and of a kernel, made by named functions": "NamedCost Bilinear Bilinear.scaled Ground.scaled "
    "Ground.near_zero Matrix.scaled Matrix.near_zero Pointwise Pointwise.scaled default_temperature "
    "temperature_of_spread",
    "called by a trainer, a loader or a page": "ProxyDML.training_step ProxyDML.validation_step "
    "ProxyDML.configure_gradient_clipping TensorImages.batch TensorImages.thumbnail ImageFiles.thumbnail",
    "shapes and numbers of processes, found before": "expand local_rows",
    "tables of this project's studies": "Study Score FactorSet",
    "to be inherited from": "ProtocolImages",
}

# What a call needs besides the option, by the parameter's name or by both names.
GIVEN: dict[str, Any] = {
    **{"x": X, "y": Y, "z": Z, "x0": X, "x1": Y, "z1": X, "z2": Y, "C": X @ Y.T, "C_x": X @ X.T, "C_y": Y @ Y.T},
    **{
        "labels": LABELS,
        "proxies": drawn(3, 3, dtype=torch.float32),
        "clouds": torch.stack([X, Y]),
        "domains": LABELS,
        "like": X,
    },
    **{"images": IMAGES, "views": IMAGES, "path": "nowhere.npz", "folder": "nowhere", "file": "nowhere"},
    **{"classes": NAMES, "split": "train", "train": NAMES, "test": ["u", "v"], "parts": {"head": nn.Linear(2, 2)}},
    **{"encoder": nn.Linear(3, 3), "loss": TripletMargin(), "plan": torch.ones(6, 6), "codes": Z, "kernel": gaussian()},
    **{"factors": LABELS[:, None].repeat(1, 2), "counts": torch.tensor([3, 3]), "test_z": Z, "test_labels": LABELS},
    **{"dataset": lambda: Digits(split="test"), "module": lambda: ProxyDML(5, dim=4), "weight_decay": {"head": 0.0}},
    **{
        "lr": {"head": 0.5},
        "texts": [f"a b {word}" for word in "cdefghijk"],
        "objective": Objective(),
        "schedule": Schedule(steps=1),
    },
    **{"model": Autoencoder, "flow": lambda: reference_flow(3)},
    "wasserstein_1d x": X[:, 0],
    "wasserstein_1d y": Y[:, 0],
    "soft_rank x": X[0],
    "soft_topk x": X[0],
    "fit train": Digits,
    "crop_to_ink images": BYTES,
    "downscale images": BYTES,
    "Autoencoder.forward images": GREY,
    "scores images": GREY,
    "training images": GREY,
    "contrast.training encoder": lambda: Encoder(seed=0, widths=(4,), dim=2),
    "contrast.training pairs": Pairs,
    "contrast.training loss": lambda: SinkhornDivergence(),
    "language.training model": lambda: TiedLanguageModel(5, 2, seed=0, width=4, layers=1, heads=1, context=2),
    "language.training how": Training,
    "language.training tokens": torch.arange(5),
    "transport_plan x": X[:, :2],
    "transport_plan y": Y[:, :2],
    "split_classes train": [*NAMES, "d/x", "d/y"],
    "corrupted kind": "pixels",
    "spoiled kind": "noise",
    "ClassBalancedBatchSampler.set_epoch self": lambda: ClassBalancedBatchSampler(LABELS, 2, 2),
    "EmbeddingIndex.search self": lambda: EmbeddingIndex(Z, list("abcdef")),
    "Gallery.search self": lambda: Gallery(Z),
    "Autoencoder.forward self": Autoencoder,
    "ImageFolder root": "nowhere",
    **{f"{name} proxies": drawn(3, 1, 3, dtype=torch.float32) for name in ("soft_triple", "potential_field")},
    "flow_nll proxies": Z,
}
# An admissible value where the default is None, or cannot be told from others, by the parameter's name or both names.
GOOD: dict[str, Any] = {
    **{
        "eps": 0.5,
        "rho": 2.0,
        "marginals": 2.0,
        "mass": 0.75,
        "alpha": 0.5,
        "epsilon": 0.25,
        "share": 0.5,
        "tol": 2**-9,
    },
    **{"bandwidth": 0.5, "p": 1.5, "clip": 0.5, "scale": 0.5, "margin": 0.25, "lr": 0.5, "weight_decay": 0.5},
    **{
        "n_projections": 4,
        "n_samples": 16,
        "n_steps": 3,
        "n_pairs": 4,
        "n_points": 3,
        "k": 2,
        "rank": 2,
        "n": 4,
        "d": 3,
    },
    **{"num_classes": 3, "dim": 4, "num_features": 4, "classes_per_batch": 2, "samples_per_class": 2, "batches": 2},
    **{"batches_per_epoch": 2, "step_epochs": 2, "world_size": 2, "fold": 1, "folds": 3, "epoch": 1, "start": 1},
    **{"channels": 3, "size": 8, "resize": 256, "count": 2, "shape": 3, "vocabulary": 3, "rows": 2, "n_train": 4},
    **{"max_iter": 20, "restarts": 1, "steps": 2, "draws": 2, "seed": 3, "generator": seeded, "values": 2, "bins": 2},
    "ClassBalancedBatchSampler rank": 1,
    "Objective weight": 0.0,
    "EfficientNetLite width": 1.0,
    "ks": (1, 2),
    "batch": 2,
    "rate": 0.5,
    "RandomResizedCrop scale": (0.5, 1.0),
    "gromov_matrix alpha": 0.5,
    "param_groups lr": {"head": 0.5},
    "param_groups weight_decay": {"head": 0.5},
}
ZONAL = ("kernel_dispersion", "KernelDispersion", "mmd_to_uniform", "MMDToUniform")
GOOD |= {f"{name} {scale}": 0.5 for name in ZONAL for scale in ("gamma", "s")}
# Options that may be infinite, and those that may be negative.
INFINITE = {"rho", "marginals"}
SIGNED = {"base", "seed"}
# Options that are given together with another one.
TOGETHER: dict[str, dict[str, Any]] = {
    "couple rho": {"method": "unbalanced"},
    **{f"couple {name}": {"method": "sinkhorn"} for name in ("eps", "tol", "max_iter")},
    "couple mass": {"method": "partial"},
    "ClassBalancedBatchSampler rank": {"world_size": 2},
    "ClassBalancedBatchSampler world_size": {"rank": 1},
    **{f"{name} alpha": {"features": (X, Y)} for name in ("gromov", "fused_gromov_wasserstein")},
    "gromov_matrix alpha": {"features": X @ Y.T},
    "uniform_points shape": {},
    **{f"{name} s": {"kernel": "riesz"} for name in ZONAL},
}
# Calls that take seconds: what they do with an admissible number has tests of its own.
SLOW = {
    *("disentanglement.fit", "scenes", "Glyphs", "embed", "evaluate", "export_onnx", "fit", "scores", "linear_probe"),
    *("EfficientNetLite", "resnet50", "resnet18"),
}

Option = tuple[str, str]


def kind_of(annotation: Any) -> str | None:
    """What an annotation asks for: an integer, a number, several numbers, a generator, or none of these."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if torch.Generator in parts:
        return "generator"
    if float in parts:
        return "number"
    if int in parts:
        return "integer"
    several = [p for p in parts if get_origin(p) in (tuple, Sequence, Iterable, Mapping)]
    return "several" if any({int, float} & set(get_args(p)) for p in several) else None


def options() -> dict[Option, tuple[Callable[..., Any], inspect.Parameter, str]]:
    left_out = {name for names in NOT_OPTIONS.values() for name in names.split()}
    return {
        (label, parameter.name): (member, parameter, kind)
        for label, member, parameter in parameters()
        if label not in left_out and (kind := kind_of(parameter.annotation))
    }


OPTIONS = options()


def entry(table: dict[str, Any], label: str, name: str) -> Any:
    value = table[f"{label} {name}"] if f"{label} {name}" in table else table[name]
    return value() if inspect.isfunction(value) or inspect.isclass(value) else value


def good(label: str, name: str) -> Any:
    """An admissible value."""
    parameter = OPTIONS[label, name][1]
    known = f"{label} {name}" in GOOD or name in GOOD
    return entry(GOOD, label, name) if known else parameter.default


def call(label: str, name: str, value: Any) -> Any:
    """What a public callable gives with this value of one option, and admissible values of all that it needs."""
    member, given, star = OPTIONS[label, name][0], {}, []
    for other in inspect.signature(member).parameters.values():
        if other.name == name:
            if other.kind is other.VAR_POSITIONAL:
                star = [value]
            else:
                given[name] = value
        elif other.default is other.empty and other.kind not in (other.VAR_POSITIONAL, other.VAR_KEYWORD):
            known = f"{label} {other.name}" in GIVEN or other.name in GIVEN
            given[other.name] = entry(GIVEN, label, other.name) if known else good(label, other.name)
        # A number of iterations without a default belongs to some methods only.
        elif (label, other.name) in OPTIONS and (
            other.name == "generator" or (other.name in ("max_iter", "steps") and other.default is not None)
        ):
            given[other.name] = good(label, other.name)
    return member(*star, **given, **TOGETHER.get(f"{label} {name}", {}))


BAD: dict[str, list[Any]] = {
    "integer": [True, np.bool_(True), "3", 2.5, math.nan, [3], torch.tensor(2.5), torch.tensor([1, 2]), None, -1],
    "number": [True, "0.5", math.nan, math.inf, [0.5], torch.tensor([0.5, 0.5]), torch.tensor(True), 1j, None, -1.0],
    "generator": [3, "0", True, [], np.random.default_rng(0)],
    "several": ["x", 3, ["x"], [True], [math.nan], [None]],
}


def refusable(label: str, name: str) -> list[Any]:
    """What is no value of an option, of those tried."""
    _, parameter, kind = OPTIONS[label, name]
    fine: list[Any] = [math.inf] if name in INFINITE else []
    if name in SIGNED:
        fine += [-1, -1.0]
    words = str(parameter.annotation)
    if "None" in words or parameter.default is None:
        fine.append(None)
    if kind == "number" and "Sequence" in words:
        fine.append([0.5])
    return [
        bad for bad in BAD[kind] if not any(bad is f or (type(bad) is type(f) and repr(bad) == repr(f)) for f in fine)
    ]


def twins(value: Any) -> list[Any]:
    """What is the same number, or several."""
    if isinstance(value, dict):
        return [{key: np.float32(v) for key, v in value.items()}]
    if isinstance(value, (tuple, list)):
        real = any(isinstance(v, float) for v in value)
        return [[(np.float64 if real else np.int64)(v) for v in value], np.array(value)]
    if isinstance(value, int):
        return [np.int64(value), np.int16(value), torch.tensor(value), np.array(value)]
    if isinstance(value, float):
        single = [np.float32(value), torch.tensor(value)] if float(np.float32(value)) == value else []
        return [np.float64(value), torch.tensor(value, dtype=torch.float64), np.array(value), *single]
    return []


def seen(result: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(result, Tensor):
        return result.tolist()
    if isinstance(result, nn.Module):
        state = {k: (v.shape, float(v.sum())) for k, v in result.state_dict().items() if isinstance(v, Tensor)}
        return repr(result), state, plain(vars(result))
    if hasattr(result, "value"):
        return seen(result.value)
    if isinstance(result, dict):
        return {key: seen(value) for key, value in result.items()}
    if isinstance(result, (tuple, list, types.GeneratorType)):
        return [seen(value) for value in result]
    return re.sub(r" at 0x\w+", "", repr(result)), plain(getattr(result, "__dict__", {}))


def plain(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Attributes that are numbers, or several: they print as what they are, those of NumPy too."""
    kinds = (int, float, np.generic, np.ndarray, tuple, list)
    return {key: re.sub(r" at 0x\w+", "", repr(value)) for key, value in attributes.items() if isinstance(value, kinds)}


def alike(one: Any, other: Any) -> bool:
    """Equality, up to rounding in numbers: a tensor of one number divides where a number is multiplied with."""
    if isinstance(one, (tuple, list)) and len(one) == len(other):
        return all(map(alike, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-7) or (math.isnan(one) and math.isnan(other))
    return one == other


def outcome(label: str, name: str, value: Any) -> Any:
    torch.manual_seed(0)
    try:
        return seen(call(label, name, value))
    except (ValueError, FileNotFoundError) as error:
        # There are no files here; all numbers have been looked at before.
        assert re.match(r"`root` must be |.* No such file .*nowhere|.*nowhere", str(error)), error  # noqa: PT017
        return str(error)


every = pytest.mark.parametrize(("label", "name"), OPTIONS, ids=[" ".join(key) for key in OPTIONS])


def test_there_are_many_of_them():
    assert len(OPTIONS) > 400
    explained = {name for names in NOT_OPTIONS.values() for name in names.split()}
    assert explained <= {label for label, _, _ in parameters()}


@every
def test_what_is_no_such_value_is_refused(label, name):
    for bad in refusable(label, name):
        with pytest.raises((ValueError, TypeError), match=rf"^`{name}` must "):
            call(label, name, bad)


QUICK = [key for key in OPTIONS if key[0] not in SLOW]


@pytest.mark.parametrize(("label", "name"), QUICK, ids=[" ".join(key) for key in QUICK])
@pytest.mark.filterwarnings("ignore:.*stopped at `max_iter`")
def test_those_of_numpy_and_tensors_are_those_of_python(label, name):
    value = good(label, name)
    assert value is not None, "a value is missing in GOOD"
    expected = outcome(label, name, value)
    for twin in twins(value):
        assert alike(outcome(label, name, twin), expected), repr(twin)
