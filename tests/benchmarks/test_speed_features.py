"""The speed table of features: every contender computes the same quantity."""

import importlib.util

import pytest
import torch

from otdml.benchmarks.speed import features as table

PEERS = [(name, library) for name, feature in table.FEATURES.items() for library in feature.peers]


@pytest.mark.parametrize(("name", "library"), PEERS)
@pytest.mark.filterwarnings("ignore")
def test_peers_compute_what_ours_does(name, library):
    feature = table.FEATURES[name]
    module, make = feature.peers[library]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    agree(feature, make())


@pytest.mark.parametrize("name", [name for name, feature in table.FEATURES.items() if feature.beside])
def test_other_ways_of_ours_lead_to_the_same(name):
    feature = table.FEATURES[name]
    for value in feature.beside.values():
        agree(feature, value)


def agree(feature, other):
    x, y = table._data(256, feature)
    x = x.requires_grad_(feature.gradient)
    found = [value(x, y) for value in (feature.ours, other)]
    assert table._distance(float(found[0]))(float(found[1])) < feature.error
    assert abs(float(found[0])) > 1e-2
    if feature.gradient:
        ours, theirs = (torch.autograd.grad(value, x)[0] for value in found)
        assert (theirs - ours).norm() < 0.05 * ours.norm()


def test_a_wrong_value_is_out():
    assert not table._within(1e-3)(table._distance(2.0)(2.01))
    assert table._within(1e-3)(table._distance(-2.0)(-2.001))
