"""One small cell of the studies of prototypes, on drawings made here."""

from pathlib import Path

import pytest
import torch

from otdml import studies
from otdml.studies import prototypes
from otdml.studies.prototypes import SCORES, run

SMALL = {"steps": 4, "batch": 16, "readings": 2}


@pytest.fixture(autouse=True)
def drawings(monkeypatch):
    labels = torch.arange(12).repeat_interleave(20)
    images = torch.randint(0, 255, (240, 1, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    monkeypatch.setattr(prototypes, "_drawings", lambda folder: (images, labels))


@pytest.mark.parametrize(
    ("study", "arm"),
    [
        ("weights", "mmd 10"),
        ("4", "decay"),
        ("8", "lloyd"),
        ("16", "sliced"),
        ("32", "riesz"),
        ("rows", "koleo, 64 rows"),
    ],
)
def test_a_cell_scores_on_the_way_and_repeats_with_its_seed(study, arm):
    settings = {**studies.named(f"prototypes-{study}").arm(arm).settings, **SMALL}
    readings = list(run(settings, 3, Path()))
    assert [one.step for one in readings] == [2, 4]
    assert all({score.name for score in SCORES} == one.scores.keys() for one in readings)
    assert list(run(settings, 3, Path())) == readings
    assert list(run(settings, 4, Path())) != readings


def test_drawings_are_split_within_their_classes():
    labels = torch.arange(12).repeat_interleave(20)[torch.randperm(240, generator=torch.Generator().manual_seed(1))]
    known, rest = prototypes._split(labels, 15, 3)
    assert sorted([*known.tolist(), *rest.tolist()]) == list(range(240))
    assert labels[known].bincount().tolist() == [15] * 12
    assert labels[rest].bincount().tolist() == [5] * 12
    assert not torch.equal(known, prototypes._split(labels, 15, 4)[0])


def test_a_regulariser_of_no_weight_changes_nothing():
    settings = {**studies.named("prototypes-weights").arm("none").settings, **SMALL}
    plain = list(run(settings, 0, Path()))
    for name in ("sliced", "lloyd", "koleo"):
        assert list(run({**settings, "regulariser": name}, 0, Path())) == plain


def test_other_drawings_have_another_hash(monkeypatch):
    of = studies.named("prototypes-4").data_hash
    images, labels = prototypes._drawings(None)
    before = of(None)
    assert of(None) == before
    for other in ((images.flip(0), labels), (images, labels.flip(0))):
        monkeypatch.setattr(prototypes, "_drawings", lambda folder, other=other: other)
        assert of(None) != before
