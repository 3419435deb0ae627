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
from otdml.losses.gromov_monge import Distortion, GromovMongeGap, ScaledCost, distortion, gromov_monge_gap
from otdml.losses.mmd import MMD, mmd
from otdml.losses.monge import MongeGap, monge_gap
from otdml.losses.sinkhorn import EntropicOT, SinkhornDivergence, entropic_ot, self_term, sinkhorn_divergence
from otdml.losses.sliced import SlicedWasserstein, sliced_wasserstein

__all__ = [
    "MMD",
    "Distortion",
    "EntropicOT",
    "GromovMongeGap",
    "KernelDispersion",
    "KoLeo",
    "LloydDispersion",
    "MMDToUniform",
    "MaxCosine",
    "MaxMinAngle",
    "MongeGap",
    "ScaledCost",
    "SinkhornDivergence",
    "SlicedDispersion",
    "SlicedWasserstein",
    "distortion",
    "entropic_ot",
    "gromov_monge_gap",
    "kernel_dispersion",
    "koleo",
    "lloyd_dispersion",
    "max_cosine",
    "max_min_angle",
    "mmd",
    "mmd_to_uniform",
    "monge_gap",
    "self_term",
    "sinkhorn_divergence",
    "sliced_dispersion",
    "sliced_wasserstein",
    "sliced_wasserstein_to_uniform",
]
