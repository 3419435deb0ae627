r"""
Straight paths for flow matching
================================

Flow matching fits a velocity :math:`v(x_t, t)` to :math:`x_1 - x_0` at :math:`x_t = (1 - t) x_0 + t x_1`. If noise and
data are paired at random, segments cross, the velocity is a mean over those that meet, and paths bend. Pairs from a
transport plan (:func:`otdml.ot.couple`) cross less, so paths are nearly straight, and one step follows them. Moons are
paired batch by batch; digits, in 16 principal components, by cells of equal mass for all noise of the training at once.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits, make_moons
from torch import nn

from otdml.ot import couple, exact
from otdml.plot import COLORS

moons = 2 * torch.from_numpy(make_moons(1800, noise=0.05, random_state=0)[0]).float() - torch.tensor([1.0, 0.5])
pixels = torch.from_numpy(load_digits().data).float()
mean = pixels.mean(0)
basis = torch.linalg.svd(pixels - mean, full_matrices=False)[2][:16]
digits = (pixels - mean) @ basis.T / 8
STEPS, BATCH, COUNTS = 800, 128, (1, 2, 4, 8, 100)


def train(data, method):
    """A velocity field, from points and times to velocities, trained on pairs of noise and data."""
    generator, d, w, act = torch.manual_seed(0), data.shape[1], 256, nn.SiLU()
    net = nn.Sequential(nn.Linear(d + 1, w), act, nn.Linear(w, w), act, nn.Linear(w, w), act, nn.Linear(w, d))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    noise, drawn = torch.randn(STEPS, BATCH, d), torch.randint(len(data), (STEPS, BATCH))
    if method == "semidiscrete":
        drawn = couple(noise.flatten(0, 1), data, method=method, generator=generator)[1].view(STEPS, BATCH)
    for x0, x1, t in zip(noise, data[drawn], torch.rand(STEPS, BATCH, 1), strict=True):
        x1 = x1[couple(x0, x1)[1]] if method == "exact" else x1
        loss = (net(torch.cat([(1 - t) * x0 + t * x1, t], 1)) - (x1 - x0)).square().mean()
        net.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


@torch.no_grad()
def path(net, x, n):
    """Where the points are after each of n steps of Euler's method, shape (n + 1, points, d)."""
    seen = [x]
    for k in range(n):
        seen.append(seen[-1] + net(torch.cat([seen[-1], torch.full_like(x[:, :1], k / n)], 1)) / n)
    return torch.stack(seen)


# %%
# The energy :math:`\int_0^1 \mathbb{E} \lVert v \rVert^2 dt` of the paths is never less than the squared Wasserstein
# distance of their ends, and equal to it if all paths are straight and carry noise to data optimally.

figure, rows = plt.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
print(f"{'squared distances':27s}{'energy / path ends':>18s}" + "".join(f"{f'{k} steps':>11s}" for k in COUNTS))
for row, data, kind, best in zip(rows, (moons, digits), ("moons", "digits"), ("exact", "semidiscrete"), strict=True):
    x, truth = torch.randn(600, data.shape[1]), data[torch.randperm(len(data))[:600]]
    for axis, method, color in zip(row, ("random", best), COLORS[1::-1], strict=False):
        net, name = train(data, method), f"{kind}, {method} pairs"
        found = path(net, x, 100)
        straight = 100**2 * found.diff(dim=0).square().sum(-1).mean() / exact(found[0], found[-1]).value
        errors = [float(exact(path(net, x, k)[-1], truth).value) for k in COUNTS]
        print(f"{name:27s}{straight:18.2f}" + "".join(f"{error:11.2f}" for error in errors))
        row[2].semilogx(COUNTS, errors, "o-", color=color, label=f"{method} pairs")
        if kind == "moons":
            axis.plot(*found[:, :200].permute(2, 0, 1), color=color, alpha=0.5, lw=0.7)
            axis.scatter(*found[-1].T, s=4, color="k", linewidths=0, zorder=2)
        else:
            images = (8 * path(net, x[:40], 1)[-1] @ basis + mean).view(5, 8, 8, 8)
            axis.imshow(nn.functional.pad(images, (1, 1, 1, 1)).movedim(2, 1).reshape(50, 80), cmap="gray_r", vmin=0)
        axis.set(xticks=[], yticks=[], title=name + (": paths" if kind == "moons" else ": one step"))
    row[2].set(xlabel="steps", ylabel="squared distance to data", ylim=0, xticks=COUNTS, xticklabels=COUNTS)
    row[2].legend()
plt.show()
