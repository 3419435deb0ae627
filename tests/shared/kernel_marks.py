"""Marks of tests that run or compile Triton's kernels; see ``make test-kernels``."""

import importlib.util
import os

import pytest

__all__ = ["COMPILED", "INTERPRETED", "ON_CPU"]

PRESENT = importlib.util.find_spec("triton") is not None
ON_CPU = os.environ.get("TRITON_INTERPRET") == "1"

# Triton warns of its own defaults.
_ALL = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:.*TRITON_DEFAULT_FP_FUSION:UserWarning")]

# Kernels that are interpreted on the CPU.
INTERPRETED = [
    *_ALL,
    pytest.mark.skipif(
        not (PRESENT and ON_CPU), reason="needs triton, and TRITON_INTERPRET=1 so that its kernels run on the CPU"
    ),
    # The interpreter computes what a kernel then selects away, with NumPy's warnings.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# Kernels that are compiled.
COMPILED = [
    *_ALL,
    pytest.mark.skipif(not PRESENT or ON_CPU, reason="needs triton, and its compiler rather than its interpreter"),
]
