r"""
Clouds of different sizes
=========================

Handwritten digits as clouds: each pixel with ink is a point, and the ink is its weight. No two have the same number of
points. :func:`otdml.ot.pad_clouds` makes one batch of them, in which shorter clouds end with points of weight zero.
Every solver and loss gives what it gives cloud by cloud, and the padding has no gradient; so all pairs are compared at
once, and a barycentre is taken of all clouds of a class.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from otdml.losses import sinkhorn_divergence
from otdml.ot import pad_clouds, sinkhorn_barycenter
from otdml.plot import COLORS

digits = load_digits()
images, labels = torch.from_numpy(digits.images).float(), torch.from_numpy(digits.target)
chosen = torch.cat([(labels == digit).nonzero()[:8, 0] for digit in range(10)])
images, labels = images[chosen], labels[chosen]
clouds = [image.nonzero().float() for image in images]
ink = [image[image > 0] / image.sum() for image in images]
points, weights = pad_clouds(clouds, ink)
sizes = sorted(len(cloud) for cloud in clouds)
print(f"{len(clouds)} clouds of {sizes[0]} to {sizes[-1]} points: a batch of shape {tuple(points.shape)}")

# %%
# All pairs are a batch of 80 × 80 problems. Of one pair, the value and the gradient are those of the two clouds alone.

value = sinkhorn_divergence(points[:, None], points, weights[:, None], weights, eps=0.5)
nearest = (value + 1e9 * torch.eye(len(value))).argmin(1)
print(f"{float((labels[nearest] == labels).float().mean()):.0%} have a nearest neighbour of their class")

x, alone, n = points[0].clone().requires_grad_(), clouds[0].clone().requires_grad_(), len(clouds[0])
padded = sinkhorn_divergence(x, points[9], weights[0], weights[9], eps=0.5, tol=1e-5)
single = sinkhorn_divergence(alone, clouds[9], ink[0], ink[9], eps=0.5, tol=1e-5)
(slope,), (expected,) = torch.autograd.grad(padded, x), torch.autograd.grad(single, alone)
print(f"values {float(padded.detach()):.5f} and {float(single.detach()):.5f}")
print(f"gradients differ by {float((slope[:n] - expected).abs().max()):.0e}; the padding has {slope[n:].abs().sum():g}")

# %%
# The barycentre of the eight clouds of each class, as forty points of equal weight.

start = torch.rand(10, 40, 2, generator=torch.Generator().manual_seed(0)) * 7
of_class = sinkhorn_barycenter(points.view(10, 8, -1, 2), None, weights.view(10, 8, -1), init=start, eps=0.5, tol=0.01)

figure = plt.figure(figsize=(11, 5.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
axis = left.subplots()
axis.imshow(value.clamp(min=0).sqrt(), cmap="viridis")
axis.set(title="root of the divergence between 80 digits", xticks=range(4, 80, 8), yticks=range(4, 80, 8))
axis.set(xticklabels=range(10), yticklabels=range(10), xlabel="digit", ylabel="digit")
right.suptitle("one cloud of each class, and the barycentre of eight")
for digit, (above, below) in enumerate(right.subplots(4, 5).reshape(2, 2, 5).swapaxes(1, 2).reshape(10, 2)):
    i = 8 * digit
    above.scatter(clouds[i][:, 1], -clouds[i][:, 0], s=120 * 8 * ink[i], color="0.3", linewidths=0)
    below.scatter(of_class.points[digit, :, 1], -of_class.points[digit, :, 0], s=12, color=COLORS[0], linewidths=0)
    for panel in (above, below):
        panel.set(xlim=(-1, 8), ylim=(-8, 1), aspect="equal", xticks=[], yticks=[])
plt.show()
