"""The machine and the versions behind a figure."""

import importlib.metadata
import os
import platform
from pathlib import Path

import otdml

__all__ = ["cores", "environment", "native_precision"]

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
)


def environment() -> dict[str, str]:
    """What a reader of a result needs to know about where it was made: processor, threads, GPU, versions."""
    import torch

    found = {"otdml": otdml.__version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {"processor": _processor(), "threads": str(torch.get_num_threads())}
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found | {name: version for name in LIBRARIES if (version := _version(name))}


def native_precision() -> str:
    """``"bf16-mixed"`` where the GPU, or the processor, multiplies in bfloat16 by itself, else ``"32-true"``.

    Emulated bfloat16 is several times slower than float32, so a preset that says ``precision = "auto"`` gets this.
    """
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def cores() -> int:
    """Cores that this process may use; one where a GPU does the work."""
    import torch

    if torch.cuda.is_available():
        return 1
    # Not every system lets a process be bound to some cores.
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
