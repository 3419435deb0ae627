r"""
A large cloud in little memory
==============================

The matrix of costs between two clouds of 20,000 points has 400 million entries, 1.5 GiB in single precision. It is
never needed at once: each soft minimum of Sinkhorn's iteration is a row's, and a row can be computed, used and
forgotten. ``backend="auto"`` keeps the matrix where it is small, which is faster, and streams it beyond; here either is
forced to see what it costs. Results, plans and gradients are the same.
"""

import time

import matplotlib.pyplot as plt
import torch

from otdml.benchmarks.speed.harness import peak_memory
from otdml.losses import sliced_wasserstein
from otdml.ot import sinkhorn
from otdml.plot import COLORS

generator = torch.Generator().manual_seed(0)


def sphere(n):
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)


def knot(n):
    """A thick trefoil."""
    t = 2 * torch.pi * torch.rand(n, generator=generator)
    line = torch.stack([t.sin() + 2 * (2 * t).sin(), t.cos() - 2 * (2 * t).cos(), -(3 * t).sin()], 1)
    return line / 2 + 0.12 * torch.randn(n, 3, generator=generator)


contenders = {
    "dense": lambda x, y: sinkhorn(x, y, eps=0.1, backend="dense").value,
    "streamed": lambda x, y: sinkhorn(x, y, eps=0.1, backend="streamed").value,
    "sliced": lambda x, y: sliced_wasserstein(x, y, n_projections=100, generator=generator),
}
sizes, figures = (1250, 2500, 5000, 10_000), {}
for name, run in contenders.items():
    for n in sizes:
        x, y = sphere(n), knot(n)
        start = time.perf_counter()
        _, peak = peak_memory(lambda run=run, x=x, y=y: run(x, y))
        figures[name, n] = time.perf_counter() - start, max(peak, 0.1)

# %%
# Memory of the dense form grows with the square of n. The streamed form needs its blocks, whatever n (what is seen of
# their few MiB is mostly noise); the sliced one grows with n. Time grows with the square for both forms of Sinkhorn.
# Sliced transport sorts, and is faster by far; it is another distance, and has no plan. That of 20,000 points is used
# for its barycentric map, a streamed product with the points. Colours are those of the start.

n, x, y = 20_000, sphere(20_000), knot(20_000)
start = time.perf_counter()
image, peak = peak_memory(lambda: sinkhorn(x, y, eps=0.1, backend="streamed").barycentric_map())
figures["streamed", n] = time.perf_counter() - start, peak
print(f"the matrix of {n} × {n} costs: {n * n * 4 / 2**20:.0f} MiB")
for (name, m), (seconds, peak) in figures.items():
    print(f"{name:9s} n = {m:6d}: {seconds:6.2f} s {peak:7.1f} MiB")

figure, shown = plt.figure(figsize=(12, 3.6), layout="constrained"), torch.arange(0, n, 4)
azimuth = torch.atan2(x[shown, 1], x[shown, 0])
for i, t in enumerate((0.0, 0.5, 1.0)):
    axis = figure.add_subplot(1, 4, i + 1, projection="3d")
    axis.set_box_aspect((1, 1, 1), zoom=1.6)
    axis.scatter(*((1 - t) * x + t * image)[shown].T, c=azimuth, s=2, linewidths=0, cmap="hsv", depthshade=False)
    axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), zlim=(-1.5, 1.5), title=f"{100 * t:g} % of the way")
    axis.view_init(elev=75, azim=-90)
    axis.set_axis_off()
axis = figure.add_subplot(1, 4, 4)
for name, color in zip(contenders, COLORS, strict=False):
    there = [m for m in (*sizes, n) if (name, m) in figures]
    axis.loglog(there, [figures[name, m][1] for m in there], "o-", color=color, label=name)
axis.set(xlabel="points", ylabel="peak memory (MiB)")
axis.set_xticks((*sizes, n), [f"{m:,}" for m in (*sizes, n)], fontsize=8)
axis.minorticks_off()
axis.legend()
plt.show()
