"""The scenes by what they show: each factor changes what it should, and nothing else."""

import pytest
import torch

from otdml.disentanglement import SCENE_FACTORS, SCENES, scenes
from otdml.disentanglement._scenes import _hues, _shades


@pytest.fixture(scope="module")
def drawn():
    return scenes(400, size=32, supersampling=1, generator=torch.Generator().manual_seed(0))


def test_shapes_and_range(drawn):
    images, factors = drawn
    assert images.shape == (400, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    assert (factors.amax(0) == SCENES.counts - 1).all()
    assert SCENES.channels == 3


def test_hues_are_pure_and_go_around():
    hues = _hues(6)
    expected = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]
    torch.testing.assert_close(hues, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


def test_floor_and_wall_have_their_hues(drawn):
    """The lowest row shows the floor alone, the highest one the walls."""
    images, factors = drawn
    for row, factor in ((-1, 0), (0, 1)):
        seen = images[:, :, row].mean(-1)
        hue = _hues(10)[factors[:, factor]]
        torch.testing.assert_close(seen / seen.amax(1, keepdim=True), hue, atol=1e-4, rtol=0)


def test_each_pixel_is_lit_once():
    """Without supersampling a pixel belongs to one of floor, wall and object, and has light between 0.4 and 1."""
    shades = _shades(32, 1, torch.float32)
    assert shades.shape == (8, 4, 15, 3, 32, 32)
    assert ((shades > 0).sum(3) == 1).all()
    light = shades.sum(3)
    assert light.min() >= 0.4 - 1e-6
    assert light.max() <= 1 + 1e-6


def test_objects_grow_with_their_scale():
    area = (_shades(32, 1, torch.float32)[:, :, :, 2] > 0).sum((-2, -1)).float().mean(2)
    assert (area[1:] >= area[:-1]).all()
    # Lengths grow from 3/4 to 5/4; perspective makes the near side of large objects larger still.
    assert ((area[-1] / area[0] > 2.2) & (area[-1] / area[0] < 4.5)).all()


def test_turning_moves_walls_and_cubes_but_no_ball():
    shades = _shades(32, 1, torch.float32)
    cube, ball = (shades[4, shape, :, 2] > 0 for shape in (0, 2))
    assert not torch.equal(cube[0], cube[7])
    assert (ball[0] ^ ball[7]).sum() <= 4
    assert not torch.equal(shades[4, 2, 0, 1], shades[4, 2, 7, 1])


def test_every_factor_changes_the_picture(drawn):
    """Two scenes that differ in one factor are different pictures."""
    seen = {}
    images, factors = drawn
    for image, row in zip(images, factors.tolist(), strict=True):
        seen[tuple(row)] = image
    assert len({image.numpy().tobytes() for image in seen.values()}) == len(seen)
    assert list(SCENE_FACTORS) == ["floor hue", "wall hue", "object hue", "scale", "shape", "orientation"]


def test_scenes_repeat_with_their_seed():
    first, second = (scenes(5, size=16, generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_scenes_have_the_default_dtype():
    first = scenes(2, size=8, generator=torch.Generator().manual_seed(0))[0]
    torch.set_default_dtype(torch.float64)
    try:
        second = scenes(2, size=8, generator=torch.Generator().manual_seed(0))[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert second.dtype == torch.float64
    torch.testing.assert_close(second.float(), first)
    assert torch.equal(scenes(2, size=8, generator=torch.Generator().manual_seed(0))[0], first)
