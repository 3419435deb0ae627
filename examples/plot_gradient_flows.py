r"""
Five losses, and where each carries a disk
==========================================

Every particle of a disk follows the gradient of a loss to a heart: :math:`\dot x_i = -n \nabla_{x_i} L(x, y)`. All
five losses compare measures, and four of them are zero only where the measures agree; what differs is the way there.
Colours say where in the disk a particle started.
"""

import matplotlib.pyplot as plt
import torch

from otdml.losses import MMD, EntropicOT, SinkhornDivergence, SlicedWasserstein
from otdml.ot import exact

n, generator = 300, torch.Generator().manual_seed(0)
share = (torch.arange(n) + 0.5) / n
turn, t = 2.39996 * torch.arange(n), 2 * torch.pi * share
disk = 0.35 * share.sqrt()[:, None] * torch.stack([turn.cos(), turn.sin()], 1) - torch.tensor([0.9, 0.0])
heart = [16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()]
heart = torch.stack(heart, 1) / 18 + torch.tensor([0.9, 0.1]) + 0.02 * torch.randn(n, 2, generator=generator)

# Each with a step that is as long as it can be without overshooting.
LOSSES = {
    "Sinkhorn\ndivergence": (SinkhornDivergence(eps=0.02, cache_second=True), 0.05),
    "entropic\ntransport": (EntropicOT(eps=0.2), 0.05),
    "sliced\nWasserstein": (SlicedWasserstein(n_projections=50, generator=generator), 0.1),
    "MMD,\nenergy": (MMD(kernel="energy", cache_second=True), 0.1),
    "MMD,\nGaussian": (MMD(bandwidth=0.3, cache_second=True), 0.1),
}
TIMES = (0, 5, 20, 60, 300)


def flow(loss, step):
    """Where the particles are at each of the times."""
    x, seen = disk.clone().requires_grad_(), []
    for time in range(TIMES[-1] + 1):
        if time in TIMES:
            seen.append(x.detach().clone())
        (gradient,) = torch.autograd.grad(loss(x, heart), x)
        with torch.no_grad():
            x -= step * n * gradient
    return seen


# %%
# *Sinkhorn divergence* moves the disk as a whole and unfolds it: every particle gets its own place. *Entropic
# transport* without the debiasing starts alike, but its minimum is a shrunken, clotted heart, in which each particle
# sits at a mean of several targets. *Sliced Wasserstein* drives quickly at first, then few directions tell a
# straggler inside the heart where to go. The *energy* kernel is pulled by all of the target from any distance, and
# pushed by all other particles, so the disk swells on its way and the last ones take long. A *Gaussian* kernel sees
# nothing beyond a few bandwidths: the particles in front are caught, and those behind feel only each other's push and
# leave the picture.

figure, axes = plt.subplots(len(LOSSES), len(TIMES), figsize=(11, 8.6), sharex=True, sharey=True, layout="constrained")
print(
    f"{'after 300 steps':24s}{'Wasserstein distance':>22s}{'variance kept':>15s}{'astray':>8s}{'targets missed':>16s}"
)
for row, (name, (loss, step)) in zip(axes, LOSSES.items(), strict=True):
    seen = flow(loss, step)
    gaps = torch.cdist(seen[-1], heart)
    far = [int((gaps.amin(side) > 0.1).sum()) for side in (1, 0)]
    distance, kept = float(exact(seen[-1], heart).value) ** 0.5, float(seen[-1].var(0).sum() / heart.var(0).sum())
    print(f"{' '.join(name.split()):24s}{distance:22.3f}{kept:15.2f}{far[0]:8d}{far[1]:16d}")
    for axis, x in zip(row, seen, strict=True):
        axis.scatter(*heart.T, s=8, color="0.87", linewidths=0)
        axis.scatter(*x.T, s=8, c=turn % (2 * torch.pi), cmap="hsv", linewidths=0)
        axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-1.9, 1.95), ylim=(-1.35, 1.35))
    row[0].set_ylabel(name, fontsize=11)
for axis, time in zip(axes[0], TIMES, strict=True):
    axis.set_title(f"after {time} steps", fontsize=11)
plt.show()
