"""The autoencoder: its parts by value, and that each term of its objective does what it is for."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from otdml.disentanglement import Autoencoder, Objective, Schedule, fit, sprites, total_correlation, training
from otdml.losses import MMD, Distortion, ScaledCost


@pytest.fixture(scope="module")
def images():
    return sprites(400, size=16, generator=torch.Generator().manual_seed(0))[0]


def test_shapes_and_divergence_from_the_prior(images):
    model = Autoencoder(codes=4, size=16, width=4)
    codes, logits, divergence = model(images[:5])
    assert (codes.shape, logits.shape, divergence.shape) == ((5, 4), (5, 1, 16, 16), (5,))
    mean, log_variance = model.encode(images[:5])
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).sum(1)
    torch.testing.assert_close(divergence, expected)


def test_colours():
    model = Autoencoder(codes=4, size=16, width=4, channels=3)
    assert model(torch.rand(2, 3, 16, 16))[1].shape == (2, 3, 16, 16)


def test_codes_follow_the_posterior():
    model = Autoencoder(codes=2, size=8, width=4)
    blank = torch.zeros(1, 1, 8, 8).expand(20_000, -1, -1, -1)
    codes = model(blank, torch.Generator().manual_seed(0))[0]
    mean, log_variance = model.encode(blank[:1])
    torch.testing.assert_close(codes.mean(0), mean[0], rtol=0, atol=0.05)
    torch.testing.assert_close(codes.var(0), log_variance[0].exp(), rtol=0.05, atol=0)


def test_total_correlation_of_gaussians():
    """Of a Gaussian with correlation r it is -log(1 - r²) / 2, which many posteriors of small variance make up."""
    generator = torch.Generator().manual_seed(0)
    r, noise = 0.8, 0.1
    first = torch.randn(2000, generator=generator)
    second = r * first + (1 - r**2) ** 0.5 * torch.randn(2000, generator=generator)
    mean = torch.stack([first, second], 1)
    log_variance = torch.full_like(mean, noise).log()
    codes = mean + noise**0.5 * torch.randn(2000, 2, generator=generator)
    covariance = torch.tensor([[1 + noise, r], [r, 1 + noise]])
    expected = (1 + noise) ** 2 / torch.linalg.det(covariance)
    found = total_correlation(codes, mean, log_variance)
    assert float(found) == pytest.approx(0.5 * float(expected.log()), abs=0.08)


def test_equal_posteriors_have_no_total_correlation():
    mean = torch.zeros(50, 3)
    assert float(total_correlation(torch.randn(50, 3), mean, mean)) == pytest.approx(0, abs=1e-5)


def test_a_beta_of_one_is_the_same_for_both_priors(images):
    model = Autoencoder(size=16, width=4)
    values = [
        Objective(prior=prior)(model, images[:20], torch.Generator().manual_seed(0)).detach() for prior in ("kl", "tc")
    ]
    torch.testing.assert_close(*values)


def test_objective_of_a_hand_made_model(images):
    """Where nothing is told the loss is the entropy of coins on every pixel."""
    model = Autoencoder(size=16, width=4)
    for p in model.parameters():
        p.data.zero_()
    assert float(Objective()(model, images[:20]).detach()) == pytest.approx(256 * math.log(2), rel=1e-5)


def test_a_seed_says_all(images):
    first, second = (fit(images, schedule=Schedule(steps=3), seed=1) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    other = fit(images, schedule=Schedule(steps=3), seed=2)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_bytes_are_pictures(images):
    whole = images.round()
    first, second = (fit(one, schedule=Schedule(steps=2)) for one in (whole, (255 * whole).byte()))
    torch.testing.assert_close(next(first.parameters()), next(second.parameters()))


def test_fitting_leaves_the_global_generator_alone(images):
    before = torch.get_rng_state()
    fit(images, schedule=Schedule(steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_are_learnt(images):
    errors = []
    for steps in (1, 300):
        model = fit(images, schedule=Schedule(steps=steps))
        with torch.no_grad():
            errors.append(float((model(images)[1].sigmoid() - images).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_beta_weighs_the_total_correlation_alone(images):
    model = Autoencoder(size=16, width=4)
    with torch.no_grad():
        value = {
            beta: Objective(beta=beta, prior="tc")(model, images[:20], torch.Generator().manual_seed(0))
            for beta in (1.0, 5.0)
        }
        codes, _, _ = model(images[:20], torch.Generator().manual_seed(0))
        expected = 4 * total_correlation(codes, *model.encode(images[:20]))
    torch.testing.assert_close(value[5.0] - value[1.0], expected, atol=1e-4, rtol=0)


def test_beta_holds_codes_to_the_prior(images):
    rates = []
    for beta in (0.0, 1.0, 20.0):
        model = fit(images, Objective(beta=beta), Schedule(steps=60))
        with torch.no_grad():
            rates.append(float(model(images)[2].mean()))
    assert rates[0] > 2 * rates[1] > 4 * rates[2]


def test_the_aggregate_prior_needs_no_noise_and_no_decoder(images):
    """Without a decoder the codes of many pictures become the prior, and nothing is drawn but that."""
    objective = Objective(beta=100.0, prior="energy", reconstruction=False)
    model = fit(images, objective, Schedule(steps=150, rate=3e-3), seed=1)
    with torch.no_grad():
        mean = model.encode(images)[0]
    torch.testing.assert_close(mean.mean(0), torch.zeros(10), atol=0.3, rtol=0)
    assert 0.3 < float(mean.var(0).mean()) < 1.5
    objective(model, images[:20]).backward()
    assert all(p.grad is None for p in model.decoder.parameters())


class Rotation(torch.nn.Module):
    """An encoder whose means are points times a matrix, with the same noise everywhere."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = torch.nn.Parameter(matrix)
        self.log_variance = torch.nn.Parameter(torch.tensor([-1.0, 0.5]))

    def encode(self, points):
        means = points @ self.matrix
        return means, self.log_variance.expand_as(means)


def rotation(angle):
    return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def test_only_noise_tells_axes_from_other_directions():
    """Rotated means leave every objective without a decoder as it is, but for those of codes that are drawn."""
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0])

    def change(place, prior, cost):
        objective = Objective(0.7, prior, Distortion(cost_x=cost, cost_y=cost), 0.3, place, reconstruction=False)
        values = [
            objective(Rotation(rotation(angle)), points, torch.Generator().manual_seed(1)).item()
            for angle in (0.0, math.pi / 2)
        ]
        return abs(values[1] - values[0]) / abs(values[0])

    for cost in ("cosine", "sqeuclidean"):
        assert change("encoder", "kl", cost) < 1e-5
        assert change("posterior", "kl", cost) > 1e-3
    # The prior's own draws are those of a rotated prior, but for chance: rotated too, they leave it as it was.
    energy, draws = MMD(kernel="energy"), torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(energy(points @ rotation(0.6), draws @ rotation(0.6)), energy(points, draws))


@pytest.mark.parametrize("seed", [0, 2])
def test_a_regularised_posterior_finds_the_axes_and_means_do_not(seed):
    """Of two factors of unequal variance, each is one code in the end, or any mixture of both."""

    def alignment(place, prior):
        generator = torch.Generator().manual_seed(seed)
        spread = torch.tensor([2.0, 1.0])
        model = Rotation(torch.linalg.qr(torch.randn(2, 2, generator=generator))[0])
        regularizer = Distortion(cost_x="sqeuclidean", cost_y="sqeuclidean")
        objective = Objective(1.0, prior, regularizer, 0.3, place, reconstruction=False)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(1500):
            optimizer.zero_grad()
            objective(model, torch.randn(64, 2, generator=generator) * spread, generator).backward()
            optimizer.step()
        shares = model.matrix.detach() * spread[:, None]
        return float((shares.abs() / shares.norm(dim=0)).amax(0).min())

    assert alignment("posterior", "kl") > 0.99
    assert alignment("encoder", "energy") < 0.95


# Geometry is kept by draws where the posterior has little noise, which the prior would have.
@pytest.mark.parametrize(("place", "asked"), [("decoder", 50.0), ("encoder", 50.0), ("posterior", 5000.0)])
def test_regularizer_keeps_geometry_where_it_is_asked_to(images, place, asked):
    found = {}
    for weight in (0.0, asked):
        model = fit(images, Objective(1.0, "kl", Distortion(), weight, place), Schedule(steps=150))
        with torch.no_grad():
            codes, logits, _ = model(images[:200], torch.Generator().manual_seed(0))
            mean = model.encode(images[:200])[0]
        points = images[:200].flatten(1)
        maps = {
            "decoder": (codes, logits.sigmoid().flatten(1)),
            "encoder": (points, mean),
            "posterior": (points, codes),
        }
        found[weight] = float(Distortion()(*maps[place]))
    assert found[asked] < 0.8 * found[0.0]


def test_a_learnable_scale_is_learnt(images):
    """Adam's first step, of its logarithm, has the length of the rate."""
    scale = ScaledCost("sqeuclidean", 3.0)
    fit(images, Objective(regularizer=Distortion(cost_y=scale), weight=1.0), Schedule(steps=1, rate=1e-2))
    assert abs(math.log(float(scale.scale.detach()) / 3)) == pytest.approx(1e-2, rel=1e-3)


def test_a_decoder_that_is_not_there_cannot_be_regularised():
    with pytest.raises(ValueError, match="`place` must be 'encoder' or 'posterior' where nothing is decoded"):
        Objective(regularizer=Distortion(), weight=1.0, reconstruction=False)
    with pytest.raises(ValueError, match="`place` must be 'encoder' where the prior is 'energy', got posterior"):
        Objective(prior="energy", regularizer=Distortion(), weight=1.0, place="posterior")
    with pytest.raises(ValueError, match="`weight` must be given with a `regularizer`, got None"):
        Objective(regularizer=Distortion())
    with pytest.raises(ValueError, match="`weight` must be None or zero without a `regularizer`, got 3"):
        Objective(weight=3.0)
    with pytest.raises(ValueError, match="`prior` must be one of"):
        Objective(prior="uniform")


def test_the_rate_falls_or_stays(images):
    """With a falling rate the last steps change next to nothing."""
    from otdml.disentanglement.autoencoder import seeded, training

    for cosine, still in ((True, True), (False, False)):
        model = seeded(0, size=16)
        steps = training(model, images, Objective(), Schedule(30, cosine=cosine), torch.Generator().manual_seed(0))
        before = None
        for step in steps:
            if step == 29:
                before = next(model.parameters()).clone()
        moved = float((next(model.parameters()) - before).detach().abs().max())
        assert (moved < 1e-5) == still


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prior", ["kl", "tc", "energy"])
def test_draws_are_of_the_precision_of_the_network(prior, dtype, images):
    model = Autoencoder(codes=2, size=16, width=4).to(dtype)
    steps = training(model, images, Objective(prior=prior), Schedule(1, batch=4), torch.Generator().manual_seed(0))
    assert list(steps) == [1]
    codes, logits, _ = model(images[:3], torch.Generator().manual_seed(0))
    assert codes.dtype == logits.dtype == dtype


def test_images_and_draws_go_where_the_network_is(images):
    """A generator of the CPU draws there alone; the meta device stands for a GPU."""
    model = Autoencoder(codes=2, size=16, width=4).to("meta")
    assert {x.device.type for x in model(images[:3], torch.Generator().manual_seed(0))} == {"meta"}
