"""PFML against the energy of its paper, written as loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from otdml.dml import PotentialField, potential_field


def energy_of_the_paper(z, proxies, labels, alpha, delta):
    """The sum over all charges of the field of their class, which all charges make, themselves included."""
    charges = torch.cat([F.normalize(z, dim=-1), F.normalize(proxies, dim=-1).flatten(0, 1)]).tolist()
    owners = labels.tolist() + [c for c in range(proxies.shape[0]) for _ in range(proxies.shape[1])]
    total = 0.0
    for r, own in zip(charges, owners, strict=True):
        for s, other in zip(charges, owners, strict=True):
            d = math.dist(r, s)
            if own == other:
                total -= delta**-alpha if d < delta else d**-alpha
            else:
                total += d**-alpha if d < delta else delta**-alpha
    return total, owners


@pytest.mark.parametrize(("alpha", "delta"), [(3.0, 0.2), (1.0, 1.2), (6.0, 0.8)])
def test_value_is_the_energy_of_the_paper_up_to_its_constants(batch, generator, alpha, delta):
    z, _, labels = batch
    proxies = torch.randn(5, 3, 6, generator=generator, dtype=torch.float64)
    energy, owners = energy_of_the_paper(z, proxies, labels, alpha, delta)
    n = len(owners)
    with_itself = -n * delta**-alpha
    apart = sum(a != b for a in owners for b in owners) * delta**-alpha
    value = potential_field(z, proxies, labels, alpha=alpha, delta=delta)
    assert value.item() == pytest.approx((energy - with_itself - apart) / n, rel=1e-9)


def force(angle, labels, **options):
    """Length of the gradient of the energy in the first of two samples on a circle, without that of the proxies."""
    z = torch.tensor([[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
    # Proxies at right angles to both: their pull has no component in the plane of the samples.
    proxies = torch.tensor([[[0.0, 0.0, 1.0]], [[0.0, 0.0, -1.0]]], dtype=torch.float64)
    z.requires_grad_()
    potential_field(z, proxies, torch.tensor(labels), **options).backward()
    # Of 4 charges, and both orders of the pair.
    return float(z.grad[0, 1]) * 4 / 2


def test_attraction_decays_and_ends_within_delta():
    for angle in (0.5, 1.0, 2.0):
        d, along = 2 * math.sin(angle / 2), math.cos(angle / 2)
        assert force(angle, [0, 0], alpha=3.0, delta=0.2) == pytest.approx(-3 * d**-4 * along, rel=1e-9)
    assert force(0.19, [0, 0], alpha=3.0, delta=0.2) == 0


def test_repulsion_begins_within_delta():
    assert force(0.21, [0, 1], alpha=3.0, delta=0.2) == 0
    for angle in (0.19, 0.1, 0.05):
        d, along = 2 * math.sin(angle / 2), math.cos(angle / 2)
        assert force(angle, [0, 1], alpha=3.0, delta=0.2) == pytest.approx(3 * d**-4 * along, rel=1e-6)


def test_repulsion_is_smooth_and_finite_where_charges_meet():
    core = 2 * math.asin(0.01)
    below, above = (force(core * factor, [0, 1]) for factor in (1 - 1e-6, 1 + 1e-6))
    assert below == pytest.approx(above, rel=1e-4)
    assert 0 < force(core / 2, [0, 1]) < below
    assert force(0.0, [0, 1]) == 0


def test_blocks_change_nothing(batch, generator, monkeypatch):
    z, _, labels = batch
    loss = PotentialField(5, 6, centres=3, delta=0.8, generator=generator).double()

    def value_and_gradients():
        leaf = z.clone().requires_grad_()
        value = loss(leaf, labels)
        return (value, *torch.autograd.grad(value, (leaf, loss.proxies)))

    whole = value_and_gradients()
    monkeypatch.setitem(potential_field.__wrapped__.__globals__, "_PAIRS", 5 * 24)
    torch.testing.assert_close(value_and_gradients(), whole, rtol=1e-12, atol=1e-12)


def test_descent_ends_at_the_least_value(generator):
    """Four mixed classes become balls of diameter delta: 12 charges, each with 11 companions at -1 / 0.2."""
    labels = torch.arange(40) % 4
    z = torch.randn(40, 8, generator=generator).requires_grad_()
    loss = PotentialField(4, 8, centres=2, alpha=1.0, generator=generator)
    optimizer = torch.optim.Adam([z, *loss.parameters()], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(z, labels)
        value.backward()
        optimizer.step()
    assert value.item() == pytest.approx(-55, rel=1e-5)
    distances = torch.cdist(F.normalize(z, dim=-1), F.normalize(z, dim=-1)).detach()
    same = labels[:, None] == labels
    assert distances[same].max() < 0.2 < distances[~same].min()


def test_parameters_whose_slopes_are_no_numbers_are_refused():
    z, proxies, labels = torch.eye(3), torch.eye(3)[:, None], torch.arange(3)
    for wrong, name in (({"alpha": 600.0}, "alpha"), ({"alpha": 22.0}, "alpha"), ({"delta": 2.0}, "delta")):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            potential_field(z, proxies, labels, **wrong)
        with pytest.raises(ValueError, match=f"`{name}` must"):
            PotentialField(3, 3, **wrong)
    z = torch.nn.functional.normalize(torch.randn(6, 3) * 1e-4 + 1, dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(potential_field(z, proxies, torch.arange(6) % 3, alpha=6.0, delta=0.1), z)
    assert gradient.isfinite().all()
