import math

import pytest
import torch

from otdml.costs import Matrix
from otdml.ot._anderson import Anderson
from otdml.ot._iteration import AT_ONCE, Alternating, NotFinite, Step, Symmetric, Verdict, at_once, iterate, judge
from otdml.ot._problem import Posed, Problem


def posed(n=5, m=4, eps=0.3, rho=(None, None), backend="streamed", symmetric=False):
    generator = torch.Generator().manual_seed(0)
    C, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((n, m), n, m))
    if symmetric:
        C, b = C + C.T, a
    return Posed.of(Problem(Matrix(C), a / a.sum(), b / b.sum(), eps, rho), backend)


def alternating(p):
    return Alternating(p.engine, p.problem.rows, p.problem.columns)


def by_hand(p, g, times):
    """Sinkhorn's iteration as it is written in a book, and the column errors before each."""
    C, a, b = p.problem.cost.C / p.problem.eps, p.problem.a, p.problem.b
    errors = []
    for _ in range(times):
        f = -torch.logsumexp(g + b.log() - C, 1)
        plan = (a.log()[:, None] + b.log() + f[:, None] + g - C).exp()
        errors.append((plan.sum(0) - b).abs().sum())
        g = -torch.logsumexp((f + a.log())[:, None] - C, 0)
    return f, g, torch.stack(errors)


@pytest.mark.parametrize("times", [1, 3, 8])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_a_step_makes_sinkhorn_s_iterations(backend, times):
    p = posed(backend=backend)
    p.engine.prepare(torch.zeros(4, dtype=torch.float64))
    step = alternating(p).step(torch.zeros(4, dtype=torch.float64), times)
    f, g, errors = by_hand(p, torch.zeros(4, dtype=torch.float64), times)
    torch.testing.assert_close(step.f, f)
    torch.testing.assert_close(step.new[-1], g)
    torch.testing.assert_close(step.errors, errors)
    assert step.worst == pytest.approx(errors.tolist())


def test_the_symmetric_iteration_has_the_alternating_one_s_fixed_point():
    p = posed(n=6, m=6, symmetric=True)
    symmetric = iterate(Symmetric(p.engine, p.problem.rows, 0.0), torch.zeros(6, dtype=torch.float64), tol=1e-12)
    plain = iterate(alternating(p), torch.zeros(6, dtype=torch.float64), tol=1e-12)
    torch.testing.assert_close(symmetric.f[:, None] + symmetric.g, plain.f[:, None] + plain.g)
    torch.testing.assert_close(symmetric.f, symmetric.g)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_iterations_stop_within_the_tolerance_and_count_what_it_took(backend):
    p = posed(backend=backend)
    g = torch.zeros(4, dtype=torch.float64)
    *_, errors = by_hand(p, g, 3)
    found = iterate(alternating(p), g, tol=1.0001 * float(errors[1]))
    assert found.done
    assert found.n_iter == 2
    assert not iterate(alternating(p), g, tol=1e-15, max_iter=2).done


def test_an_iteration_that_is_not_finite_is_an_error():
    p = posed()
    with pytest.raises(NotFinite):
        iterate(alternating(p), torch.full((4,), torch.nan, dtype=torch.float64))


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
    step = Step(torch.zeros(2), torch.zeros(len(errors), 2), new, torch.tensor(errors))
    update = Alternating.__new__(Alternating)
    update.softmin = _Kernel(stale)
    accelerated = _Accelerated(extrapolated, far)
    return judge(step, update, accelerated, best, tol=1e-3, out=out, g=torch.zeros(2))


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
