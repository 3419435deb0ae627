"""Dispersion in a word: what it reads, what it refuses, and what it adds to a training loss."""

import pytest
import torch
from torch import nn

from otdml.data import Digits
from otdml.dml import Dispersion, ProxyDML, TrainingConfig, fit
from otdml.dml.dispersion import REGULARISERS
from otdml.losses import kernel_dispersion, koleo
from otdml.losses.dispersion import nearest_angles

SMALL = {"backbone_options": {"widths": (4, 8)}, "dim": 8, "seed": 0}


@pytest.mark.parametrize(
    ("text", "name", "weight", "place", "written"),
    [
        ("koleo:0.1", "koleo", 0.1, "embeddings", "koleo:0.1"),
        ("koleo:1e-1@embeddings", "koleo", 0.1, "embeddings", "koleo:0.1"),
        ("max-min-angle:2.0@proxies", "max-min-angle", 2.0, "proxies", "max-min-angle:2@proxies"),
        ("riesz:1e20", "riesz", 1e20, "embeddings", "riesz:1e20"),
    ],
)
def test_reads_name_weight_and_place(text, name, weight, place, written):
    found = Dispersion(text)
    assert (found.name, found.weight, found.place, str(found)) == (name, weight, place, written)
    assert str(Dispersion(written)) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("koleo", r"`dispersion` must be NAME:WEIGHT or NAME:WEIGHT@PLACE with a positive weight, got 'koleo'. For"),
        ("koleo:", "got 'koleo:'"),
        ("koleo:much", "with a positive weight, got 'koleo:much'"),
        ("koleo:-0.1", "with a positive weight, got 'koleo:-0.1'"),
        ("koleo:0", "with a positive weight"),
        ("koleo:nan", "with a positive weight"),
        ("koleo:inf", "with a positive weight"),
        ("koleo:0.1@", "with a positive weight, got 'koleo:0.1@'"),
        ("koleo@proxies:0.1", "with a positive weight"),
        ("kolleo:0.1", r"unknown dispersion 'kolleo'. Did you mean 'koleo'\?"),
        (":0.1", "unknown dispersion ''"),
        ("koleo:0.1@proxy", r"unknown place of dispersion 'proxy'. Did you mean 'proxies'\?"),
    ],
)
def test_says_what_it_cannot_read(text, message):
    with pytest.raises(ValueError, match=message):
        ProxyDML(3, **SMALL, dispersion=text)


@pytest.mark.parametrize("name", REGULARISERS)
def test_every_name_parts_two_near_points(name, generator):
    """A step down the gradient increases the angle between the nearest of a few points."""
    torch.manual_seed(0)
    z = torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0], [0.0, 0.0, 1.0]], requires_grad=True)
    Dispersion(f"{name}:1")(z, torch.ones(1, 3)).backward()
    moved = (z - 0.01 * z.grad / z.grad.norm()).detach()
    assert nearest_angles(moved).mean() > nearest_angles(z.detach()).mean()


def test_the_training_loss_is_the_weighted_sum(generator):
    images, labels = torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3
    plain = ProxyDML(3, **SMALL)
    expected, z = plain.losses(images, labels)["loss"], plain(images)
    for place, points in (("", z), ("@proxies", plain.loss.proxies)):
        terms = ProxyDML(3, **SMALL, dispersion=f"koleo:0.3{place}").losses(images, labels)
        torch.testing.assert_close(terms["dispersion"], koleo(points))
        torch.testing.assert_close(terms["loss"], expected + 0.3 * koleo(points))


def test_several_centres_of_a_class_are_parted_like_any():
    module = ProxyDML(3, **SMALL, loss="soft-triple", loss_options={"centres": 2}, dispersion="uniformity:1@proxies")
    terms = module.losses(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    torch.testing.assert_close(terms["dispersion"], kernel_dispersion(module.loss.proxies.view(6, 8), log=True))


def test_proxies_need_a_loss_that_has_some():
    class Bare(nn.Module):
        def forward(self, z, labels):
            return z.square().sum()

    with pytest.raises(ValueError, match="`dispersion` must be on embeddings for a loss without `proxies`, got 'koleo"):
        ProxyDML(3, **SMALL, loss=Bare(), dispersion="koleo:1@proxies")
    assert ProxyDML(3, **SMALL, loss=Bare(), dispersion="koleo:1").dispersion is not None


def test_proxies_without_another_force_reach_the_simplex(tmp_path):
    """With no proxy loss, three proxies end at angles of 120 degrees."""
    module = ProxyDML(3, **SMALL, loss_weight=0.0, dispersion="uniformity:1@proxies", lr=0.1, schedule="cosine")
    config = TrainingConfig(epochs=20, classes_per_batch=3, samples_per_class=2, batches_per_epoch=5, accelerator="cpu")
    fit(module, Digits(split="train"), folder=tmp_path, config=config, progress=False)
    assert nearest_angles(module.loss.proxies.detach()).tolist() == pytest.approx([120.0] * 3, abs=0.5)


def test_checkpoints_keep_it_and_a_resumed_run_ends_with_the_same_numbers(tmp_path):
    options = {"dispersion": "sliced:0.5", "lr": {"backbone": 1e-3, "proxies": 1e-2}}
    batches = {"classes_per_batch": 3, "samples_per_class": 4, "batches_per_epoch": 2, "accelerator": "cpu"}

    def run(name, stop=None):
        module = ProxyDML(3, **SMALL, **options)

        def on_epoch(epoch, row):
            if epoch == stop:
                raise KeyboardInterrupt

        config = TrainingConfig(epochs=3, **batches)
        fit(module, Digits(split="train"), folder=tmp_path / name, config=config, progress=False, on_epoch=on_epoch)
        return module

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop=0)
    resumed = run("stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    header = (tmp_path / "whole" / "curve.csv").read_text().splitlines()[0]
    assert "dispersion" in header.split(",")
    loaded = ProxyDML.load_from_checkpoint(tmp_path / "whole" / "last.ckpt")
    assert str(loaded.dispersion) == "sliced:0.5"
