"""One small autoencoder, measured in several ways."""

import pytest

from otdml import studies
from otdml.studies import stability
from otdml.studies.stability import SCORES, run

pytest.importorskip("sklearn")
SMALL = {"images": 200, "steps": 4, "width": 4}
QUICK = {"train": 150, "test": 50, "rounds": 2}


def settings(arm, **own):
    return {**studies.named("sprites-stability").arm(arm).settings, **SMALL, **own}


def test_all_arms_measure_one_autoencoder_and_a_seed_has_its_own(monkeypatch):
    stability._fitted.cache_clear()
    (first,) = run(settings("20 rounds on 4,000 rows", **QUICK), 3)
    (other,) = run(settings("other pictures", **QUICK), 3)
    (rounds,) = run(settings("100 rounds", **QUICK | {"rounds": 5}), 3)
    assert stability._fitted.cache_info().misses == 1
    assert first.scores != other.scores
    assert first.scores["disentanglement"] != rounds.scores["disentanglement"]
    (again,) = run(settings("20 rounds on 4,000 rows", **QUICK), 3)
    assert again == first
    (seed,) = run(settings("20 rounds on 4,000 rows", **QUICK), 4)
    assert seed.scores != first.scores
    assert {score.name for score in SCORES} == first.scores.keys()


def test_arms_differ_by_one_way_of_measuring():
    study = studies.named("sprites-stability")
    control = study.arms[0].settings
    for arm in study.arms[1:]:
        differing = {name for name in control if arm.settings[name] != control[name]}
        assert len(differing) == 1
        assert differing < set(stability.MEASURING)
