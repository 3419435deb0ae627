"""The small autoencoder of sprites: its parts by value, and that a regularizer does what it is for."""

import sys

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from otdml.benchmarks import autoencoder
from otdml.benchmarks.autoencoder import SpriteVAE, fit, scores
from otdml.benchmarks.disentanglement import FACTORS, sprites
from otdml.losses import Distortion

# The gap is taken after few linearisations, which it says.
pytestmark = pytest.mark.filterwarnings("ignore:Gromov-Wasserstein stopped")


@pytest.fixture(scope="module")
def pictures():
    return sprites(400, size=16, generator=torch.Generator().manual_seed(0))


def test_shapes_and_divergence_from_the_prior(pictures):
    model, images = SpriteVAE(codes=4, size=16, width=4), pictures[0][:5]
    codes, logits, divergence = model(images)
    assert (codes.shape, logits.shape, divergence.shape) == ((5, 4), (5, 1, 16, 16), (5,))
    mean, log_variance = model.encode(images)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).sum(1)
    torch.testing.assert_close(divergence, expected)


def test_codes_follow_the_posterior():
    model = SpriteVAE(codes=2, size=8, width=4)
    images = torch.zeros(1, 1, 8, 8).expand(20_000, -1, -1, -1)
    codes = model(images, torch.Generator().manual_seed(0))[0]
    mean, log_variance = model.encode(images[:1])
    torch.testing.assert_close(codes.mean(0), mean[0], rtol=0, atol=0.05)
    torch.testing.assert_close(codes.var(0), log_variance[0].exp(), rtol=0.05, atol=0)


def test_a_seed_says_all(pictures):
    first, second = (fit(pictures[0], steps=3, seed=1) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    other = fit(pictures[0], steps=3, seed=2)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_fitting_leaves_the_global_generator_alone(pictures):
    before = torch.get_rng_state()
    fit(pictures[0], steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_are_learnt(pictures):
    images, factors = pictures
    errors = [scores(fit(images, steps=steps), images, factors, n_train=300).error for steps in (1, 300)]
    assert errors[1] < 0.5 * errors[0]


def test_beta_holds_codes_to_the_prior(pictures):
    images = pictures[0]
    divergences = []
    for beta in (0.0, 1.0, 20.0):
        model = fit(images, beta=beta, steps=60)
        with torch.no_grad():
            divergences.append(float(model(images)[2].mean()))
    assert divergences[0] > 2 * divergences[1] > 4 * divergences[2]


def test_regularizer_keeps_the_geometry_of_codes(pictures):
    images = pictures[0]
    found = {}
    for weight in (0.0, 50.0):
        model = fit(images, Distortion(), weight=weight, steps=150)
        with torch.no_grad():
            codes, logits, _ = model(images[:200], torch.Generator().manual_seed(0))
            found[weight] = float(Distortion()(codes, logits.sigmoid().flatten(1)))
    assert found[50.0] < 0.7 * found[0.0]


def test_the_command_prints_each_run_and_the_mean(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(autoencoder, "TRAIN", 300)
    monkeypatch.setattr(autoencoder, "TEST", 20)
    monkeypatch.setattr(autoencoder, "IMAGES", 100)
    monkeypatch.setattr(autoencoder, "REGULARIZERS", {"none": None, "distortion": (Distortion, 1.0)})
    out = tmp_path / "runs.txt"
    monkeypatch.setattr(sys, "argv", ["autoencoder", "--seeds", "4", "7", "--steps", "1", "--out", str(out)])
    autoencoder.main()
    lines = capsys.readouterr().out.splitlines()
    assert out.read_text().splitlines() == lines[:4]
    runs = [line.split("; ") for line in lines[:4]]
    assert [run[:2] for run in runs] == [["4", "none"], ["4", "distortion"], ["7", "none"], ["7", "distortion"]]
    assert lines[5].startswith("none")
    mean, spread = lines[5][24:42].split("±")
    first, second = (float(runs[i][2]) for i in (0, 2))
    assert float(mean) == pytest.approx((first + second) / 2, abs=1e-3)
    assert float(spread) == pytest.approx(abs(first - second) / 2**0.5, abs=1e-3)


def test_one_seed_has_no_spread():
    row = 0, "none", autoencoder.Scores(0.25, 0.5, 0.75, 0.125, 3.0, 0.1, 0.2)
    line = next(line for line in autoencoder.table([row]) if line.startswith("none"))
    assert line.split()[1:] == ["0.2500", "0.5000", "0.7500", "0.1250", "3.0000", "0.1000", "0.2000"]


def test_a_missing_archive_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["autoencoder", "--data", "nowhere.npz"])
    with pytest.raises(SystemExit, match="2"):
        autoencoder.main()
    assert "--data: there is no file nowhere.npz; leave it out" in capsys.readouterr().err


def test_ranges_of_factors_are_equal():
    steps = torch.arange(40 * 6)[:, None].expand(-1, 5) % torch.tensor(list(FACTORS.values()))
    found = autoencoder.ranges(steps)
    assert torch.equal(found[:, :2], steps[:, :2])
    assert found[:40, 2].bincount().tolist() == 8 * [5]
    assert found[:32, 3].bincount().tolist() == 8 * [4]
