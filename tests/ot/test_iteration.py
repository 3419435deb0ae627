import math

import pytest
import torch
from problems import alternating

from otdml.costs import Matrix
from otdml.ot._anderson import Anderson
from otdml.ot._iteration import AT_ONCE, Verdict, at_once, iterate, judge
from otdml.ot._problem import Posed, Problem
from otdml.ot._updates import Alternating, NotFinite, Step


def posed(n=5, m=4, eps=0.3, backend="streamed"):
    generator = torch.Generator().manual_seed(0)
    C, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((n, m), n, m))
    return Posed.of(Problem(Matrix(C), a / a.sum(), b / b.sum(), eps), backend)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_iterations_stop_within_the_tolerance_and_count_what_it_took(backend):
    p = posed(backend=backend)
    g = torch.zeros(4, dtype=torch.float64)
    p.engine.prepare(g)
    errors = alternating(p).step(g, 3).errors
    found = iterate(alternating(p), g, tol=1.0001 * float(errors[1]))
    assert found.done
    assert found.n_iter == 2
    assert not iterate(alternating(p), g, tol=1e-15, max_iter=2).done


def test_an_iteration_that_is_not_finite_is_an_error():
    p = posed()
    with pytest.raises(NotFinite):
        iterate(alternating(p), torch.full((4,), torch.nan, dtype=torch.float64))


def test_what_stays_lost_is_given_up(monkeypatch):
    """However often a kernel is made anew."""
    p = posed(backend="dense")
    monkeypatch.setattr(p.engine, "refresh", lambda *_, **__: True)
    g = torch.full((4,), torch.nan, dtype=torch.float64)
    with pytest.raises(NotFinite):
        iterate(alternating(p), g, max_iter=20)


class _Kernel:
    """Soft minima that have lost their accuracy, or not."""

    def __init__(self, stale):
        self.stale = stale

    def refresh(self, f, g, *, lost=False):
        return self.stale


class _Accelerated(Anderson):
    def __init__(self, extrapolated, far=False):
        super().__init__()
        self.extrapolated, self.far = extrapolated, far

    def overshot(self, residual):
        return self.far


def verdict(errors, *, value=0.0, best=math.inf, extrapolated=False, far=False, stale=False, out=False):
    new = torch.full((len(errors), 2), value)
    step = Step(torch.zeros(2), torch.zeros(2), new, torch.tensor(errors))
    update = Alternating.__new__(Alternating)
    update.softmin = _Kernel(stale)
    accelerated = _Accelerated(extrapolated, far)
    return judge(step, update, accelerated, best, tol=1e-3, out=out)


def test_every_verdict():
    assert verdict([0.5, 1e-4]) is Verdict.DONE
    assert verdict([1e-4, 0.5]) is Verdict.ONWARD
    assert verdict([0.5], out=True) is Verdict.DONE
    assert verdict([0.5], value=math.nan) is Verdict.LOST
    # A kernel without accuracy is found out before anything is decided upon it.
    assert verdict([1e-4], stale=True) is Verdict.STALE
    assert verdict([0.5], value=math.inf, stale=True) is Verdict.STALE
    assert verdict([0.5], stale=True) is Verdict.ONWARD
    # An extrapolation may double the error, not more, and may not lead to where the map moves far.
    assert verdict([0.19], best=0.1, extrapolated=True) is Verdict.ONWARD
    assert verdict([0.21], best=0.1, extrapolated=True) is Verdict.ASTRAY
    assert verdict([0.1], best=0.1, extrapolated=True, far=True) is Verdict.ASTRAY
    assert verdict([0.1], value=math.nan, best=0.1, extrapolated=True) is Verdict.ASTRAY
    assert verdict([math.nan], best=0.1, extrapolated=True) is Verdict.ASTRAY


def test_small_kernels_make_more_iterations_at_once():
    assert at_once(1) == AT_ONCE[2**16]
    assert at_once(2**16 + 1) == AT_ONCE[2**18]
    assert at_once(2**20 + 1) == (1, 1)
