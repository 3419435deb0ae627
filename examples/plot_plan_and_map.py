r"""
A plan, a map, and what the temperature does
============================================

Optimal transport from a ring to two moons. :func:`otdml.ot.sinkhorn` returns a *plan*: how much of the mass of each
point goes to each other point. The *barycentric map* makes one arrow of it, from a point to the average of its
targets. The temperature ``eps`` decides how sharp the plan is. Here it is a multiple of the mean cost, of which
``eps=None`` takes 0.05.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_rgb

from otdml.costs import cost_matrix
from otdml.ot import exact, sinkhorn
from otdml.plot import COLORS

n = 80
noise = torch.Generator().manual_seed(0)
angle = torch.linspace(0, 2 * torch.pi, n + 1)[:-1]
ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.04 * torch.randn(n, 2, generator=noise)
half = angle[: n // 2] / 2
moons = torch.cat([torch.stack([half.cos(), half.sin()], 1), torch.stack([1 - half.cos(), 0.4 - half.sin()], 1)])
moons = 1.1 * moons + torch.tensor([2.2, -0.2]) + 0.04 * torch.randn(n, 2, generator=noise)

cost = cost_matrix(ring, moons)
levels = (1.0, 0.05, 0.001)
results = [sinkhorn(ring, moons, eps=level * float(cost.mean()), max_iter=10_000) for level in levels]

# %%
# Above, where the mass of three points goes: the area of a target is the share that it gets, and its colour mixes those
# of the senders. Hot, every target gets nearly the same mixture, and all arrows of the map end near the middle: the
# images have lost nearly all variance of the moons. Cold, a point has few partners and the images lie on the moons, at
# the price of more iterations. The transport cost :math:`\langle P, C \rangle` tends to that of exact transport.

print(f"{'eps / mean cost':>16s}{'transport cost':>16s}{'partners':>10s}{'variance kept':>15s}{'iterations':>12s}")
for level, result in zip(levels, results, strict=True):
    share = n * result.plan  # Each row is a distribution over the targets.
    partners = float(share.xlogy(share).sum(1).neg().exp().mean())
    kept = float(result.barycentric_map().var(0).sum() / moons.var(0).sum())
    print(f"{level:16g}{float((result.plan * cost).sum()):16.3f}{partners:10.1f}{kept:15.2f}{result.n_iter:12d}")
print(f"{'exact':>16s}{float(exact(ring, moons).value):16.3f}{1.0:10.1f}{1.0:15.2f}")

sources, palette = (25, 52, 78), torch.tensor([to_rgb(color) for color in COLORS[:3]])
figure, axes = plt.subplots(2, len(levels), figsize=(11, 4.4), sharex=True, sharey=True, layout="constrained")
for (top, bottom), level, result in zip(axes.T, levels, results, strict=True):
    top.scatter(*torch.cat([ring, moons]).T, s=6, color="0.8")
    given = n * result.plan[list(sources)].T  # What each target gets of the mass of the three.
    top.scatter(*moons.T, s=300 * given.sum(1), c=given @ palette / given.sum(1, keepdim=True), linewidths=0)
    top.scatter(*ring[list(sources)].T, s=90, c=palette, marker="*")
    image = result.barycentric_map()
    bottom.quiver(*ring.T, *(image - ring).T, angles="xy", scale_units="xy", scale=1, width=0.002, color="0.75")
    bottom.scatter(*moons.T, s=12, color="0.85")
    bottom.scatter(*ring.T, s=14, color=COLORS[0])
    bottom.scatter(*image.T, s=14, color=COLORS[1])
    top.set_title(f"eps = {level:g} × mean cost")
for axis, name in zip(axes[:, 0], ("plan of three points", "barycentric map"), strict=True):
    axis.set_ylabel(name, fontsize=11)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[], aspect="equal")
plt.show()
