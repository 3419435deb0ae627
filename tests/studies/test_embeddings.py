"""One small cell of the studies of token vectors, on a text made here."""

import pytest
import torch

from otdml import studies
from otdml.language import Corpus
from otdml.studies import embeddings
from otdml.studies.embeddings import SCORES, run

SMALL = {"steps": 4, "batch": 4, "readings": 2, "dim": 4, "width": 8, "layers": 1, "context": 8, "rows": 6}


@pytest.fixture(autouse=True)
def text(monkeypatch):
    tokens = torch.randint(12, (300,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(embeddings, "_text", lambda n: Corpus(tuple("abcdefghijkl"), tokens[:200], tokens[200:]))


@pytest.mark.parametrize("name", ["none", "decay", *embeddings.CHOSEN])
def test_a_cell_scores_on_the_way_and_repeats_with_its_seed(name):
    settings = {**studies.named("embeddings").arm(name).settings, **SMALL}
    readings = list(run(settings, 3))
    assert [one.step for one in readings] == [2, 4]
    assert all({score.name for score in SCORES} == one.scores.keys() for one in readings)
    assert readings[-1].scores["tokens"] == 300
    assert list(run(settings, 3)) == readings
    assert list(run(settings, 4)) != readings


def test_every_arm_differs_and_begins_alike():
    study = studies.named("embeddings")
    # Weak ones give perplexities that agree to all digits after some steps.
    ends = [tuple(list(run({**arm.settings, **SMALL}, 0))[-1].scores.values()) for arm in study.arms]
    assert len(set(ends)) == len(ends)
    plain = list(run({**study.arm("none").settings, **SMALL}, 0))
    for arm in study.arms:
        assert list(run({**arm.settings, **SMALL, "weight": 0.0, "decay": 0.0}, 0)) == plain


def test_weights_are_chosen_among_those_that_are_tried():
    tried = {(a.settings["regulariser"], a.settings["weight"]) for a in studies.named("embeddings-weights").arms}
    for name, weight in embeddings.CHOSEN.items():
        assert any(regulariser == name and value == pytest.approx(weight) for regulariser, value in tried)
    assert embeddings.DECAY in {a.settings["decay"] for a in studies.named("embeddings-weights").arms}
    assert not set(studies.named("embeddings").seeds) & set(embeddings.TUNING)


def test_another_text_has_another_hash(monkeypatch):
    of = studies.named("embeddings").data_hash
    words, train, test = embeddings._text(4000).words, embeddings._text(4000).train, embeddings._text(4000).test
    before = of(None)
    assert of(None) == before
    monkeypatch.setattr(embeddings, "_text", lambda n: Corpus(words, train, test.flip(0)))
    assert of(None) != before
