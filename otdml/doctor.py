"""Which engines are installed, and whether each works, by a small call in a process of its own."""

import importlib.metadata
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from otdml._arguments import check_integer, check_known

__all__ = ["ENGINES", "Engine", "Finding", "examine", "probe"]


@dataclass(frozen=True)
class Engine:
    """A library that does something for this one.

    Attributes:
        name: As its users write it.
        module: What is imported. Distributions that provide it have several names, FAISS six of them.
        purpose: What it is for.
        remedy: How to get it.
        required: Whether the library is broken without it.
    """

    name: str
    module: str
    purpose: str
    remedy: str
    required: bool = False


@dataclass(frozen=True)
class Finding:
    """The result of :func:`examine`: ``"works"``, ``"absent"``, ``"broken"`` or ``"too slow"``, and the details."""

    engine: Engine
    version: str
    status: str
    detail: str


# The folder of the package.
_HOME = str(Path(__file__).resolve().parents[1])
CORE, TRAIN, VISION = "pip install otdml", "pip install 'otdml[train]'", "pip install 'otdml[vision]'"
ENGINES = {
    "torch": Engine("PyTorch", "torch", "everything", CORE, True),
    "pot": Engine("POT", "ot", "exact transport", CORE, True),
    "geomloss": Engine("GeomLoss", "geomloss", "multiscale Sinkhorn in d <= 3", CORE, True),
    "keops": Engine("KeOps", "pykeops", "symbolic kernels; needs a C++ compiler", CORE),
    "triton": Engine("Triton", "triton", "fused kernels on a GPU", "pip install 'otdml[triton]'"),
    "faiss": Engine("FAISS", "faiss", "nearest neighbours, k-means", "pip install 'otdml[cpu]'"),
    "zuko": Engine("zuko", "zuko", "flows of the NIR head", TRAIN),
    "lightning": Engine("Lightning", "lightning", "training", TRAIN),
    "sklearn": Engine("scikit-learn", "sklearn", "digits, t-SNE, linear probes, boosted trees", TRAIN),
    "matplotlib": Engine("Matplotlib", "matplotlib", "plots", TRAIN),
    "pillow": Engine("Pillow", "PIL", "images", TRAIN),
    "torchvision": Engine("torchvision", "torchvision", "backbones torchvision/NAME", VISION),
    "timm": Engine("timm", "timm", "backbones timm/NAME", VISION),
    "transformers": Engine("transformers", "transformers", "backbones hf/NAME", VISION),
}


def examine(names: list[str] | None = None, *, timeout: float = 120.0, jobs: int = 2) -> Iterator[Finding]:
    """Try the engines of these names, or all, ``jobs`` at a time; the findings come as they are made.

    Each is tried in a process of its own: an engine that crashes or hangs takes nothing with it.

    Raises:
        ValueError: There is no engine of that name.
    """
    for name in names or ():
        check_known("engine", name, ENGINES)
    with ThreadPoolExecutor(check_integer("jobs", jobs)) as pool:
        for future in as_completed([pool.submit(_examined, name, timeout) for name in names or ENGINES]):
            yield future.result()


def _examined(name: str, timeout: float) -> Finding:
    engine = ENGINES[name]
    version = _version(engine.module)
    if not version:
        return Finding(engine, "", "absent", engine.remedy)
    # With -P, Python does not import from the current folder; the path of this library is passed on.
    program = f"import sys; sys.path.append({_HOME!r}); from otdml.doctor import probe; print(probe({name!r}))"
    call = [sys.executable, "-P", "-W", "ignore", "-c", program]
    # With this variable, asserts are not carried out.
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONOPTIMIZE"}
    try:
        result = subprocess.run(call, capture_output=True, text=True, timeout=timeout, env=variables)
    except subprocess.TimeoutExpired:
        return Finding(engine, version, "too slow", f"no answer in {timeout:g} s; try --timeout {4 * timeout:g}")
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    detail = lines[-1] if lines else f"ended with code {result.returncode}"
    if detail == "AssertionError":
        detail = "it ran, and its result is wrong"
    return Finding(engine, version, "works" if result.returncode == 0 else "broken", detail)


def _version(module: str) -> str:
    """The version of what provides a module; empty where nothing does."""
    if packages := _providers().get(module):
        return importlib.metadata.version(packages[0])
    return "unknown" if find_spec(module) else ""


@cache
def _providers() -> Mapping[str, list[str]]:
    """The installed distributions by the modules that they provide."""
    return importlib.metadata.packages_distributions()


def probe(name: str) -> str:
    """Try the engine of that name in this process, and say what worked; whatever it raises passes through."""
    return _PROBES[name]()


def _torch() -> str:
    import torch

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert (torch.eye(4, device=device) @ torch.eye(4, device=device)).trace() == 4
    named = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device}, {named}"


def _pot() -> str:
    import ot

    assert abs(ot.emd2([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]])) < 1e-9
    return "solved a linear program"


def _geomloss() -> str:
    import torch

    from otdml.ot import sinkhorn

    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    # A translation of distant points at a low temperature: the plan is the identity.
    value = sinkhorn(x, x + torch.tensor([0.3, 0.4]), eps=0.01, backend="multiscale").value
    assert abs(float(value) - 0.25 - 0.01 * math.log(3)) < 1e-4
    return "multiscale solver starts ours, which agrees with the exact value"


def _keops() -> str:
    import torch
    from pykeops.torch import LazyTensor

    x = torch.tensor([[0.0], [1.0], [3.0]])
    distances = ((LazyTensor(x[:, None]) - LazyTensor(x[None])) ** 2).sum(-1)
    assert distances.sum(1).flatten().tolist() == [10.0, 5.0, 13.0]
    return f"compiled and ran a reduction on the {'GPU' if torch.cuda.is_available() else 'CPU'}"


def _triton() -> str:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # Without a GPU the same kernels are interpreted.
        os.environ["TRITON_INTERPRET"] = "1"
    from otdml.costs import Bilinear
    from otdml.ot.engines import Fused

    # The logarithm of the sum of three equal terms.
    found = Fused(Bilinear(torch.zeros(1, 2, device=device), torch.ones(3, 2, device=device)))
    assert abs(float(found.row_softmin(torch.zeros(3, device=device))) + math.log(3)) < 1e-6
    return "compiled and ran a soft minimum on the GPU" if device == "cuda" else "interpreted a soft minimum: no GPU"


def _faiss() -> str:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(2)
    index.add(np.eye(2, dtype="float32"))
    assert index.search(np.eye(2, dtype="float32"), 1)[1].ravel().tolist() == [0, 1]
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"exact search; {gpus} GPUs"


def _zuko() -> str:
    import zuko

    flow = zuko.flows.NSF(2, transforms=1)
    assert flow().log_prob(flow().sample((3,))).isfinite().all()
    return "sampled a spline flow"


def _lightning() -> str:
    from lightning import Trainer

    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return f"trainer on {type(trainer.accelerator).__name__}"


def _sklearn() -> str:
    from sklearn.metrics import normalized_mutual_info_score

    assert normalized_mutual_info_score([0, 0, 1], [1, 1, 0]) == 1
    return "scored a clustering"


def _matplotlib() -> str:
    from matplotlib.figure import Figure

    file = io.BytesIO()
    Figure().savefig(file, format="png")
    return f"drew {file.tell()} bytes"


def _pillow() -> str:
    from PIL import Image, features

    assert Image.new("L", (8, 8)).resize((4, 4)).size == (4, 4)
    codecs = [name for name in ("jpg", "zlib", "webp") if features.check(name)]
    return f"resized an image; codecs: {', '.join(codecs)}"


def _torchvision() -> str:
    import torch
    from torchvision.ops import nms

    assert len(nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)) == 1
    return "compiled operators load"


def _timm() -> str:
    import timm

    return f"{len(timm.list_models())} architectures"


def _transformers() -> str:
    import torch
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    assert ViTModel(config)(torch.zeros(1, 3, 8, 8)).last_hidden_state.isfinite().all()
    return "ran a small vision transformer"


_PROBES: dict[str, Callable[[], str]] = {
    "torch": _torch,
    "pot": _pot,
    "geomloss": _geomloss,
    "keops": _keops,
    "triton": _triton,
    "faiss": _faiss,
    "zuko": _zuko,
    "lightning": _lightning,
    "sklearn": _sklearn,
    "matplotlib": _matplotlib,
    "pillow": _pillow,
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
