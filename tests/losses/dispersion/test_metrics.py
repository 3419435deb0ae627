"""Measures of dispersion, and what they are for uniform points."""

import pytest
import torch

from otdml.losses.dispersion import (
    dispersion_metrics,
    effective_rank,
    frame_potential,
    nearest_angles,
    spherical_variance,
    uniform_baseline,
    uniform_smallest_angle,
)
from otdml.sphere import uniform_points


def test_nearest_angles_of_duplicates_across_blocks(generator):
    # A planted duplicate far from its twin, among more points than one block of a search holds.
    x = uniform_points(3000, 16, generator=generator)
    x[2900] = x[17]
    angles = nearest_angles(x)
    assert angles[17] == angles[2900] == 0
    assert angles.sort().values[2] > 5


def test_nearest_angles_in_a_batch(generator):
    x = torch.randn(2, 3, 9, 4, generator=generator)
    torch.testing.assert_close(nearest_angles(x)[1, 2], nearest_angles(x[1, 2]))


def test_two_clusters_balance_and_are_of_rank_one():
    z = torch.tensor([[1.0, 1.0]] * 5 + [[-2.0, -2.0]] * 5)
    assert float(spherical_variance(z)) == pytest.approx(1, abs=1e-6)
    assert float(frame_potential(z)) == pytest.approx(1)
    assert float(effective_rank(z)) == pytest.approx(1, abs=1e-4)


def test_a_collapsed_cloud():
    found = dispersion_metrics(torch.ones(10, 4))
    assert found["smallest_angle"] == found["mean_nearest_angle"] == 0
    assert found["spherical_variance"] == pytest.approx(0, abs=1e-6)
    assert found["frame_potential"] == pytest.approx(1)
    # All kernel values are 1, up to the tie-break; the uniform mean of exp(-2 r²) in d = 4 is some 0.08.
    assert found["mmd_to_uniform"] > 0.9


def test_the_axes():
    found = dispersion_metrics(torch.cat([torch.eye(4), -torch.eye(4)]))
    assert found["smallest_angle"] == found["median_nearest_angle"] == pytest.approx(90)
    assert found["spherical_variance"] == pytest.approx(1)
    assert found["frame_potential"] == pytest.approx(1 / 4)
    assert found["effective_rank"] == pytest.approx(4)
    assert found["mmd_to_uniform"] < 0


@pytest.mark.parametrize(("n", "d", "degrees"), [(24, 3, 5.8), (1000, 64, 57.0), (20_000, 128, 61.1)])
def test_smallest_angle_of_uniform_points(n, d, degrees):
    assert uniform_smallest_angle(n, d) == pytest.approx(degrees, abs=0.1)


def test_smallest_angle_is_the_median_of_draws(generator):
    smallest = nearest_angles(uniform_points(4000, 24, 3, generator=generator)).amin(-1)
    assert float((smallest < uniform_smallest_angle(24, 3)).float().mean()) == pytest.approx(0.5, abs=0.04)


def test_baseline_of_uniform_points(generator):
    found = uniform_baseline(500, 8, generator=generator)
    assert found["smallest_angle"] == pytest.approx(uniform_smallest_angle(500, 8), rel=0.2)
    assert found["frame_potential"] == pytest.approx(1 / 8, rel=0.03)
    assert found["effective_rank"] == pytest.approx(8, rel=0.01)
    assert abs(found["mmd_to_uniform"]) < 2e-3
    assert found == uniform_baseline(500, 8, generator=generator.manual_seed(0))


def test_baseline_needs_a_draw():
    with pytest.raises(ValueError, match="`draws` must be an integer >= 1, got 0"):
        uniform_baseline(5, 3, draws=0)


def test_points_without_direction_have_the_effective_rank_zero():
    z = torch.stack([torch.zeros(3, 4), torch.eye(3, 4)])
    torch.testing.assert_close(effective_rank(z), torch.tensor([0.0, 3.0]))
