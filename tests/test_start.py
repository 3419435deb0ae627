"""Networks whose initial values come from a seed of their own."""

import pytest
import torch

from otdml.contrast import Encoder
from otdml.disentanglement.autoencoder import seeded
from otdml.dml.prototypes import PrototypeClassifier
from otdml.language import TiedLanguageModel

NETWORKS = {
    "language": lambda seed: TiedLanguageModel(5, 4, seed=seed, width=8, layers=1, heads=2, context=4),
    "encoder": lambda seed: Encoder(seed=seed, widths=(4,), dim=2),
    "autoencoder": lambda seed: seeded(seed, size=8, width=2, codes=2),
    "prototypes": lambda seed: PrototypeClassifier(3, 2, seed=seed, size=8, widths=(4, 4)),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_seeded_network_leaves_the_generators_of_all_devices_as_they_were(make, monkeypatch):
    seeded_gpus = []
    for device in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all"):
            monkeypatch.setattr(device, name, seeded_gpus.append, raising=False)
    before = torch.get_rng_state()
    first, again, other = make(0), make(0), make(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded_gpus == []
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_seeded_network_is_made_on_the_default_device(make):
    with torch.device("meta"):
        assert {parameter.device.type for parameter in make(0).parameters()} == {"meta"}
