r"""
Maps that fit, and maps that are short as well
==============================================

Many maps carry one measure to another. A network that is trained to fit alone ends at whichever lies near its initial
weights. The *Monge gap* :cite:p:`uscidda:23` is the mean cost of a map less the least cost of reaching the same
images, so that of all maps that fit it prefers the optimal one. Here points of a circle go to a flower around it, by a
small network whose loss is the Sinkhorn divergence between images and target, without the gap and with it.
"""

import matplotlib.pyplot as plt
import torch

from otdml.losses import MongeGap, SinkhornDivergence
from otdml.ot import exact

fitting, gap = SinkhornDivergence(eps=0.2, tol=1e-2), MongeGap(eps=0.2, tol=1e-2)


def clouds(n, generator):
    """Points of a circle, and points of a flower around it."""
    inner, outer = 2 * torch.pi * torch.rand(2, n, 1, generator=generator)
    x = torch.cat([inner.cos(), inner.sin()], 1) + 0.05 * torch.randn(n, 2, generator=generator)
    y = (2 + 0.4 * (5 * outer).cos()) * torch.cat([outer.cos(), outer.sin()], 1)
    return x, y + 0.05 * torch.randn(n, 2, generator=generator)


def fitted(weight, seed, steps=250, batch=64, rate=1e-2):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        x, y = clouds(batch, generator)
        tx = network(x)
        loss = fitting(tx, y) + weight * gap(x, tx) if weight else fitting(tx, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


# %%
# Each column starts from other weights. Without the gap (above) one network has found a mirror image, one nearly the
# best map, and one turns the circle on its way: all three fit alike. With it (below) all go straight out, the cost
# is the least for these images, and the fit is hardly worse. Red arrows are those that would rather exchange their
# images, :math:`\langle x_i - x_j, T x_i - T x_j \rangle < 0`, with a good part of the others; an optimal map has no
# such pair. A turn by less than a right angle has none either and still is not optimal: the cost tells.

x, y = clouds(400, torch.Generator().manual_seed(100))
figure, axes = plt.subplots(2, 3, figsize=(10, 7), sharex=True, sharey=True, layout="constrained")
print(f"{'weight':>6s}{'seed':>6s}{'cost':>8s}{'least for its images':>22s}{'pairs to exchange':>19s}{'fit':>7s}")
for row, weight in zip(axes, (0.0, 1.0), strict=True):
    for seed, axis in enumerate(row):
        tx = fitted(weight, seed)(x).detach()
        cost, least = float((tx - x).square().sum(1).mean()), float(exact(x, tx).value)
        crossed = (((x[:, None] - x) * (tx[:, None] - tx)).sum(-1) < 0).float().mean(1)
        fit = float(fitting(tx, y))
        print(f"{weight:6g}{seed:6d}{cost:8.2f}{least:22.2f}{float(crossed.mean()):19.2f}{fit:7.2f}")
        axis.scatter(*y.T, s=5, color="0.8", linewidths=0)
        shown = slice(0, 120)
        ends, how = torch.cat([x, tx - x], 1)[shown].T, {"scale_units": "xy", "scale": 1, "width": 0.004}
        axis.quiver(*ends, crossed[shown], cmap="coolwarm", angles="xy", clim=(0, 0.5), **how)
        axis.set(xticks=[], yticks=[], aspect="equal", title=f"cost {cost:.2f}, least {least:.2f}")
for axis, name in zip(axes[:, 0], ("fit alone", "fit and Monge gap"), strict=True):
    axis.set_ylabel(name, fontsize=11)
plt.show()
