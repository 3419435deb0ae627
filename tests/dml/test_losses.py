"""The registry of losses by name."""

import pytest
import torch

import otdml.dml.pairs
import otdml.dml.proxies
from otdml.dml.losses import LOSSES, named_loss


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_is_public_and_trains(name, generator):
    loss = named_loss(name, 3, 4)
    assert type(loss) is LOSSES[name].kind is getattr(otdml.dml, type(loss).__name__)
    z = torch.randn(6, 4, generator=generator, requires_grad=True)
    loss(z, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    assert z.grad.norm() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_proxies_have_one_for_every_class(name):
    loss = named_loss(name, 3, 4)
    assert LOSSES[name].has_proxies == hasattr(loss, "proxies")
    if LOSSES[name].has_proxies:
        assert len(loss.proxies) == 3


def test_every_public_name_of_the_losses_is_one_of_the_package():
    assert set(otdml.dml.proxies.__all__) | set(otdml.dml.pairs.__all__) <= set(otdml.dml.__all__)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown loss 'proxy-ancor'\. Did you mean 'proxy-anchor'"):
        named_loss("proxy-ancor", 3, 4)
