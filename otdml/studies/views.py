"""Which contrastive loss learns from two views of a picture, and which from views of which some are spoiled?"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otdml._arguments import argument_error
from otdml.contrast import Encoder, Pairs, Views, class_pictures, linear_probe, neighbours, training
from otdml.dml.fingerprint import hashed
from otdml.losses import ContrastiveAlignment
from otdml.studies.protocol import Arm, Reading, Score, Study, readings

__all__ = ["NEEDS", "STUDIES", "pictures", "pictures_hash", "run"]

SCORES = (Score("probe", "linear probe"), Score("neighbours", "vote of 20 neighbours"))
# What all arms share unless they say otherwise. Every loss is taken over all views of the batch.
SHARED: dict[str, Any] = {
    "steps": 1560,
    "batch": 128,
    "rate": 2e-3,
    "eps": 0.5,
    "q": 0.5,
    "lam": 0.01,
    "rho": 1.0,
    "readings": 4,
}
# The marginals of the plan, and its divergence from the target.
LOSSES: dict[str, dict[str, Any]] = {
    "InfoNCE": {"marginals": "rows", "divergence": "kl"},
    "RINCE": {"marginals": "rows", "divergence": "rince"},
    "InfoNCE + RINCE": {"marginals": "rows", "divergence": "kl+rince"},
    "GCA-INCE": {"marginals": "balanced", "divergence": "kl"},
    "GCA-RINCE": {"marginals": "balanced", "divergence": "rince"},
    "GCA-UOT": {"marginals": "rho", "divergence": "kl+rince"},
}
# Losses that differ in the marginals alone, or in the bound alone, are compared too, besides each with InfoNCE.
AGAINST = {"GCA-RINCE": ("RINCE",), "GCA-UOT": ("RINCE", "InfoNCE + RINCE")}
CROPS = [0.2, 1.0]
NEEDS = "CIFAR-10 as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg, in a folder or a zip archive"


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Train an encoder, and judge it on the way; arms of one seed start alike and see the same batches and crops.

    Args:
        settings: As in ``SHARED``, with those of a loss and of the views.
        seed: Of weights, batches, views and spoils.
        data: Folder or archive of ``train/CLASS/NAME.jpg`` and ``test/CLASS/NAME.jpg``.
    """
    images, labels, test_images, test_labels = pictures(Path(data or "."))
    encoder, steps = Encoder(seed=seed), settings["steps"]
    pairs = Pairs(Views(crop=tuple(settings["crop"])), settings["spoil"], settings["share"])
    options = {name: settings[name] for name in ("steps", "batch", "rate")}
    generator = torch.Generator().manual_seed(seed)
    done = training(encoder, images, _loss(settings), pairs, **options, generator=generator)

    def reached() -> dict[str, float]:
        rows = encoder.features(images), labels, encoder.features(test_images), test_labels
        return {"probe": linear_probe(*rows), "neighbours": neighbours(*rows)}

    yield from readings(done, steps, settings["readings"], reached)


@cache
def pictures(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures to train on as bytes, their classes, and the same of those to test on."""
    (images, labels, names), (test_images, test_labels, others) = (class_pictures(path, p) for p in ("train", "test"))
    if names != others:
        raise argument_error("data", "have the same classes in train and test", sorted({*names} ^ {*others}))
    return images, labels, test_images, test_labels


def pictures_hash(path: Path | None) -> str:
    """A hash of all of them."""
    return hashed(*pictures(path or Path(".")))


def _loss(settings: Mapping[str, Any]) -> nn.Module:
    marginals = settings["rho"] if settings["marginals"] == "rho" else settings["marginals"]
    options = {name: settings[name] for name in ("eps", "divergence", "q", "lam")}
    return ContrastiveAlignment(marginals=marginals, form="joint", **options)


def _study(name: str, views: str, *, crop: list[float] = CROPS, spoil: str = "wrong", share: float = 0.0) -> Study:
    """All losses on one kind of views."""
    settings = {**SHARED, "crop": crop, "spoil": spoil, "share": share}
    arms = [
        Arm(loss, settings | options, () if loss == "InfoNCE" else ("InfoNCE", *AGAINST.get(loss, ())))
        for loss, options in LOSSES.items()
    ]
    passes = SHARED["steps"] * SHARED["batch"] / 20_000
    return Study(
        name=f"views-{name}",
        question=f"Which contrastive loss learns most from {views}?",
        method="Half of CIFAR-10, 20,000 pictures to train on and 5,000 to test on. A residual network of four blocks"
        f" (16 to 128 channels) on 16 × 16 points, {passes:.0f} passes in batches of {SHARED['batch']}, temperature"
        f" {SHARED['eps']}; then it is frozen, and judged with all labels.",
        arms=tuple(arms),
        seeds=(0, 1, 2, 3, 4),
        scores=SCORES,
        run=run,
        needs=NEEDS,
        data_hash=pictures_hash,
    )


STUDIES = {
    study.name: study
    for study in (
        _study("clean", "clean views"),
        _study("wrong-20", "views of which one in five is of another picture", share=0.2),
        _study("wrong-50", "views of which every second one is of another picture", share=0.5),
        _study("wrong-80", "views of which four in five are of another picture", share=0.8),
        _study("crops", "strong crops, of 5 to 20 % of the picture", crop=[0.05, 0.2]),
        _study("noise", "views of which every second one is noise", spoil="noise", share=0.5),
    )
}
