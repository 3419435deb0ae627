r"""
Points as far apart as they can be
==================================

Tammes' problem asks for n points of the sphere whose smallest angle is as large as possible. For 24 points the best
is known: 43.69°, at the vertices of a snub cube. Each dispersion loss is minimised from the same random points, by the
same optimiser: Adam on free vectors, since every loss looks at directions alone, with a step that falls to zero.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch

from otdml.losses import (
    kernel_dispersion,
    koleo,
    lloyd_dispersion,
    max_cosine,
    max_min_angle,
    sliced_dispersion,
)
from otdml.losses.dispersion import nearest_angles, spherical_code
from otdml.sphere import uniform_points, unit

BEST = {12: 63.4349488, 24: 43.6907671, 48: 30.7627855}
n = 24
generator = torch.Generator().manual_seed(0)
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
# Losses on the nearest neighbour find the snub cube or nearly so. A Coulomb energy (``riesz``, s = 1) spreads the
# points evenly, which is another problem with another optimum: Thomson's, whose smallest angle is 42.07°. Lloyd covers
# the sphere, and slices compare moments with the uniform measure: neither asks for distance. The Gaussian sharpened
# step by step, :func:`~otdml.losses.dispersion.spherical_code`, hardly ever sticks at a local optimum.

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
print(f"{'loss':20s} smallest  mean nearest angle")
for name, x in found.items():
    angles = nearest_angles(x)
    print(f"{name:20s} {float(angles.min()):7.2f}°  {float(angles.mean()):7.2f}°")

figure, axes = plt.subplots(3, 3, figsize=(8, 8.6), subplot_kw={"projection": "3d"})
for axis, (name, x) in zip(axes.flat, found.items(), strict=True):
    axis.scatter(*x.T, c=nearest_angles(x), vmin=20, vmax=BEST[n], s=60, depthshade=True)
    axis.set_title(f"{name}\n{float(nearest_angles(x).min()):.2f}°", fontsize=9)
    axis.set_box_aspect((1, 1, 1))
    axis.set_axis_off()
figure.suptitle(f"24 points, coloured by the angle to the nearest: the best is {BEST[n]:.2f}°")
plt.show()

# %%
# The best of five starts is as near the optimum for other numbers of points.

for n, best in BEST.items():
    smallest = float(nearest_angles(spherical_code(n, 3, generator=generator)).min())
    print(f"n = {n}: {smallest:.4f}°, {100 * smallest / best:.3f} % of the best known")
