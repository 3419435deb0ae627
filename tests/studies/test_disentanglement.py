"""One small cell of the studies of disentanglement."""

import pytest

from otdml import studies
from otdml.studies.disentanglement import SCORES, run

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore:Gromov-Wasserstein stopped")
SMALL = {"images": 200, "steps": 4, "train": 150, "test": 50, "rounds": 1, "readings": 2, "width": 4}


@pytest.mark.parametrize(
    ("study", "arm"),
    [
        ("sprites-base", "beta 8, falling rate of 1e-3"),
        ("sprites-weights", "gap decoder cosine 300"),
        ("sprites-settings", "falling rate of 1e-3, gap 3"),
        ("sprites-tc", "tc 4"),
        ("sprites-free", "gap sqeuclidean 0.1"),
        ("scenes-free", "posterior gap cosine 1000"),
        ("scenes-weights", "distortion decoder cosine 30"),
    ],
)
def test_a_cell_scores_on_the_way_and_repeats_with_its_seed(study, arm):
    settings = {**studies.named(study).arm(arm).settings, **SMALL}
    readings = list(run(settings, 3))
    assert [one.step for one in readings] == [2, 4]
    assert all({score.name for score in SCORES} <= one.scores.keys() for one in readings)
    assert list(run(settings, 3)) == readings
    assert list(run(settings, 4)) != readings


@pytest.mark.parametrize("name", ["sprites-free", "scenes-free"])
def test_claims_are_compared_within_one_place(name):
    """Beside its control: a gap with the distortion of its cost, and one of cosines with one of squared distances."""
    arms = {arm.name: arm for arm in studies.named(name).arms}
    posterior = "posterior distortion cosine 1000", "posterior gap cosine 1000"
    assert arms[posterior[0]].against == ("posterior alone",)
    (squared,) = (one for one in arms if one.startswith("posterior gap sqeuclidean"))
    assert arms[squared].against == ("posterior alone",)
    assert arms[posterior[1]].against == ("posterior alone", posterior[0], squared)
    for arm in arms.values():
        assert {arms[other].settings["place"] for other in arm.against} <= {arm.settings["place"]}


def test_arms_of_one_seed_begin_alike():
    """With nothing learnt yet, a regularizer of weight zero changes nothing."""
    study = studies.named("sprites-weights")
    plain = {**study.arm("none").settings, **SMALL}
    asked = {**study.arm("distortion decoder cosine 3").settings, **SMALL, "weight": 0.0}
    assert list(run(plain, 0)) == list(run(asked, 0))


def test_the_gap_is_compared_with_the_settings_it_is_tried_under():
    study = studies.named("sprites-settings")
    asked = [arm for arm in study.arms if arm.against]
    assert len(asked) == 6
    for arm in asked:
        base = study.arm(*arm.against).settings
        assert {key for key in base if arm.settings[key] != base[key]} == {"regularizer", "weight"}
    assert {arm.settings["batch"] * arm.settings["steps"] for arm in study.arms} == {64 * 20_000}


def test_another_archive_has_another_hash(tmp_path):
    of = studies.named("dsprites-base").data_hash
    for name, content in (("one", b"pictures"), ("same", b"pictures"), ("other", b"other pictures")):
        (tmp_path / name).write_bytes(content)
    assert of(tmp_path / "one") == of(tmp_path / "same") != of(tmp_path / "other")
