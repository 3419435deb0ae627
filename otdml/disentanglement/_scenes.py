"""Coloured scenes with known factors: an object in a room, its colours, shape and size, and the viewing angle."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from otdml._checks import check_integer
from otdml.disentanglement.factors import FactorSet, random_factors

__all__ = ["SCENES", "SCENE_FACTORS", "scenes"]

# Names of the factors and the number of their values, in the order of Shapes3D.
SCENE_FACTORS = {"floor hue": 10, "wall hue": 10, "object hue": 10, "scale": 8, "shape": 4, "orientation": 15}
# Half the width of the room, the height and distance of the camera, and its field of view (the tangent of a half).
ROOM, HEIGHT, DISTANCE, VIEW = 3.2, 2.0, 6.0, 0.45
# Steps along a ray: enough to resolve the smallest object to a hundredth of its size.
STEPS = 48


def scenes(
    n: int, *, size: int = 32, supersampling: int = 2, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Pictures of random scenes: a cube, cylinder, ball or capsule on the floor of a room.

    The factors and their numbers of values are those of Shapes3D :cite:p:`burgess:18`; the drawings are this library's
    own. A surface has one hue, and is the darker the more it turns away from a lamp beside the camera.

    Args:
        n: Number of pictures.
        size: Height and width in pixels.
        supersampling: Samples per pixel along each axis.
        generator: Source of the factors.

    Returns:
        Pictures in [0, 1], shape (n, 3, size, size), and the indices of their factors, shape (n, 6).

    Example:
        >>> images, factors = scenes(2, size=16)
        >>> images.shape, factors.shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 6]))
    """
    n, size = check_integer("n", n), check_integer("size", size)
    supersampling = check_integer("supersampling", supersampling)
    factors = random_factors(SCENE_FACTORS, n, generator)
    floor, wall, thing, scale, shape, orientation = factors.unbind(1)
    # A picture is linear in its three colours, so that shading is computed once for all colours.
    shades = _shades(size, supersampling, torch.get_default_dtype())[scale, shape, orientation]
    colours = _hues(10)[torch.stack([floor, wall, thing], 1)]
    return torch.einsum("npc,nphw->nchw", colours, shades), factors


def _hues(n: int) -> Tensor:
    """Saturated colours around the circle of hues, shape (n, 3)."""
    angle = torch.arange(n)[:, None] / n + torch.tensor([0.0, 2 / 3, 1 / 3])
    return ((angle % 1 * 6 - 3).abs() - 1).clamp(0, 1)


@cache
def _shades(size: int, supersampling: int, dtype: torch.dtype) -> Tensor:
    """The light on floor, wall and object at each pixel, shape (scales, shapes, orientations, 3, size, size).

    The dtype is the default one, in which they are computed: those of another are not taken for them.
    """
    views = SCENE_FACTORS["orientation"]
    angles = torch.pi / 180 * (45 + torch.linspace(-30, 30, views))
    rays = [_rays(angle, size * supersampling) for angle in angles]
    found = []
    for scale in torch.linspace(0.75, 1.25, SCENE_FACTORS["scale"]):
        for solid in _SOLIDS:
            pictures = torch.stack([_light(*ray, float(scale), solid) for ray in rays])
            found.append(torch.nn.functional.avg_pool2d(pictures, supersampling))
    return torch.stack(found).to(dtype).unflatten(0, (SCENE_FACTORS["scale"], SCENE_FACTORS["shape"]))


def _rays(angle: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Position of the camera, shape (3,), and unit directions through the pixels, shape (side, side, 3)."""
    eye = torch.stack([DISTANCE * angle.cos(), torch.tensor(HEIGHT), DISTANCE * angle.sin()])
    ahead = torch.nn.functional.normalize(torch.tensor([0.0, 0.8, 0.0]) - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, 1.0, 0.0])), dim=0)
    up = torch.linalg.cross(right, ahead)
    step = VIEW * ((torch.arange(side) + 0.5) / side * 2 - 1)
    towards = ahead + step[None, :, None] * right - step[:, None, None] * up
    return eye, torch.nn.functional.normalize(towards, dim=-1)


def _light(eye: Tensor, ray: Tensor, scale: float, solid: Callable[[Tensor], Tensor]) -> Tensor:
    """The light that each pixel gets from floor, wall and object, shape (3, side, side)."""
    wall, normal = _far_walls(eye, ray)
    floor = torch.where(ray[..., 1] < 0, -eye[1] / ray[..., 1], torch.inf)
    thing, facing = _met(eye, ray, scale, solid)
    nearest = torch.stack([floor, wall, thing]).argmin(0)
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(ray)
    shades = torch.stack([_shade(eye, facing_of) for facing_of in (up, normal, facing)])
    return shades * torch.nn.functional.one_hot(nearest, 3).permute(2, 0, 1)


def _shade(eye: Tensor, normal: Tensor) -> Tensor:
    """Light of a lamp above the camera and to its left on surfaces of these normals, in [0.4, 1]."""
    lamp = torch.nn.functional.normalize(eye + torch.stack([-eye[2], eye[0] * 0 + 4, eye[0]]) * 0.5, dim=0)
    return 0.4 + 0.6 * (normal @ lamp).clamp(min=0)


def _far_walls(eye: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the wall behind the object, and its normal: the sides of the room that rays leave it by."""
    level, start = ray[..., [0, 2]], eye[[0, 2]]
    exits = (ROOM * level.sign() - start) / level
    first, side = exits.min(-1)
    normal = torch.zeros_like(ray)
    normal.scatter_(-1, 2 * side[..., None], -level.sign().gather(-1, side[..., None]))
    return first, normal


def _met(eye: Tensor, ray: Tensor, scale: float, solid: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Distance to the object, infinite where a ray misses it, and its normal there.

    Each step along a ray is as long as the distance to the surface, which cannot be overshot.
    """

    def away(points: Tensor) -> Tensor:
        return scale * solid((points - torch.tensor([0.0, scale, 0.0])) / scale)

    along = torch.zeros(ray.shape[:-1])
    for _ in range(STEPS):
        along = along + away(eye + along[..., None] * ray)
    points = eye + along[..., None] * ray
    steps = 1e-3 * torch.eye(3)
    slope = torch.stack([away(points + step) - away(points - step) for step in steps], -1)
    hit = away(points) < 0.01
    return torch.where(hit, along, torch.inf), torch.nn.functional.normalize(slope, dim=-1)


def _box(p: Tensor, half: Tensor) -> Tensor:
    beyond = p.abs() - half
    return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)


def _cube(p: Tensor) -> Tensor:
    return _box(p, torch.tensor([0.8, 1.0, 0.8]))


def _cylinder(p: Tensor) -> Tensor:
    return _box(torch.stack([p[..., [0, 2]].norm(dim=-1), p[..., 1]], -1), torch.tensor([0.8, 1.0]))


def _ball(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 1


def _capsule(p: Tensor) -> Tensor:
    nearest = torch.cat(
        [torch.zeros_like(p[..., :1]), p[..., 1:2].clamp(-0.45, 0.45), torch.zeros_like(p[..., :1])], -1
    )
    return (p - nearest).norm(dim=-1) - 0.55


# Signed distances to the objects, two high and centred, in the order of the factor.
_SOLIDS = (_cube, _cylinder, _ball, _capsule)

# The scenes as a set of pictures.
SCENES = FactorSet(SCENE_FACTORS, 3, scenes)
