"""How much of DCI is the model's, and how much that of the pictures and trees it is measured with?"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from otdml.disentanglement import SPRITES, Autoencoder, Schedule, Trees, coarse, dci, training
from otdml.disentanglement.autoencoder import seeded
from otdml.disentanglement.evaluation import posterior
from otdml.studies.disentanglement import TUNING, arm, objective, pictures
from otdml.studies.protocol import Arm, Reading, Score, Study

__all__ = ["STUDIES", "run"]

SCORES = (
    Score("disentanglement", "DCI-D"),
    Score("completeness", "DCI-C"),
    Score("informativeness", "DCI-I"),
)
# Settings that the autoencoder does not depend on.
MEASURING = ("draw", "train", "test", "rounds", "values")
CONTROL = "20 rounds on 4,000 rows"


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Measure one autoencoder of the seed, the same one in all arms.

    Args:
        settings: Those of a plain autoencoder of sprites; ``draw``, the seed of the pictures it is measured on; and
            ``values``, how many ranges a factor is cut into.
        seed: Of the autoencoder.
        data: None.
    """
    training_alone = {name: value for name, value in settings.items() if name not in MEASURING}
    model = _fitted(json.dumps(training_alone, sort_keys=True), seed)
    generator = torch.Generator().manual_seed(settings["draw"])
    n = settings["train"] + settings["test"]
    images, factors = SPRITES.draw(n, size=settings["size"], radius=settings["radius"], generator=generator)
    trees = Trees(settings["train"], settings["rounds"], settings["values"])
    with torch.no_grad():
        means, _ = posterior(model, images)
    found = dci(means, coarse(factors, SPRITES.counts, values=trees.values), n_train=trees.train, classifier=trees)
    yield Reading(settings["steps"], settings["steps"], asdict(found))


@lru_cache(maxsize=1)
def _fitted(settings: str, seed: int) -> Autoencoder:
    """The autoencoder of a seed, trained once for all arms, which come one after the other."""
    content = json.loads(settings)
    # One picture is drawn for measurements, and not used.
    images, *_ = pictures(content | {"train": 1, "test": 0}, seed, None)
    model = seeded(seed, size=content["size"], width=content["width"])
    schedule = Schedule(content["steps"], content["batch"], content["rate"], content["cosine"])
    for _ in training(model, images, objective(content), schedule, torch.Generator().manual_seed(seed)):
        pass
    return model


def _measured(name: str, **own: Any) -> Arm:
    settings: dict[str, Any] = {"draw": 1000, "values": 8} | own
    return arm(name, *(() if name == CONTROL else (CONTROL,)), pictures="sprites", beta=1.0, **settings)


_ARMS = (
    _measured(CONTROL),
    _measured("other pictures", draw=1001),
    _measured("100 rounds", rounds=100),
    _measured("16,000 rows", train=16_000),
    _measured("all values of a factor", values=40),
)

STUDIES = {
    "sprites-stability": Study(
        name="sprites-stability",
        question="How far does DCI depend on the pictures and the trees that it is measured with?",
        method="One β-VAE per seed (β = 1, 20,000 steps), measured in five ways. The first cuts factors into 8 ranges."
        " The 16,000 rows, and the pictures that test what is fitted to them, are drawn anew.",
        arms=_ARMS,
        seeds=TUNING,
        scores=SCORES,
        run=run,
    )
}
