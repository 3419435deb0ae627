"""Losses that spread points, over the unit sphere or as a Gaussian."""

from otdml.losses.dispersion.code import spherical_code
from otdml.losses.dispersion.energy import KernelDispersion, kernel_dispersion
from otdml.losses.dispersion.gaussian import MMDToGaussian, SIGReg, mmd_to_gaussian, sigreg
from otdml.losses.dispersion.lloyd import LloydDispersion, lloyd_dispersion
from otdml.losses.dispersion.metrics import (
    dispersion_metrics,
    effective_rank,
    frame_potential,
    nearest_angles,
    spherical_variance,
    uniform_baseline,
    uniform_smallest_angle,
)
from otdml.losses.dispersion.nearest import KoLeo, MaxCosine, MaxMinAngle, koleo, max_cosine, max_min_angle
from otdml.losses.dispersion.sliced import (
    SlicedDispersion,
    SlicedWassersteinToUniform,
    sliced_dispersion,
    sliced_wasserstein_to_uniform,
)
from otdml.losses.dispersion.uniform import MMDToUniform, mmd_to_uniform

__all__ = [
    "KernelDispersion",
    "KoLeo",
    "LloydDispersion",
    "MMDToGaussian",
    "MMDToUniform",
    "MaxCosine",
    "MaxMinAngle",
    "SIGReg",
    "SlicedDispersion",
    "SlicedWassersteinToUniform",
    "dispersion_metrics",
    "effective_rank",
    "frame_potential",
    "kernel_dispersion",
    "koleo",
    "lloyd_dispersion",
    "max_cosine",
    "max_min_angle",
    "mmd_to_gaussian",
    "mmd_to_uniform",
    "nearest_angles",
    "sigreg",
    "sliced_dispersion",
    "sliced_wasserstein_to_uniform",
    "spherical_code",
    "spherical_variance",
    "uniform_baseline",
    "uniform_smallest_angle",
]
