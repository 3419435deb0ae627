"""The encoder learns what pairs of views share, and repeats with its seed."""

import copy

import pytest
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


def test_a_learnable_temperature_is_learnt():
    """Adam's first step has the length of the rate."""
    images = (255 * torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))).byte()
    loss, start = InfoNCE(learnable=True), InfoNCE(learnable=True)
    step = {"steps": 1, "batch": 16, "rate": 1e-2}
    list(training(Encoder(seed=0, widths=(4,), dim=3), images, loss, PLAIN, **step, generator=torch.Generator()))
    assert abs(float(loss.log_eps.detach() - start.log_eps.detach())) == pytest.approx(1e-2, rel=1e-3)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_precision(dtype):
    encoder = Encoder(seed=0, widths=(4, 8), dim=3).eval()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, expected = encoder(images), encoder(images.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(encoder.features(images), encoder.features(images.float()))


def test_an_encoder_of_another_precision_trains():
    images = (255 * torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))).byte()
    encoder = Encoder(seed=0, widths=(4, 8), dim=3)
    twin = copy.deepcopy(encoder).double().eval()
    torch.testing.assert_close(twin(images / 255), encoder.eval()(images / 255).double(), rtol=0, atol=1e-5)
    options = {"steps": 2, "batch": 8, "rate": 1e-3, "domains": torch.arange(40) % 2}
    generator = torch.Generator().manual_seed(0)
    assert list(training(twin, images, lambda a, b, _: (a - b).square().sum(), PLAIN, **options, generator=generator))
    assert twin.features(images).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_encoder_on_a_gpu_takes_pictures_from_the_cpu():
    images, labels = (255 * torch.rand(40, 3, 8, 8)).byte(), torch.arange(40) % 2
    encoder = Encoder(seed=0, widths=(4, 8), dim=3).cuda()
    options = {"steps": 2, "batch": 8, "rate": 1e-3, "domains": labels}
    generator = torch.Generator().manual_seed(0)
    list(training(encoder, images, lambda a, b, _: (a - b).square().sum(), PLAIN, **options, generator=generator))
    z = encoder.features(images)
    assert z.device.type == "cuda"
    assert neighbours(z, labels, z, labels, k=1) == 1.0


@pytest.mark.parametrize("native", [True, False])
def test_the_precision_is_bfloat16_only_where_the_device_multiplies_in_it(native, monkeypatch):
    monkeypatch.setattr("otdml.contrast.encoder.multiplies_in_bfloat16", lambda device: native)
    images = (255 * torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))).byte()
    encoder = Encoder(seed=0, widths=(4, 8), dim=3)
    seen = []
    encoder.head[0].register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    options = {"steps": 1, "batch": 8, "rate": 1e-3, "generator": torch.Generator().manual_seed(0)}
    list(training(encoder, images, lambda a, b: (a - b).square().sum(), PLAIN, **options))
    assert seen == [torch.bfloat16 if native else torch.float32]
    away = (encoder.features(images) - encoder.eval().pooled(images / 255)).abs().max()
    assert (away > 1e-4) == native
    assert away < 3e-2
