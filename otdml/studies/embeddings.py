"""Does it help a language model to part the vectors of its tokens, which it reads and predicts by?"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from otdml.dml.fingerprint import hashed
from otdml.language import Corpus, TiedLanguageModel, Training, corpus, docstrings, manual, training
from otdml.losses.dispersion import dispersion_metrics
from otdml.studies.protocol import Arm, Reading, Score, Study, readings
from otdml.studies.prototypes import arm, chosen, regulariser, tried

__all__ = ["STUDIES", "run"]

SCORES = (
    Score("perplexity", "perplexity", -1, 2),
    Score("median_nearest_angle", "median nearest angle", 0, 1),
    Score("smallest_angle", "smallest angle", 0, 1),
    Score("spherical_variance", "spherical variance", 0),
    Score("effective_rank", "effective rank", 0, 1),
    Score("tokens", "tokens of the text", 0, 0),
)
# What all arms share unless they say otherwise.
SHARED: dict[str, Any] = {
    "vocabulary": 4000,
    "dim": 32,
    "width": 128,
    "layers": 2,
    "context": 64,
    "regulariser": "none",
    "weight": 0.0,
    "rows": 512,
    "decay": 0.0,
    "steps": 2000,
    "batch": 16,
    "rate": 2e-3,
    "readings": 4,
}
# The text comes from these packages, which the scores of this library need anyway, and from Python itself.
PACKAGES = ("numpy", "sklearn")
# On these the weights are chosen, and on others the answer is given.
TUNING = (100,)


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Train one language model, and score it on the way; arms of one seed start alike and see the same sequences.

    Args:
        settings: As in ``SHARED``.
        seed: Of the weights, sequences and draws.
        data: None.
    """
    text = _text(settings["vocabulary"])
    model = TiedLanguageModel(
        len(text.words), seed=seed, **{name: settings[name] for name in ("dim", "width", "layers", "context")}
    )
    steps = training(model, text.train, _training(settings, seed), torch.Generator().manual_seed(seed))
    yield from readings(steps, settings["steps"], settings["readings"], lambda: _scores(model, text))


@cache
def _text(vocabulary: int) -> Corpus:
    return corpus([*manual(), *(text for package in PACKAGES for text in docstrings(package))], vocabulary)


def _text_hash(_: Path | None) -> str:
    """A hash of the text, which changes with the versions of Python and of the packages."""
    text = _text(SHARED["vocabulary"])
    return hashed(text.train, text.test)


def _scores(model: TiedLanguageModel, text: Corpus) -> dict[str, float]:
    spread = dispersion_metrics(model.table.detach())
    known = {"perplexity": model.perplexity(text.test), "tokens": float(len(text.train) + len(text.test))} | spread
    return {score.name: known[score.name] for score in SCORES}


def _training(settings: Mapping[str, Any], seed: int) -> Training:
    options = {name: settings[name] for name in ("weight", "rows", "decay", "steps", "batch", "rate")}
    return Training(regulariser(settings["regulariser"], seed), **options)


def _study(name: str, question: str, arms: Iterable[Arm], seeds: tuple[int, ...]) -> Study:
    s = SHARED
    return Study(
        name=name,
        question=question,
        method="Docstrings of NumPy and scikit-learn and Python's manual of help(), words and marks of sentences; every"
        f" tenth file is held out. A causal transformer of {s['layers']} layers and {s['width']} channels, whose"
        f" {s['vocabulary']} tokens have one vector each of {s['dim']} coordinates, for input and output;"
        f" {s['steps'] * s['batch'] * s['context'] / 1e6:.1f} million tokens in batches of"
        f" {s['batch'] * s['context']}. Regularisers see {s['rows']} vectors in a step; weight decay is of the"
        " vectors alone.",
        arms=tuple(arms),
        seeds=seeds,
        scores=SCORES,
        run=run,
        data_hash=_text_hash,
    )


def _weights() -> Study:
    """Short runs, of a quarter of the steps, which tell too weak from too strong."""
    question = "Which weight of each regulariser of a language model's token vectors is best?"
    return _study("embeddings-weights", question, tried(partial(arm, shared=SHARED, steps=500, readings=1)), TUNING)


# The best of the study of weights, by perplexity.
CHOSEN = {
    "koleo": 0.03, "max-min-angle": 0.03, "max-cosine": 0.3, "uniformity": 3.0,
    "riesz": 0.03, "mmd": 100.0, "lloyd": 1.0, "sliced": 0.3,
}  # fmt: skip
DECAY = 1.0


def _embeddings() -> Study:
    question = "Does it help a small language model to part the vectors of its tokens?"
    return _study("embeddings", question, chosen(partial(arm, shared=SHARED), DECAY, CHOSEN), (0, 1, 2))


STUDIES = {study.name: study for study in (_weights(), _embeddings())}
