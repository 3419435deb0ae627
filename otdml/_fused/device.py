"""On which devices Triton kernels run, and in which precisions."""

import functools
import importlib.util
import os

import torch

__all__ = ["PRECISIONS", "check_device", "present"]

# How matrix products round the points: as single precision; as three products of TF32, which is nearly that; as one (11
# significant bits); or as bfloat16 (8 bits).
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


@functools.cache
def present() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def check_device(device: torch.device) -> None:
    """Raise where ``backend="triton"`` cannot run.

    Raises:
        ImportError: If Triton is not installed.
        RuntimeError: If the device is none of CUDA's.
    """
    if importlib.util.find_spec("triton") is None:
        raise ImportError(
            "backend='triton' needs triton. Install it with `pip install 'otdml[triton]'`, or pass backend='streamed'."
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend='triton' needs points on a CUDA device, but they are on {device}. Move them, or pass "
            "backend='streamed'."
        )
