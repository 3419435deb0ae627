"""What does a contrastive loss keep of the domain of a picture, when its target says what to do with domains?"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otdml.contrast import Encoder, Pairs, corrupted, linear_probe, training
from otdml.losses import ContrastiveAlignment, DomainTarget
from otdml.studies import views
from otdml.studies.protocol import Arm, Reading, Score, Study, readings

__all__ = ["STUDIES", "run"]

SCORES = (
    Score("domain", "linear probe of the domain", 0),
    Score("probe", "linear probe of the class"),
    Score("unseen", "linear probe of the class, unseen domain"),
)
SEEN = ("none", "noise", "blur", "contrast")
UNSEEN = "pixels"
# What all arms share unless they say otherwise.
SHARED: dict[str, Any] = {
    "steps": 1560,
    "batch": 128,
    "rate": 2e-3,
    "eps": 0.5,
    "marginals": "rows",
    "alpha": 0.0,
    "beta": 0.0,
    "readings": 4,
}


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Train an encoder on pictures of four domains, and judge it on the way; arms of one seed see the same views.

    Args:
        settings: As in ``SHARED``.
        seed: Of the domain of each picture, its noise, weights, batches and views.
        data: Folder or archive of ``train/CLASS/NAME.jpg`` and ``test/CLASS/NAME.jpg``.
    """
    images, labels, test_images, test_labels = views.pictures(Path(data or "."))
    generator = torch.Generator().manual_seed(seed)
    (images, domains), (seen, test_domains) = (_mixed(part, generator) for part in (images, test_images))
    unseen = _bytes(corrupted(test_images.float() / 255, UNSEEN, generator))
    encoder, steps = Encoder(seed=seed), settings["steps"]
    options = {name: settings[name] for name in ("steps", "batch", "rate")}
    done = training(encoder, images, _loss(settings), Pairs(), **options, domains=domains, generator=generator)

    def reached() -> dict[str, float]:
        z, test_z = encoder.features(images), encoder.features(seen)
        return {
            "domain": linear_probe(z, domains, test_z, test_domains),
            "probe": linear_probe(z, labels, test_z, test_labels),
            "unseen": linear_probe(z, labels, encoder.features(unseen), test_labels),
        }

    yield from readings(done, steps, settings["readings"], reached)


def _mixed(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures as bytes, each corrupted in a way drawn for it, and the number of that way."""
    domains = torch.randint(len(SEEN), (len(images),), generator=generator)
    mixed = torch.empty_like(images)
    for i, kind in enumerate(SEEN):
        mixed[domains == i] = _bytes(corrupted(images[domains == i].float() / 255, kind, generator))
    return mixed, domains


def _bytes(images: Tensor) -> Tensor:
    return (255 * images).round().byte()


def _loss(settings: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    loss = ContrastiveAlignment(marginals=settings["marginals"], eps=settings["eps"], form="joint")

    def of_domains(first: Tensor, second: Tensor, domains: Tensor) -> Tensor:
        if settings["alpha"] == settings["beta"] == 0:
            return loss(first, second)
        return loss(first, second, DomainTarget(domains, settings["alpha"], settings["beta"]))

    return of_domains


def _arms() -> Iterator[Arm]:
    """Masses that domains have beside a positive pair, as a share of it, over all pairs of one domain, or of two."""
    yield Arm("positive pairs", SHARED)
    pairs = 2 * SHARED["batch"]
    for mass in (0.2, 1.0):
        within, between, all_ = (mass / (pairs * share) for share in (1 / len(SEEN), 1 - 1 / len(SEEN), 1))
        against = ("positive pairs", f"all pairs {mass:g}")
        yield Arm(f"all pairs {mass:g}", {**SHARED, "alpha": all_, "beta": all_}, against[:1])
        yield Arm(f"pairs of a domain {mass:g}", {**SHARED, "alpha": within}, against)
        yield Arm(f"pairs of two domains {mass:g}", {**SHARED, "beta": between}, against)


STUDIES = {
    "domains": Study(
        name="domains",
        question="Does the target of a contrastive loss decide what an encoder keeps of the domain of a picture?",
        method="Half of CIFAR-10, 20,000 pictures to train on and 5,000 to test on, each as it is, or with noise, blur"
        " or little contrast: its domain. InfoNCE whose target has mass for the pairs of one domain, of two, or for"
        " all, together a fifth of that of the positive pairs, or as much. Encoder and judges as for wrong views; the"
        " unseen domain is of squares of 2 × 2 pixels.",
        arms=tuple(_arms()),
        seeds=(0, 1, 2),
        scores=SCORES,
        run=run,
        needs=views.NEEDS,
        data_hash=views.pictures_hash,
    )
}
