"""Losses between distributions: one file, one idea, one function and one Module."""

from otdml.losses.dispersion import (
    KernelDispersion,
    KoLeo,
    LloydDispersion,
    MaxCosine,
    MaxMinAngle,
    MMDToUniform,
    SlicedDispersion,
    kernel_dispersion,
    koleo,
    lloyd_dispersion,
    max_cosine,
    max_min_angle,
    mmd_to_uniform,
    sliced_dispersion,
    sliced_wasserstein_to_uniform,
)
from otdml.losses.mmd import MMD, mmd

__all__ = [
    "MMD",
    "KernelDispersion",
    "KoLeo",
    "LloydDispersion",
    "MMDToUniform",
    "MaxCosine",
    "MaxMinAngle",
    "SlicedDispersion",
    "kernel_dispersion",
    "koleo",
    "lloyd_dispersion",
    "max_cosine",
    "max_min_angle",
    "mmd",
    "mmd_to_uniform",
    "sliced_dispersion",
    "sliced_wasserstein_to_uniform",
]
