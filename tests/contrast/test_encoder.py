"""The encoder learns what pairs of views share, and repeats with its seed."""

import torch

from otdml.contrast import Encoder, Pairs, Views, neighbours, training
from otdml.losses import InfoNCE

PLAIN = Pairs(Views(crop=(0.2, 0.5), colour=0.0, grey=0.0))


def fitted(images, seed, **options):
    encoder = Encoder(seed=seed, widths=(8, 16), dim=8)
    options = {"steps": 40, "batch": 32, "rate": 1e-2} | options
    steps = list(
        training(
            encoder, images, InfoNCE(form="joint"), PLAIN, **options, generator=torch.Generator().manual_seed(seed)
        )
    )
    assert steps == list(range(1, options["steps"] + 1))
    return encoder


def test_networks_of_one_seed_are_alike_and_the_global_generator_is_left():
    state = torch.get_rng_state()
    first, second, third = (Encoder(seed=seed, widths=(4,)).head[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_those_of_evaluation_and_do_not_depend_on_the_batch():
    encoder = Encoder(seed=0, widths=(4, 8))
    images = (255 * torch.rand(20, 3, 8, 8)).byte()
    whole = encoder.features(images)
    assert encoder.training
    assert torch.allclose(whole[:3], encoder.features(images[:3]), atol=1e-5)
    assert torch.allclose(whole, encoder.features(images.float() / 255), atol=1e-5)
    assert not whole.requires_grad


def test_training_repeats_with_its_seed():
    images = (255 * torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))).byte()
    first, second, third = (fitted(images, seed, steps=3).features(images) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_pictures_of_one_kind_come_to_lie_together():
    """Stripes of two directions at random phases: near pictures in pixels are of either kind, learnt ones of one."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(200) % 2
    phase = 2 * torch.pi * torch.rand(200, 1, 1, generator=generator)
    axis = torch.arange(16.0)
    waves = (1.2 * torch.where(kind[:, None, None] == 0, axis[:, None], axis[None, :]) + phase).sin()
    noise = 0.1 * torch.randn(200, 3, 16, 16, generator=generator)
    images = (255 * (0.5 + 0.2 * waves[:, None] + noise).clamp(0, 1)).byte()
    z = fitted(images, 0).features(images)
    assert neighbours(z[:150], kind[:150], z[150:], kind[150:], k=5) > 0.95
