"""The loop that does not wait: on a CPU, with a clock that reports late."""

import dataclasses
import math
from collections import deque

import pytest
import torch
from problems import alternating
from torch.utils._python_dispatch import TorchDispatchMode

from otdml.costs import ground
from otdml.ot import _device_loop, sinkhorn
from otdml.ot._device_loop import Immediate, Queue, Rounds, distances, solve
from otdml.ot._iteration import iterate
from otdml.ot._problem import Posed, Problem
from otdml.ot._progress import Progress
from otdml.ot._updates import Alternating, NotFinite, Symmetric

PROBLEMS = {
    "easy": {"eps": 1.0},
    "hard": {"eps": 0.03},
    "unbalanced": {"eps": 0.2, "rho": (1.0, None)},
    "batch": {"eps": 0.2, "batch": (3,)},
}


def posed(backend="streamed", n=17, m=13, eps=0.3, rho=(None, None), batch=(), same=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, n, 2, generator=generator, dtype=torch.float64)
    y = x if same else torch.randn(*batch, m, 2, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(*batch, z.shape[-2], generator=generator, dtype=torch.float64) + 0.1 for z in (x, y))
    a, b = (w / w.sum(-1, keepdim=True) for w in ((a, a) if same else (a, b)))
    return Posed.of(Problem(ground(x, y), a, b, eps, rho), backend)


def start(p):
    return torch.zeros_like(p.problem.b)


class Late(Queue):
    """Reports that nobody sees before so many later ones were posted, or a wait."""

    def __init__(self, lag):
        self.lag, self.posted, self.seen = lag, deque(), deque()

    def post(self, report):
        self.posted.append(report.clone())
        while len(self.posted) > self.lag:
            self.seen.append(self.posted.popleft().tolist())

    def take(self):
        return self.seen.popleft() if self.seen else self.posted.popleft().tolist()


def solved(p, tol=1e-6, max_iter=500, queue=None, update=None, g=None):
    update = alternating(p) if update is None else update
    g = start(p) if g is None else g
    p.engine.prepare(g)
    options = {"tol": tol, "max_iter": max_iter, "progress": Progress(tol, max_iter)}
    return solve(update, g, queue=queue or Immediate(), **options)


def same(one, other):
    assert one.n_iter == other.n_iter
    for field in ("f", "g", "error", "converged"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("backend", ["streamed", "dense"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_the_result_does_not_depend_on_when_it_is_looked_at(kind, backend, monkeypatch):
    expected = solved(posed(backend, **PROBLEMS[kind]))
    assert expected.done
    for lag in (1, 2, 7):
        same(solved(posed(backend, **PROBLEMS[kind]), queue=Late(lag)), expected)
    for schedule in ([1], [2, 3, 5, 8], [40]):
        monkeypatch.setattr(_device_loop, "distances", lambda entries, s=schedule: iter(s + [s[-1]] * 999))
        same(solved(posed(backend, **PROBLEMS[kind])), expected)


class Captured(Late):
    """A device that captures rounds, which are one and the same thing then."""

    def __init__(self):
        super().__init__(1)
        self.captures, self.replays = [], 0

    def captured(self, rounds):
        self.captures.append(int(rounds.count))

        def replay():
            self.replays += 1
            rounds.run()

        return replay


def test_a_round_is_captured_once_where_iterations_are_many():
    queue = Captured()
    found = solved(posed(eps=0.03), tol=1e-9, queue=queue)
    same(found, solved(posed(eps=0.03), tol=1e-9))
    assert queue.captures == [3 * _device_loop.EAGER]
    assert 3 * (_device_loop.EAGER + queue.replays) >= found.n_iter
    few = Captured()
    solved(posed(eps=5.0), queue=few)
    assert not few.captures


def test_large_problems_are_not_captured(monkeypatch):
    monkeypatch.setattr(_device_loop, "SMALL", 17 * 13 - 1)
    queue = Captured()
    solved(posed(eps=0.03), tol=1e-9, queue=queue)
    assert not queue.captures


@pytest.mark.parametrize("backend", ["streamed", "dense"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_the_solution_is_that_of_the_loop_that_waits(kind, backend):
    found, p = solved(posed(backend, **PROBLEMS[kind]), tol=1e-10), posed(backend, **PROBLEMS[kind])
    waited = iterate(alternating(p), start(p), tol=1e-10)
    assert found.done
    assert waited.done
    torch.testing.assert_close(
        found.f[..., :, None] + found.g[..., None, :],
        waited.f[..., :, None] + waited.g[..., None, :],
        atol=1e-6,
        rtol=0,
    )
    # Neither takes many more iterations than the other.
    assert found.n_iter <= 2 * waited.n_iter + 6


def test_the_error_is_that_of_the_potentials():
    p = posed(eps=0.1)
    found = solved(p, tol=1e-4)
    assert found.error <= 1e-4
    # The column marginal at the state before the last half-step, whose row potential is f.
    softmin = p.engine.column_softmin(found.f + p.problem.rows.log)
    torch.testing.assert_close(softmin, found.g)
    before = solved(posed(eps=0.1), tol=1e-4, max_iter=found.n_iter - 1)
    assert not before.done
    assert before.n_iter == found.n_iter - 1


@pytest.mark.parametrize("most", [1, 2, 3, 4, 10])
def test_no_iteration_beyond_the_most_counts(most):
    p = posed(eps=0.03)
    found = solved(p, tol=1e-12, max_iter=most)
    assert found.n_iter == most
    assert not found.done
    if most <= 3:
        # Before the first extrapolation the two loops are one and the same.
        q = posed(eps=0.03)
        monkey = iterate(alternating(q), start(q), tol=1e-12, max_iter=most)
        torch.testing.assert_close(found.g, monkey.g)
        torch.testing.assert_close(found.f, monkey.f)


def test_the_symmetric_iteration():
    p = posed(n=9, same=True, eps=0.2)
    found = solved(p, update=Symmetric(p.engine, p.problem.rows, 0.0))
    q = posed(n=9, same=True, eps=0.2)
    expected = iterate(Symmetric(q.engine, q.problem.rows, 0.0), start(q), tol=1e-6)
    torch.testing.assert_close(found.f, expected.f, atol=1e-5, rtol=0)


class Spoiled(Alternating):
    """An iteration that gives what it is told to at some of its steps."""

    def __init__(self, p, spoil):
        super().__init__(p.engine, p.problem.rows, p.problem.columns)
        self.spoil, self.steps = spoil, 0

    def step(self, g, times, tol=0.0):
        step, self.steps = super().step(g, times, tol), self.steps + 1
        change = self.spoil.get(self.steps)
        return step if change is None else dataclasses.replace(step, **change(step))


def nothing(step):
    return {"new": step.new * math.nan}


def error(step):
    return {"errors": step.errors * 1e6}


def leap(step):
    return {"new": step.new + 1e9}


@pytest.mark.parametrize("change", [nothing, error, leap])
def test_an_extrapolation_that_leads_astray_is_taken_back(change):
    p = posed(eps=0.1)
    rounds = Rounds(Spoiled(p, {4: change}), start(p), 1e-9, 100)
    rounds.run()
    plain = rounds.values[-1].clone()
    assert rounds.jumped
    assert not torch.equal(rounds.g, plain)
    rounds._iterate()
    assert torch.equal(rounds.g, plain)
    assert torch.equal(rounds.values[-1], plain)
    assert rounds.reach == 0.25
    assert not rounds.lost
    assert rounds.number == 4
    rounds._iterate()
    assert not torch.equal(rounds.g, plain)
    q = posed(eps=0.1)
    assert solved(q, update=Spoiled(q, {4: change, 13: change})).done


def test_what_is_not_finite_is_an_error_whenever_it_is_seen():
    for lag in (0, 3):
        p = posed(eps=0.1)
        with pytest.raises(NotFinite):
            solved(p, update=Spoiled(p, {2: nothing}), queue=Late(lag))
    p = posed(eps=1.0)
    # What comes after the iteration that counts is not looked at.
    found = solved(p, tol=1e-2, update=Spoiled(p, dict.fromkeys(range(20, 99), nothing)), queue=Late(4))
    assert found.done
    assert found.n_iter < 20


@pytest.mark.parametrize("lag", [0, 3])
def test_a_kernel_that_has_lost_its_accuracy_is_made_anew(lag, monkeypatch):
    p = posed("dense", eps=0.02)
    far = 500 * torch.linspace(-1, 1, 13, dtype=torch.float64)
    p.engine.prepare(far)
    refreshed = []
    refresh = p.engine.refresh
    monkeypatch.setattr(
        p.engine, "refresh", lambda *args, **options: refreshed.append(refresh(*args, **options)) or refreshed[-1]
    )
    options = {"tol": 1e-8, "max_iter": 2000, "progress": Progress(1e-8, 2000)}
    found = solve(alternating(p), start(p), queue=Late(lag), **options)
    assert True in refreshed
    assert refreshed[-1] is False
    q = posed("streamed", eps=0.02)
    expected = iterate(alternating(q), start(q), tol=1e-8)
    assert found.done
    torch.testing.assert_close(found.f[:, None] + found.g, expected.f[:, None] + expected.g, atol=1e-5, rtol=0)


class Unread(TorchDispatchMode):
    """An error wherever the host reads a number from a tensor, or waits for a size."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "unique",
            "_unique2",
            "is_nonzero",
        ):
            raise AssertionError(f"{func} reads from the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kept", [True, False], ids=["kernel", "no kernel"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_round_reads_nothing_and_stays_where_it_is(kind, kept):
    p = posed("dense", **PROBLEMS[kind])
    if kept:
        p.engine.prepare(start(p))
    assert not p.engine.reads
    rounds = Rounds(alternating(p), start(p), 1e-9, 100, 20.0)
    buffers = addresses(rounds)
    assert len(buffers) > 10
    with Unread():
        for _ in range(3):
            rounds.run()
        assert rounds.report.shape == (3,)
    assert addresses(rounds) == buffers
    assert rounds.count == 9
    with pytest.raises(AssertionError, match="reads from the device"), Unread():
        float(rounds.reach)


def addresses(rounds):
    return {name: value.data_ptr() for name, value in vars(rounds).items() if isinstance(value, torch.Tensor)}


def test_looks_are_at_growing_distances_where_they_cost_more_than_rounds():
    few = distances(2**10)
    found = [next(few) for _ in range(12)]
    assert found[:2] == [1, 1]
    assert found == sorted(found)
    assert found[-1] == _device_loop.FARTHEST
    many = distances(2**25)
    assert [next(many) for _ in range(12)] == [1] * 12


def test_a_cpu_never_enters_it(monkeypatch):
    p = posed()
    assert alternating(p).on_device
    assert p.engine.reads
    assert not posed("dense").engine.reads
    assert not _device_loop.pays(alternating(p), start(p))
    monkeypatch.setattr(_device_loop, "solve", None)
    assert sinkhorn(torch.randn(5, 2), torch.randn(6, 2)).converged


def test_the_whole_solver_on_it(monkeypatch):
    """All that calls the loop, as it would on a device."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    expected = [sinkhorn(x, y, eps=eps, rho=rho, tol=1e-6).value for eps in (0.01, 1.0) for rho in (None, 1.0)]

    def late(update, g, *, tol=1e-3, max_iter=2000, prepared=False, together=None):
        if not update.on_device:
            return iterate(update, g, tol=tol, max_iter=max_iter, prepared=prepared, together=together)
        if not prepared:
            update.softmin.prepare(g)
        options = {"tol": tol, "max_iter": max_iter, "progress": Progress(tol, max_iter)}
        return solve(update, g, queue=Late(2), **options)

    monkeypatch.setattr("otdml.ot._annealing.iterate", late)
    found = [sinkhorn(x, y, eps=eps, rho=rho, tol=1e-6).value for eps in (0.01, 1.0) for rho in (None, 1.0)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = torch.Generator().manual_seed(1)
    for n in (64, 300, 1500):
        x, y = torch.randn(2, n, 3, generator=generator)
        for eps in (0.02, 0.5):
            found, expected = (sinkhorn(x.to(d), y.to(d), eps=eps, tol=1e-5) for d in ("cuda", "cpu"))
            assert found.converged
            torch.testing.assert_close(found.value.cpu(), expected.value, rtol=1e-4, atol=1e-5)
