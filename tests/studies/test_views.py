"""One small cell of the studies of views, on pictures drawn here."""

import numpy as np
import pytest

from otdml import studies
from otdml.studies.views import SCORES, run

pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")
SMALL = {"steps": 4, "batch": 16, "readings": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, draws = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, n in (("train", 30), ("test", 10)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(draws.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("study", "arm"), [("views-wrong-80", "GCA-UOT"), ("views-noise", "GCA-RINCE"), ("views-crops", "InfoNCE + RINCE")]
)
def test_a_cell_scores_on_the_way_and_repeats_with_its_seed(study, arm, pictures):
    settings = {**studies.named(study).arm(arm).settings, **SMALL}
    readings = list(run(settings, 3, pictures))
    assert [one.step for one in readings] == [2, 4]
    assert all({score.name for score in SCORES} == one.scores.keys() for one in readings)
    assert list(run(settings, 3, pictures)) == readings


def test_gca_uot_differs_from_its_controls_by_the_bound_or_the_marginals():
    study = studies.named("views-wrong-80")

    def differing(arm, other):
        one, two = (study.arm(name).settings for name in (arm, other))
        return {name for name in one if one[name] != two[name]}

    assert differing("GCA-UOT", "InfoNCE + RINCE") == {"marginals"} == differing("GCA-RINCE", "RINCE")
    assert differing("InfoNCE + RINCE", "InfoNCE") == {"divergence"} == differing("RINCE", "InfoNCE")
    for arm in study.arms[1:]:
        assert arm.against[0] == "InfoNCE"


def test_other_pictures_have_another_hash(pictures, tmp_path):
    import shutil

    of = studies.named("domains").data_hash
    shutil.copytree(pictures, tmp_path / "same")
    assert of(tmp_path / "same") == of(pictures)
    shutil.copytree(pictures, tmp_path / "other")
    shutil.copy(pictures / "test" / "cat" / "1.png", tmp_path / "other" / "test" / "cat" / "0.png")
    assert of(tmp_path / "other") != of(pictures)


def test_classes_are_those_of_both_parts(pictures, tmp_path):
    import shutil

    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "test" / "cat").rename(tmp_path / "pictures" / "test" / "ship")
    settings = {**studies.named("views-clean").arm("InfoNCE").settings, **SMALL}
    with pytest.raises(ValueError, match=r"`data` must have the same classes in train and test, got \['cat', 'ship'\]"):
        next(run(settings, 0, tmp_path / "pictures"))
