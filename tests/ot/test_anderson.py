import pytest
import torch

from otdml.ot._anderson import Anderson


def linear_map(n, slowest, generator):
    """A linear contraction with eigenvalues from zero to ``slowest``, and its fixed point."""
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    A = basis @ torch.diag(torch.linspace(0, slowest, n, dtype=torch.float64)) @ basis.T
    fixed = torch.randn(n, generator=generator, dtype=torch.float64)
    return lambda x: (x - fixed) @ A + fixed, fixed


def iterates(step, x, times):
    old, new = [], []
    for _ in range(times):
        old.append(x)
        x = step(x)
        new.append(x)
    return torch.stack(old), torch.stack(new)


@pytest.mark.parametrize("times", [1, 4, 8])
def test_a_slow_linear_map_is_solved_in_few_iterations(times):
    # The plain iteration is off by 0.999^n; extrapolation over a Krylov space of all dimensions is exact.
    step, fixed = linear_map(6, 0.999, torch.Generator().manual_seed(0))
    accelerated, x, spent = Anderson(), torch.zeros(6, dtype=torch.float64), 0
    while spent < 48:
        x = accelerated.step(*iterates(step, x, times))
        spent += times
    assert float((x - fixed).norm()) < 1e-4 * float(fixed.norm())


def test_elements_of_a_batch_are_extrapolated_each_by_its_own_history():
    maps = [linear_map(5, slowest, torch.Generator().manual_seed(seed)) for seed, slowest in ((0, 0.9), (1, 0.99))]

    def solved(*chosen):
        accelerated, x = Anderson(), torch.zeros(len(chosen), 5, dtype=torch.float64)
        for _ in range(5):
            x = accelerated.step(
                *iterates(lambda x: torch.stack([m[0](z) for m, z in zip(chosen, x, strict=True)]), x, 4)
            )
        return x

    torch.testing.assert_close(solved(*maps), torch.cat([solved(m) for m in maps]))


def test_the_first_iterates_are_plain():
    accelerated = Anderson()
    old, new = torch.zeros(1, 3), torch.ones(1, 3)
    assert accelerated.step(old, new) is not None
    assert not accelerated.extrapolated


def test_a_retreat_gives_the_plain_iterate_and_shortens_the_next_extrapolation():
    step, _ = linear_map(6, 0.9, torch.Generator().manual_seed(0))
    accelerated = Anderson()
    old, new = iterates(step, torch.zeros(6, dtype=torch.float64), 4)
    jumped = accelerated.step(old, new)
    assert accelerated.extrapolated
    torch.testing.assert_close(accelerated.retreat(), new[-1])
    assert not accelerated.extrapolated
    again = accelerated.step(old, new)
    torch.testing.assert_close(again - new[-1], (jumped - new[-1]) / 4, rtol=1e-3, atol=1e-6)


def test_it_is_seen_when_the_map_moves_far_at_an_extrapolated_iterate():
    accelerated = Anderson()
    accelerated.step(torch.zeros(4, 3), torch.full((4, 3), 0.1))
    assert not accelerated.overshot(torch.full((3,), 1.5))
    assert accelerated.overshot(torch.tensor([0.0, 0.0, 1.7]))
    assert accelerated.overshot(torch.tensor([0.0, 0.0, torch.nan]))


def strides(accelerated, x, step, times=8):
    """Whether the next iterate is further than the plain one, after so many iterations from ``x``, and that iterate."""
    old, new = iterates(step, x, times)
    accelerated.step(old, new)
    longer = accelerated.stride(old[-1], new[-1], torch.ones(()), [1.0] * times)
    return longer is not None, new[-1] if longer is None else longer


def test_where_residuals_do_not_change_steps_are_lengthened_until_one_leads_astray():
    # Steps of 0.01 to a point 100 away: 10,000 plain ones.
    accelerated, x, spent = Anderson(), torch.zeros(1), 0
    while float(x) < 100:
        longer, x = strides(accelerated, x, lambda x: x + 0.01)
        spent += 8
        assert longer == (spent >= Anderson.idle)
    assert spent < 320
    accelerated.retreat()
    # An eighth of the length, then twice that.
    before = float(x)
    assert float(strides(accelerated, x, lambda x: x + 0.01)[1]) - before < 0.3 * before


def test_where_errors_change_steps_are_plain():
    accelerated, x = Anderson(), torch.zeros(2)
    for i in range(2 * Anderson.idle):
        error = 0.999**i
        assert accelerated.stride(x, x + 1, torch.tensor(error), [error]) is None


def test_elements_of_a_batch_that_are_nearer_keep_their_iterates():
    accelerated, x = Anderson(), torch.zeros(2, 3)
    longer = accelerated.stride(x, x + 1, torch.tensor([1e-6, 1.0]), [1.0] * Anderson.idle)
    torch.testing.assert_close(longer, torch.tensor([[1.0] * 3, [3.0] * 3]))
