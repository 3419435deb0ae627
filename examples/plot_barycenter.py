r"""
The mean of shapes
==================

What lies between a heart, a ring and a star? The mean of their densities is all three of them, superposed. The
barycentre under the Sinkhorn divergence moves mass instead of fading it: each of its points is a mean of points of the
shapes, to which transport leads. In the corners of the triangle one shape has all the weight; on its sides two are
mixed.

Debiasing is what keeps the outlines. The mean under the entropic cost itself shrinks, and gathers in a few places, as
the last two pictures show at one temperature.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.path import Path

from otdml.ot import sinkhorn_barycenter
from otdml.plot import COLORS

generator = torch.Generator().manual_seed(0)
t = torch.linspace(0, 2 * torch.pi, 201)
heart = torch.stack([16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()], 1) / 15
circle = torch.stack([t.cos(), t.sin()], 1)
star = torch.stack([t.sin(), t.cos()], 1) * (0.45 + 1.5 * (5 * t / (2 * torch.pi) % 1 - 0.5).abs()[:, None])


def inside(curve, n=300):
    """Points drawn from the inside of a curve."""
    points = 2.6 * torch.rand(20 * n, 2, generator=generator) - 1.3
    return points[torch.from_numpy(Path(curve.numpy()).contains_points(points.numpy()))][:n]


disc = inside(circle)
ring = disc * (0.65 / disc.norm(dim=1, keepdim=True) + 0.35)
shapes = torch.stack([inside(heart), ring, inside(star)])

# %%
# All mixtures are one batch: the clouds are shared, and each has weights of its own. The points are differentiable in
# the weights, and in the shapes; the gradient is that of the optimum, and nothing is unrolled.

rows = [[(i, j, 4 - i - j) for i in range(5 - j)] for j in range(5)]
mixtures = torch.tensor([mixture for row in rows for mixture in row]) / 4
result = sinkhorn_barycenter(shapes, mixtures, tol=3e-3)
print(f"{len(mixtures)} barycentres in {result.n_iter} steps, error at most {float(result.error.max()):.1e}")

middle = torch.full((3,), 1 / 3, requires_grad=True)
points = sinkhorn_barycenter(shapes, middle).points
(slope,) = torch.autograd.grad(points.square().sum(1).mean(), middle)
print("the squared size of the mean grows with the weights by", [round(float(s), 3) for s in slope])

# %%

figure = plt.figure(figsize=(11, 6.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(2.6, 1))
axis = left.subplots()
corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 8.7]])
for mixture, cloud in zip(mixtures, result.points, strict=True):
    color = tuple((mixture @ torch.tensor([[0.8, 0.2, 0.3], [0.1, 0.4, 0.7], [0.9, 0.6, 0.1]])).tolist())
    axis.scatter(*(0.9 * cloud + mixture @ corners).T, s=5, color=color, linewidths=0)
axis.set(title="barycentres of a heart, a ring and a star", aspect="equal")
axis.axis("off")
for panel, debias, name in zip(right.subplots(2, 1), (True, False), ("debiased", "entropic"), strict=True):
    cloud = sinkhorn_barycenter(shapes, torch.tensor([0.0, 1.0, 0.0]), eps=0.5, debias=debias).points
    panel.scatter(*ring.T, s=36, color="0.85", linewidths=0, label="the ring")
    panel.scatter(*cloud.T, s=6, color=COLORS[0 if debias else 1], linewidths=0, label="its barycentre")
    panel.set(title=f"{name}, eps = 0.5", aspect="equal", xticks=[], yticks=[])
    panel.legend(loc="center", frameon=False)
plt.show()
