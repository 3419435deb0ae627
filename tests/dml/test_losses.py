"""The registry of losses by name."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch

import otdml.dml.pairs
import otdml.dml.proxies
from otdml.dml.losses import LOSSES, named_loss


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_is_public_and_trains(name, generator):
    loss = named_loss(name, 3, 4)
    assert type(loss) is LOSSES[name].kind is getattr(otdml.dml, LOSSES[name].name)
    assert callable(getattr(otdml.dml, LOSSES[name].function))
    z = torch.randn(6, 4, generator=generator, requires_grad=True)
    loss(z, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    assert z.grad.norm() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_proxies_have_one_for_every_class(name):
    loss = named_loss(name, 3, 4)
    assert LOSSES[name].has_proxies == hasattr(loss, "proxies")
    if LOSSES[name].has_proxies:
        assert len(loss.proxies) == 3


@pytest.mark.parametrize("package", [otdml.dml.proxies, otdml.dml.pairs])
def test_every_public_name_of_a_loss_is_one_of_the_package(package):
    files = [module.name for module in iter_modules(package.__path__) if not module.name.startswith("_")]
    assert files
    for file in files:
        module = import_module(f"{package.__name__}.{file}")
        named = {name: getattr(otdml.dml, name, None) for name in module.__all__}
        assert named == {name: getattr(module, name) for name in named}


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown loss 'proxy-ancor'\. Did you mean 'proxy-anchor'"):
        named_loss("proxy-ancor", 3, 4)
