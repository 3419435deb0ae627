"""Does it help a classifier of many classes in few coordinates to part its prototypes, and by which regulariser?"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otdml.data import Distort, Omniglot
from otdml.dml.dispersion import REGULARISERS
from otdml.dml.fingerprint import hashed
from otdml.dml.prototypes import PrototypeClassifier, Training, training
from otdml.losses.dispersion import LloydDispersion, SlicedDispersion, nearest_angles
from otdml.studies.protocol import Arm, Reading, Score, Study, readings

__all__ = ["MIDDLE", "SHARED", "STUDIES", "arm", "chosen", "fitted", "regulariser", "run", "tried"]

SCORES = (
    Score("accuracy", "accuracy"),
    Score("smallest", "smallest angle", 0, 2),
    Score("median", "median nearest angle", 0, 2),
    Score("train", "accuracy on training drawings"),
)
# What all arms share unless they say otherwise: 1,500 batches of 128 are 13 passes over 14,460 drawings.
SHARED: dict[str, Any] = {
    "dim": 8,
    "regulariser": "none",
    "weight": 0.0,
    "rows": None,
    "decay": 0.0,
    "steps": 1500,
    "batch": 128,
    "rate": 1e-2,
    "faster": 30.0,
    "known": 15,
    "readings": 4,
}
# The middle one of the weights that are tried; the others are a tenth of it, and ten times as much.
MIDDLE = {
    "koleo": 0.03, "max-min-angle": 0.3, "max-cosine": 0.3, "uniformity": 0.3,
    "riesz": 0.3, "mmd": 10.0, "lloyd": 1.0, "sliced": 3.0,
}  # fmt: skip
# The best of each in the study of weights: mostly the smallest, and no regulariser beat none there.
CHOSEN = {
    "koleo": 0.003, "max-min-angle": 0.03, "max-cosine": 0.3, "uniformity": 0.03,
    "riesz": 0.03, "mmd": 1.0, "lloyd": 0.1, "sliced": 0.3,
}  # fmt: skip
DECAY = 0.1
# On these the weights are chosen, and on others the answer is given.
TUNING = (100,)


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Train one classifier, and score it on the way; arms of one seed start alike, on the same split of the drawings.

    Args:
        settings: As in ``SHARED``.
        seed: Of the split, weights, prototypes, batches and draws.
        data: Folder of Omniglot.
    """
    images, labels = _drawings(Path(data or "."))
    model = PrototypeClassifier(int(labels.max()) + 1, settings["dim"], seed=seed)
    return fitted(model, images, labels, settings, seed, Distort())


def fitted(
    model: PrototypeClassifier,
    images: Tensor,
    labels: Tensor,
    settings: Mapping[str, Any],
    seed: int,
    distort: Distort | None = None,
) -> Iterator[Reading]:
    """Train a classifier on some pictures of each class, and score it on the others."""
    known, rest = _split(labels, settings["known"], seed)
    generator = torch.Generator().manual_seed(seed)
    steps = training(model, images[known], labels[known], _training(settings, seed, distort), generator)

    def reached() -> dict[str, float]:
        angles = nearest_angles(model.prototypes.detach())
        accuracies = [model.accuracy(images[part], labels[part]) for part in (rest, known[: len(rest)])]
        values = (accuracies[0], float(angles.min()), float(angles.median()), accuracies[1])
        return dict(zip([score.name for score in SCORES], values, strict=True))

    yield from readings(steps, settings["steps"], settings["readings"], reached)


@cache
def _drawings(folder: Path) -> tuple[Tensor, Tensor]:
    found = Omniglot(folder, "trainval", protocol="full", size=20, crop=True)
    return found.images, found.labels


def _split(labels: Tensor, known: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the first ``known`` pictures of each class in a random order, and of the others; both in random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    place = torch.cat([torch.arange(n) for n in labels.bincount().tolist()])
    is_known = torch.zeros(len(labels), dtype=torch.bool).index_put_((by_class,), place < known)
    return order[is_known[order]], order[~is_known[order]]


def _training(settings: Mapping[str, Any], seed: int, distort: Distort | None) -> Training:
    options = {name: settings[name] for name in ("weight", "rows", "decay", "steps", "batch", "rate", "faster")}
    return Training(regulariser(settings["regulariser"], seed), distort=distort, **options)


def regulariser(name: str, seed: int) -> nn.Module | None:
    """The regulariser of that name; those that draw have a generator of their own, so that batches stay the same."""
    drawing = {"lloyd": LloydDispersion, "sliced": SlicedDispersion}
    if name in drawing:
        return drawing[name](generator=torch.Generator().manual_seed(seed))
    return None if name == "none" else REGULARISERS[name]()


def _study(name: str, question: str, arms: tuple[Arm, ...], seeds: tuple[int, ...]) -> Study:
    return Study(
        name=name,
        question=question,
        method="964 characters of Omniglot, 15 drawings of each to train on and 5 to test on, 20 × 20 pixels. Four"
        " convolutions, cosines with learnt prototypes times a learnt scale, cross-entropy.",
        arms=arms,
        seeds=seeds,
        scores=SCORES,
        run=run,
        needs="the folder of Omniglot",
        data_hash=lambda path: hashed(*_drawings(path or Path("."))),
    )


def arm(name: str, shared: Mapping[str, Any] = SHARED, **own: Any) -> Arm:
    """An arm that is compared with the one without a regulariser."""
    return Arm(name, {**shared, **own}, () if name == "none" else ("none",))


def tried(make: Callable[..., Arm]) -> Iterator[Arm]:
    """Three weights of every regulariser, and of weight decay."""
    yield make("none")
    yield from (make(f"decay {decay:g}", decay=decay) for decay in (0.01, 0.1, 1.0))
    for name, middle in MIDDLE.items():
        for weight in (0.1 * middle, middle, 10.0 * middle):
            yield make(f"{name} {weight:g}", regulariser=name, weight=weight)


def chosen(make: Callable[..., Arm], decay: float, weights: Mapping[str, float]) -> Iterator[Arm]:
    """Every regulariser with its chosen weight, against weight decay and none."""
    yield make("none")
    yield make("decay", decay=decay)
    yield from (make(name, regulariser=name, weight=weight) for name, weight in weights.items())


def _weights() -> Study:
    """Short runs, of a third of the steps, which tell too weak from too strong."""
    question = "Which weight of each regulariser of prototypes is best in 8 coordinates?"
    return _study("prototypes-weights", question, tuple(tried(partial(arm, steps=500, readings=1))), TUNING)


def _coordinates(dim: int) -> Study:
    question = f"Does parting the prototypes of 964 classes help in {dim} coordinates?"
    arms = tuple(chosen(partial(arm, dim=dim), DECAY, CHOSEN))
    return _study(f"prototypes-{dim}", question, arms, (0, 1, 2, 3, 4))


def _rows() -> Study:
    """Regularisers of all prototypes, or of some of them in each step."""
    arms = [arm("none")]
    for name in ("koleo", "uniformity", "mmd", "sliced"):
        of = partial(arm, regulariser=name, weight=CHOSEN[name])
        arms += [of(name), of(f"{name}, 256 rows", rows=256), of(f"{name}, 64 rows", rows=64)]
    question = "Does it matter how many of the 964 prototypes a regulariser sees in a step?"
    return _study("prototypes-rows", question, tuple(arms), (0, 1, 2, 3, 4))


_ALL = (_weights(), *(_coordinates(dim) for dim in (4, 8, 16, 32)), _rows())
STUDIES = {study.name: study for study in _ALL}
