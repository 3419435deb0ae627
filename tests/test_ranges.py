"""Options and points beyond what a dtype holds: refused with the name, never a number that is not the value."""

import math
import re

import pytest
import torch
from draws import drawn

from otdml.losses import contrastive_alignment, gromov_monge_gap, kernel_dispersion, mmd, sinkhorn_divergence
from otdml.ot import (
    gromov,
    low_rank_sinkhorn,
    semidiscrete,
    sinkhorn,
    sinkhorn_barycenter,
    soft_topk,
)

X, Y = drawn(6, 2, dtype=torch.float32), drawn(5, 2, seed=1, dtype=torch.float32)
BOTH = torch.stack([X, X + 1])

OPTIONS = {
    "gromov": ("eps", lambda eps: gromov(X, Y, eps=eps).value),
    "gromov_monge_gap": ("eps", lambda eps: gromov_monge_gap(X, X, eps=eps)),
    "barycentre": ("eps", lambda eps: sinkhorn_barycenter(BOTH, eps=eps).points),
    "weights of a barycentre": ("eps", lambda eps: sinkhorn_barycenter(BOTH, support=Y, eps=eps).weights),
    "low_rank_sinkhorn": ("eps", lambda eps: low_rank_sinkhorn(X, Y, rank=2, eps=eps).value),
    "soft_topk": ("eps", lambda eps: soft_topk(X[:, 0], 2, eps=eps)),
    "contrastive_alignment": ("eps", lambda eps: contrastive_alignment(X, X, eps=eps)),
    "balanced alignment": ("eps", lambda eps: contrastive_alignment(X, X, eps=eps, marginals="balanced")),
    "mmd": ("bandwidth", lambda eps: mmd(X, Y, bandwidth=eps)),
    "mmd of a mixture": ("bandwidth", lambda eps: mmd(X, Y, kernel="laplacian", bandwidth=[eps, 1.0])),
}


@pytest.mark.parametrize("value", [1e-300, 1e-50, 1e39, 1e300])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_no_numbers_of_the_dtype_are_refused(name, value):
    option, function = OPTIONS[name]
    with pytest.raises(ValueError, match=re.escape(f"`{option}` must be a number of torch.float32, got {value:g}")):
        function(value)


@pytest.mark.parametrize("eps", [1e-50, 1e-40])
def test_temperatures_below_single_precision(eps):
    with pytest.warns(RuntimeWarning, match="Raise `eps`"):
        assert not sinkhorn(X, Y, eps=eps).converged
    assert float(kernel_dispersion(X, gamma=eps)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("rho", [1e30, 1e38, 1e39, 1e100, 1e300])
def test_a_penalty_beyond_all_numbers_is_next_to_a_constraint(rho):
    for function in (lambda **o: sinkhorn(X, Y, eps=0.1, **o).value, lambda **o: sinkhorn_divergence(X, Y, **o)):
        torch.testing.assert_close(function(rho=rho), function(), rtol=1e-3, atol=0)
        torch.testing.assert_close(function(rho=(None, rho)), function(), rtol=1e-3, atol=0)


def test_a_penalty_that_is_next_to_nothing_is_named_in_the_warning():
    with pytest.warns(RuntimeWarning, match="Raise `rho`, or accept a larger `tol`"):
        assert not sinkhorn(X, Y, eps=0.1, rho=1e-30).converged
    with pytest.warns(RuntimeWarning, match="Raise `eps`, or accept a larger `tol`"):
        assert not sinkhorn(X.double(), Y.double(), eps=1e-16, tol=1e-6).converged


SMALL = {
    "low_rank_sinkhorn": ("x", lambda x, y: low_rank_sinkhorn(x, y, rank=2).value),
    "semidiscrete": ("x", lambda x, y: semidiscrete(x, y, n_samples=8, n_steps=2).value),
    "barycentre": ("clouds", lambda x, _: sinkhorn_barycenter(torch.stack([x, 2 * x])).points.sum()),
    "weights of a barycentre": ("clouds", lambda x, y: sinkhorn_barycenter(x[None], support=y).weights.sum()),
}


@pytest.mark.parametrize("scale", [1e-20, 1e-25, 1e-30])
@pytest.mark.parametrize("name", SMALL)
def test_points_whose_squares_vanish_are_refused(name, scale):
    argument, function = SMALL[name]
    with pytest.raises(ValueError, match=rf"`{argument}` must give costs that torch.float32 tells from zero"):
        function(scale * X, scale * Y)
    assert math.isfinite(float(function(scale * X.double(), scale * Y.double())))
    assert math.isfinite(float(function(0 * X, 0 * Y)))
