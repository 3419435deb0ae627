"""The machine and the versions behind a figure."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import otdml

__all__ = ["cores", "environment", "native_precision", "unlike"]

LIBRARIES = (
    "torch",
    "numpy",
    "pot",
    "geomloss",
    "pykeops",
    "faiss-cpu",
    "faiss-gpu",
    "lightning",
    "zuko",
    "jax",
    "ott-jax",
    "pytorch-metric-learning",
    "torchcfm",
)


def environment(threads: int | None = None) -> dict[str, str]:
    """Environment of a result: processor, threads, GPU, versions, code.

    Args:
        threads: Those that will be used; those of this process if None.
    """
    import torch

    found = {
        "otdml": otdml.__version__,
        "code": _code(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    found |= {"processor": _processor(), "threads": str(threads or torch.get_num_threads())}
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    # Where it is emulated, what could be computed in it is computed in float32.
    found["bfloat16"] = "native" if native_precision() == "bf16-mixed" else "emulated"
    return found | {name: version for name in LIBRARIES if (version := _version(name))}


def unlike(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Differences between two environments: the former and the latter value by name.

    Example:
        >>> unlike({"torch": "2.12.0", "gpu": "none"}, {"torch": "2.13.0", "gpu": "none"})
        {'torch': ('2.12.0', '2.13.0')}
    """
    names = [*there, *(name for name in here if name not in there)]
    pairs = {name: (there.get(name, "unknown"), here.get(name, "absent")) for name in names}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


@cache
def _code() -> str:
    """A hash of the source of this package: a version may have any number of states."""
    package = Path(otdml.__file__).parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return found.hexdigest()[:12]


def native_precision() -> str:
    """``"bf16-mixed"`` where the GPU, or the processor, multiplies in bfloat16 by itself, else ``"32-true"``.

    Emulated bfloat16 is several times slower than float32, so a preset that says ``precision = "auto"`` gets this.
    """
    import torch

    from otdml._precision import multiplies_in_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if multiplies_in_bfloat16(device) else "32-true"


def cores() -> int:
    """Cores that this process may use; one where a GPU does the work."""
    import torch

    if torch.cuda.is_available():
        return 1
    # Not every system has processor affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
