"""The studies of the gap: their claims, and that their weights have been tried."""

import pytest

from otdml import studies
from otdml.studies.disentanglement import TUNING, run

NAMES = ("sprites-gap", "sprites-gap-tc", "scenes-gap")


@pytest.mark.parametrize(
    ("name", "arms", "pairs"), [(NAMES[0], 9, 8 + 4 + 2 + 2), (NAMES[1], 4, 3 + 2), (NAMES[2], 4, 3 + 2)]
)
def test_every_claim_differs_in_one_setting_from_what_it_is_compared_with(name, arms, pairs):
    study = studies.named(name)
    for arm in study.arms:
        for against in set(arm.against) - {"none"}:
            other = study.arm(against).settings
            assert len({key for key in other if arm.settings[key] != other[key]} - {"weight"}) == 1
    claims = {frozenset({arm.name, other}) for arm in study.arms for other in arm.against}
    assert len(study.arms) == arms
    assert len(claims) == pairs
    assert not set(study.seeds) & set(TUNING)


@pytest.mark.parametrize("name", ["sprites", "scenes"])
def test_weights_have_been_tried(name):
    keys = ("regularizer", "place", "cost", "weight")
    tried, taken = ({tuple(arm.settings[key] for key in keys) for arm in studies.named(f"{name}-{study}").arms}
                    for study in ("weights", "gap"))  # fmt: skip
    assert taken <= tried


@pytest.mark.filterwarnings("ignore:Gromov-Wasserstein stopped")
def test_a_cell_of_each_base_runs():
    pytest.importorskip("sklearn")
    small = {"images": 100, "steps": 2, "train": 60, "test": 20, "rounds": 1, "readings": 1, "width": 4}
    for name in NAMES[:2]:
        (last,) = run({**studies.named(name).arm("distortion decoder cosine").settings, **small}, 0)
        assert last.step == 2
