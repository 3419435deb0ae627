"""Sliced Wasserstein against closed forms and POT."""

import copy
import math

import numpy as np
import pytest
import torch

from otdml.losses import SlicedWasserstein, sliced_wasserstein
from otdml.ot._sliced import directions


def clouds(n=9, m=6, d=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m)]


def test_translation_is_its_square_over_the_dimension():
    x, _ = clouds()
    t = torch.tensor([1.0, 2.0, -2.0], dtype=x.dtype)
    generator = torch.Generator().manual_seed(0)
    found = sliced_wasserstein(x, x + t, n_projections=20000, generator=generator)
    torch.testing.assert_close(float(found), 3.0, rtol=0.03, atol=0)


def test_two_points_in_the_plane():
    # The mean of |cos| over the circle is 2 / pi.
    x, y = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    found = sliced_wasserstein(x, y, p=1, n_projections=20000, generator=generator)
    torch.testing.assert_close(float(found), 2 / math.pi, rtol=0.02, atol=0)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_agrees_with_pot_on_the_same_directions(p):
    ot = pytest.importorskip("ot")
    x, y = clouds()
    a, b = (torch.linspace(1, 2, len(z), dtype=z.dtype) for z in (x, y))
    a, b = a / a.sum(), b / b.sum()
    theta = directions(3, 16, generator=torch.Generator().manual_seed(1), like=x)
    found = sliced_wasserstein(x, y, a, b, p=p, n_projections=16, generator=torch.Generator().manual_seed(1))
    arrays = [np.asarray(t) for t in (x, y, a, b)]
    expected = ot.sliced_wasserstein_distance(*arrays, p=p, projections=np.asarray(theta).T) ** p
    torch.testing.assert_close(float(found), float(expected), rtol=1e-9, atol=0)


def test_same_seed_same_value():
    x, y = clouds()
    values = [SlicedWasserstein(generator=torch.Generator().manual_seed(3))(x, y) for _ in range(2)]
    assert values[0] == values[1]


def test_each_call_draws_anew():
    x, y = clouds()
    loss = SlicedWasserstein(n_projections=4, generator=torch.Generator().manual_seed(3))
    assert loss(x, y) != loss(x, y)


def test_compiles_without_a_generator():
    x, y = (z[:, :1].float() for z in clouds())
    compiled = torch.compile(SlicedWasserstein(n_projections=2), fullgraph=True, backend="aot_eager")
    # On the line all directions agree.
    torch.testing.assert_close(compiled(x, y), sliced_wasserstein(x, y))


def test_errors_name_the_argument():
    x, y = clouds()
    with pytest.raises(ValueError, match="`p` must be"):
        sliced_wasserstein(x, y, p=0.5)
    with pytest.raises(ValueError, match="`n_projections` must be an integer >= 1, got 0"):
        SlicedWasserstein(n_projections=0)
    with pytest.raises(ValueError, match="`p` must be a number in"):
        SlicedWasserstein(p=0.5)
    a = torch.full((9,), 0.2, dtype=x.dtype)
    with pytest.raises(ValueError, match=r"`b` must have the mass of `a`, got 1 and 1.8 in batch element \(0,\)"):
        sliced_wasserstein(x, y, a)


def test_given_directions_are_the_module_s_own():
    directions = torch.eye(2).requires_grad_() * 1.0
    loss = SlicedWasserstein(projections=directions)
    copy.deepcopy(loss)
    before = loss(torch.zeros(3, 2), torch.ones(3, 2))
    with torch.no_grad():
        directions.zero_()
    assert torch.equal(loss(torch.zeros(3, 2), torch.ones(3, 2)), before)
