"""Does keeping geometry disentangle the codes of an autoencoder? First: does the autoencoder without it?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otdml.disentanglement import (
    FACTORS,
    SCENES,
    SPRITES,
    Objective,
    Schedule,
    Trees,
    load_dsprites,
    regularizer,
    scores,
    training,
)
from otdml.disentanglement.autoencoder import seeded
from otdml.dml.fingerprint import file_hash
from otdml.studies.protocol import Arm, Reading, Score, Study, readings

__all__ = ["CLAIMED", "KINDS", "STUDIES", "TUNING", "Kind", "arm", "objective", "pictures", "run"]

SCORES = (
    Score("disentanglement", "DCI-D"),
    Score("completeness", "DCI-C"),
    Score("informativeness", "DCI-I"),
    Score("mig", "MIG"),
    Score("error", "error of a picture", -1, 2),
    Score("active", "active codes", 0, 1),
    Score("distortion", "distortion", 0, 4),
    Score("gap", "gap", 0, 5),
)
# What all arms share unless they say otherwise. Trees are fitted to `train` rows, and tested on `test` others.
SHARED: dict[str, Any] = {
    "size": 32,
    "images": 60_000,
    "width": 16,
    "steps": 20_000,
    "batch": 64,
    "rate": 5e-4,
    "cosine": False,
    "beta": 1.0,
    "prior": "kl",
    "regularizer": "none",
    "cost": "cosine",
    "weight": 0.0,
    "place": "decoder",
    "train": 4000,
    "test": 1000,
    "rounds": 20,
    "readings": 8,
}
# What belongs to a set of pictures.
OWN: dict[str, dict[str, Any]] = {"sprites": {"radius": 0.095}, "scenes": {}, "dsprites": {"size": 64}}
# Regularizers with their places and costs. On one set of pictures all are compared; on others the gap as its authors
# advise it, and what differs from that in the regularizer or in the place.
Kind = tuple[str, str, str]
KINDS: tuple[Kind, ...] = tuple(product(("distortion", "gap"), ("decoder", "encoder"), ("cosine", "sqeuclidean")))
CLAIMED: tuple[Kind, ...] = (
    ("distortion", "decoder", "cosine"),
    ("gap", "decoder", "cosine"),
    ("gap", "encoder", "cosine"),
)
# The weights that are tried. Squared distances of pictures are tens, and enter squared.
WEIGHTS = {"cosine": (3.0, 30.0, 300.0), "sqeuclidean": (0.003, 0.03, 0.3)}
# Settings are chosen on these seeds, and reported on others.
TUNING = (100, 101, 102)
SETS = {"sprites": SPRITES, "scenes": SCENES}


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Fit one autoencoder, and score it on the way; arms of one seed see the same pictures and start from one network.

    Args:
        settings: As in ``SHARED``.
        seed: Of the pictures, weights, batches and draws.
        data: The archive of dSprites, where its pictures are asked for.
    """
    images, held_out, factors, counts = pictures(settings, seed, data)
    model = seeded(seed, size=settings["size"], width=settings["width"], channels=images.shape[1])
    schedule = Schedule(settings["steps"], settings["batch"], settings["rate"], settings["cosine"])
    trees = Trees(settings["train"], settings["rounds"])
    steps = training(model, images, objective(settings), schedule, torch.Generator().manual_seed(seed))

    def reached() -> dict[str, float]:
        return asdict(scores(model, held_out, factors, counts, trees=trees))

    yield from readings(steps, schedule.steps, settings["readings"], reached, often=100)


def objective(settings: Mapping[str, Any]) -> Objective:
    """What the autoencoder of these settings minimises."""
    name = settings["regularizer"]
    asked = None if name == "none" else regularizer(name, settings["cost"])
    options = {name: settings[name] for name in ("beta", "prior", "weight", "place")}
    return Objective(regularizer=asked, reconstruction=settings.get("reconstruction", True), **options)


def pictures(settings: Mapping[str, Any], seed: int, data: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures to fit to, as bytes; others to score on, their factors, and how many values each has."""
    generator = torch.Generator().manual_seed(seed)
    n, size, held_out = settings["images"], settings["size"], settings["train"] + settings["test"]
    if settings["pictures"] == "dsprites":
        images, factors = load_dsprites(data or "", n + held_out, generator=generator)
        parts = images.split([n, held_out])
        return (255 * parts[0]).byte(), parts[1], factors[n:], torch.tensor(list(FACTORS.values()))
    drawn = SETS[settings["pictures"]]
    options = {name: settings[name] for name in OWN[settings["pictures"]]}
    # Some at a time: bytes take a quarter of the memory of numbers.
    sizes = [min(5000, n - start) for start in range(0, n, 5000)]
    parts = [(255 * drawn.draw(k, size=size, generator=generator, **options)[0]).round().byte() for k in sizes]
    return torch.cat(parts), *drawn.draw(held_out, size=size, generator=generator, **options), drawn.counts


def arm(name: str, *against: str, **own: Any) -> Arm:
    """An arm with the shared settings, those of its pictures, and its own."""
    return Arm(name, {**SHARED, **OWN[own["pictures"]], **own}, against)


# The pictures that are not drawn here.
_ARCHIVE: dict[str, Any] = {
    "needs": "the archive dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "data_hash": file_hash,
}


def _base(pictures: str, *extra: Arm) -> Study:
    """The choice of β, and what else the plain autoencoder needs."""
    arms = [arm(f"beta {b}", *(["beta 1"] if b > 1 else []), pictures=pictures, beta=b) for b in (1, 2, 4, 8, 16)]
    return Study(
        name=f"{pictures}-base",
        question=f"Which plain autoencoder disentangles {pictures}, and from which β on?",
        method="β-VAE without a regularizer. DCI by boosted trees of 20 rounds on 4,000 rows, tested on 1,000.",
        arms=(*arms, *extra),
        seeds=TUNING,
        scores=SCORES,
        run=run,
        **(_ARCHIVE if pictures == "dsprites" else {}),
    )


def _correlation(pictures: str) -> Study:
    """β-TCVAE beside β-VAE."""
    control = arm("kl 1", pictures=pictures, beta=1.0)
    arms = [arm(f"tc {b}", "kl 1", pictures=pictures, beta=float(b), prior="tc") for b in (2, 4, 6, 10)]
    return Study(
        name=f"{pictures}-tc",
        question=f"Does a penalty of the total correlation disentangle {pictures} more than the plain autoencoder?",
        method="β-TCVAE, whose β weighs the total correlation alone, beside the VAE. DCI as for the plain one.",
        arms=(control, *arms),
        seeds=TUNING,
        scores=SCORES,
        run=run,
    )


class _Geometry(NamedTuple):
    """What keeps the geometry of an encoder without a decoder, of its means or of draws from its posterior."""

    place: str
    regularizer: str
    cost: str
    weight: float

    @property
    def title(self) -> str:
        of = "posterior " if self.place == "posterior" else ""
        return f"{of}{self.regularizer} {self.cost} {self.weight:g}"

    def claimed_better(self, other: "_Geometry") -> bool:
        """Whether this should be the better of the two: the gap than the distortion, cosines than squared distances."""
        if self.regularizer != "gap" or self.place != other.place:
            return False
        if other.regularizer == "distortion":
            return self.cost == other.cost
        return (self.cost, other.cost) == ("cosine", "sqeuclidean")


def _without_decoder(pictures: str, asked: Sequence[_Geometry]) -> Study:
    """An encoder alone, kept to the prior, and to the geometry of the pictures by a loss."""
    tried = partial(arm, pictures=pictures, reconstruction=False, beta=1.0, readings=4)
    # By place: the prior, and the name of the control.
    priors = {"encoder": ("energy", "prior alone"), "posterior": ("kl", "posterior alone")}
    places = dict.fromkeys(one.place for one in asked)
    controls = [tried(priors[place][1], prior=priors[place][0], place=place) for place in places]
    arms = [
        tried(
            one.title, priors[one.place][1], *(other.title for other in asked if one.claimed_better(other)),
            prior=priors[one.place][0], place=one.place,
            regularizer=one.regularizer, cost=one.cost, weight=one.weight,
        )
        for one in asked
    ]  # fmt: skip
    return Study(
        name=f"{pictures}-free",
        question=f"Does an encoder without a decoder disentangle {pictures} when it keeps their geometry?",
        method="No picture is decoded. Means are kept to the normal prior by an energy distance, posteriors by their"
        " divergence; the controls have nothing else. No rotation of the means changes the energy distance or their"
        " geometry, so that their axes are left to chance; the noise of posteriors tells apart directions of unequal"
        " variance. Of one place, the gap is compared with the distortion as well, and cosines with squared distances."
        " DCI as for the plain autoencoder.",
        arms=(*controls, *arms),
        seeds=TUNING,
        scores=tuple(score for score in SCORES if score.name not in _DECODED),
        run=run,
    )


# Scores of the decoder.
_DECODED = ("error", "distortion", "gap")
# Weights grow as costs of pictures shrink. The divergence of a posterior with some nats for each factor outweighs
# smaller ones.
_FREE = {
    "sprites": (
        _Geometry("encoder", "distortion", "cosine", 10.0),
        _Geometry("encoder", "gap", "cosine", 10.0),
        _Geometry("encoder", "gap", "cosine", 100.0),
        _Geometry("encoder", "gap", "sqeuclidean", 0.1),
        _Geometry("posterior", "distortion", "cosine", 1000.0),
        _Geometry("posterior", "gap", "cosine", 1000.0),
        _Geometry("posterior", "gap", "sqeuclidean", 0.1),
    ),
    "scenes": (
        _Geometry("encoder", "gap", "cosine", 100.0),
        _Geometry("posterior", "distortion", "cosine", 1000.0),
        _Geometry("posterior", "gap", "cosine", 1000.0),
        _Geometry("posterior", "gap", "sqeuclidean", 0.01),
    ),
}


def _weights(pictures: str, beta: float, kinds: Iterable[Kind]) -> Study:
    """The weight of each regularizer, at each place and cost that is tried."""
    control = arm("none", pictures=pictures, beta=beta)
    arms = [
        arm(
            f"{name} {place} {cost} {weight:g}", "none",
            pictures=pictures, beta=beta, regularizer=name, place=place, cost=cost, weight=weight,
        )
        for name, place, cost in kinds
        for weight in WEIGHTS[cost]
    ]  # fmt: skip
    return Study(
        name=f"{pictures}-weights",
        question=f"Which weights of distortion and Gromov-Monge gap disentangle {pictures} most?",
        method=f"β-VAE with β = {beta:g}, one regularizer on its encoder or decoder. DCI as for the plain one.",
        arms=(control, *arms),
        seeds=TUNING[:2],
        scores=SCORES,
        run=run,
    )


class _Tried(NamedTuple):
    """Settings of an autoencoder, and the weights of the gap that are tried under them."""

    title: str
    settings: Mapping[str, Any]
    weights: tuple[float, ...]


def _settings(pictures: str, beta: float) -> Study:
    """The gap under other settings of the autoencoder, each beside the autoencoder of these settings."""

    def arms() -> Iterator[Arm]:
        for tried in _TRIED:
            settings = {"pictures": pictures, "beta": beta, **tried.settings}
            yield arm(tried.title, **settings)
            for weight in tried.weights:
                title = f"{tried.title}, gap {weight:g}"
                yield arm(title, tried.title, regularizer="gap", weight=weight, **settings)

    return Study(
        name=f"{pictures}-settings",
        question=f"Under which other settings does the Gromov-Monge gap of the decoder disentangle {pictures} more?",
        method=f"β-VAE with β = {beta:g} but for what an arm is named by; the gap is of cosines. All see as many"
        " pictures. DCI as for the plain one.",
        arms=tuple(arms()),
        seeds=TUNING[:2],
        scores=SCORES,
        run=run,
    )


# What is tried besides the weight of the gap, its cost and its place.
# With β = 16 all but three codes are silent, which leaves little to gain; with less more of them speak.
_TRIED = (
    _Tried("beta 1", {"beta": 1.0}, (3.0, 30.0)),
    _Tried("beta 4", {"beta": 4.0}, (3.0, 30.0)),
    _Tried("batch 128", {"batch": 128, "steps": 10_000}, (3.0,)),
    _Tried("falling rate of 1e-3", {"rate": 1e-3, "cosine": True}, (3.0,)),
)
# What keeps the plain autoencoder of sprites from disentangling, one setting at a time.
_REASONS = (
    arm("beta 8, small sprites", "beta 8", pictures="sprites", beta=8, radius=0.07),
    arm("beta 8, falling rate of 1e-3", "beta 8", pictures="sprites", beta=8, rate=1e-3, cosine=True),
    arm("beta 8, 2,500 steps", "beta 8", pictures="sprites", beta=8, steps=2500),
    arm("beta 8, 32 channels", "beta 8", pictures="sprites", beta=8, width=32),
    arm("beta 8, 100 rounds", "beta 8", pictures="sprites", beta=8, rounds=100, readings=1),
)

STUDIES = {
    study.name: study
    for study in (
        _base("sprites", *_REASONS),
        _weights("sprites", 16, KINDS),
        _settings("sprites", 16),
        _correlation("sprites"),
        *(_without_decoder(*of) for of in _FREE.items()),
        _base("scenes"),
        _weights("scenes", 8, CLAIMED),
        _base("dsprites"),
    )
}
