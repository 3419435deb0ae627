r"""
Points as far apart as they can be
==================================

Tammes' problem asks for n points of the sphere whose smallest angle is as large as possible: for 24 points 43.69°, at
the vertices of a snub cube. Each dispersion loss is minimised from the same random points by Adam on free vectors, as
every loss looks at directions alone. The picture draws caps of the best radius around the points: red ones overlap.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch

from otdml.losses import kernel_dispersion, koleo, lloyd_dispersion, max_cosine, max_min_angle, sliced_dispersion
from otdml.losses.dispersion import nearest_angles, spherical_code
from otdml.sphere import uniform_points, unit

BEST = {12: 63.4349488, 24: 43.6907671, 48: 30.7627855}
n, generator = 24, torch.Generator().manual_seed(0)
start = uniform_points(n, 3, generator=generator, dtype=torch.float64)


def minimised(loss, steps=500, rate=0.03):
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss(z).backward()
        optimizer.step()
    return unit(z.detach())


# %%
# Losses on the nearest neighbour find the snub cube or nearly so, and so does the Gaussian energy sharpened step by
# step, :func:`~otdml.losses.dispersion.spherical_code`. A Coulomb energy (``riesz``, s = 1) has another optimum:
# Thomson's, with 42.07°. Lloyd covers the sphere, and slices compare it with the uniform measure: neither asks for it.

found = {
    "random": start,
    "sliced": minimised(partial(sliced_dispersion, generator=generator)),
    "Lloyd": minimised(partial(lloyd_dispersion, n_samples=300, generator=generator)),
    "uniformity (γ = 2)": minimised(partial(kernel_dispersion, log=True)),
    "Riesz (s = 1)": minimised(partial(kernel_dispersion, kernel="riesz")),
    "max cosine": minimised(max_cosine),
    "max min angle": minimised(max_min_angle),
    "KoLeo": minimised(koleo),
    "spherical code": spherical_code(n, 3, generator=generator),
}


def draw_caps(axis, x, radius):
    """The caps of that radius around the points, seen from the north pole; behind the horizon they are cut off."""
    turn = torch.linspace(0, 2 * torch.pi, 90, dtype=x.dtype)[:, None]
    for p, nearest in zip(x, nearest_angles(x).deg2rad(), strict=True):
        u, v = torch.linalg.svd(p[None]).Vh[1:]
        rim = radius.cos() * p + radius.sin() * (turn.cos() * u + turn.sin() * v)
        if p[2] > -radius.sin():
            seen = torch.where(rim[:, 2:] > 0, rim[:, :2], unit(rim[:, :2]))
            axis.fill(*seen.T, facecolor=plt.cm.RdYlGn(float(4 * nearest / radius) - 7), edgecolor="black", alpha=0.6)
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="grey"))


figure, axes = plt.subplots(3, 3, figsize=(8, 8.6), constrained_layout=True)
for axis, (name, x) in zip(axes.flat, found.items(), strict=True):
    draw_caps(axis, x, torch.tensor(BEST[n] / 2, dtype=x.dtype).deg2rad())
    angles = nearest_angles(x)
    print(f"{name:20s} smallest angle {angles.min():6.2f}°, mean angle to the nearest {angles.mean():6.2f}°")
    axis.set(title=f"{name}: {angles.min():.2f}°", aspect="equal", xticks=[], yticks=[], frame_on=False)
figure.suptitle(f"24 caps of {BEST[n] / 2:.2f}°: in the best arrangement they touch, in all others some overlap")
plt.show()

# %%
# The best of five starts is as near the optimum for other n.
for n, best in BEST.items():
    smallest = nearest_angles(spherical_code(n, 3, generator=generator)).min()
    print(f"n = {n}: {smallest:.4f}°, {100 * smallest / best:.3f} % of the best known")
