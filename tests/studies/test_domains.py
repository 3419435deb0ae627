"""One small cell of the study of domains, on pictures drawn here."""

import pytest
import torch

from otdml import studies
from otdml.losses import DomainTarget, contrastive_alignment
from otdml.studies import domains, views
from otdml.studies.domains import SCORES, run

pytest.importorskip("sklearn")
SMALL = {"steps": 4, "batch": 16, "readings": 2}


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (80, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(80) % 2
    monkeypatch.setattr(views, "pictures", lambda path: (images[:60], labels[:60], images[60:], labels[60:]))


@pytest.mark.parametrize("arm", ["positive pairs", "pairs of a domain 1"])
def test_a_cell_scores_on_the_way_and_repeats_with_its_seed(arm):
    settings = {**studies.named("domains").arm(arm).settings, **SMALL}
    readings = list(run(settings, 3))
    assert [one.step for one in readings] == [2, 4]
    assert all({score.name for score in SCORES} == one.scores.keys() for one in readings)
    assert list(run(settings, 3)) == readings


def test_domains_are_drawn_for_each_picture_and_seen_in_it():
    images = views.pictures(None)[0]
    mixed, found = domains._mixed(images, torch.Generator().manual_seed(1))
    assert set(found.tolist()) == {0, 1, 2, 3}
    assert torch.equal(mixed[found == 0], images[found == 0])
    # Blur and little contrast both lower the deviation of white noise to a third.
    spread = [float(mixed[found == i].float().std()) for i in range(4)]
    assert max(spread[2:]) < 0.4 * spread[0] < spread[1]


def test_masses_of_all_pairs_are_the_shares_they_are_named_by():
    study, n = studies.named("domains"), domains.SHARED["batch"]
    for arm in study.arms[1:]:
        mass = float(arm.name.split()[-1])
        of_domain, of_two = (2 * n * share for share in (1 / 4, 3 / 4))
        assert arm.settings["alpha"] * of_domain + arm.settings["beta"] * of_two == pytest.approx(mass)


def test_the_loss_takes_the_domains_and_without_mass_is_infonce():
    z1, z2 = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    of = torch.arange(8) % 4
    study = studies.named("domains")
    plain = domains._loss(study.arm("positive pairs").settings)(z1, z2, of)
    torch.testing.assert_close(plain, contrastive_alignment(z1, z2, form="joint"))
    settings = study.arm("pairs of two domains 1").settings
    expected = contrastive_alignment(z1, z2, DomainTarget(of, 0.0, settings["beta"]), form="joint")
    torch.testing.assert_close(domains._loss(settings)(z1, z2, of), expected)
    assert not torch.allclose(plain, expected)
