r"""
A collapsed embedding, recovered
================================

An embedding table all of whose rows are equal has lost everything, and a plain repulsion cannot bring it back:
coincident points repel each other in no direction in particular. Every dispersion loss here breaks that tie first, by
a documented rule (:func:`otdml.sphere.distinct_directions`). We collapse a table of 200 rows in 8 dimensions, minimise
each loss, and compare what comes out with random uniform points. :class:`~otdml.sphere.UnitRows` keeps the rows on the
sphere.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from torch.nn.utils import parametrize

from otdml.losses import KernelDispersion, KoLeo, LloydDispersion, MaxMinAngle, SlicedDispersion
from otdml.losses.dispersion import dispersion_metrics, nearest_angles, uniform_baseline
from otdml.sphere import UnitRows, uniform_points

n, d, steps = 200, 8, 200
generator = torch.Generator().manual_seed(0)


def recovered(loss):
    table = torch.nn.Embedding(n, d)
    with torch.no_grad():
        table.weight.fill_(1.0)
    parametrize.register_parametrization(table, "weight", UnitRows())
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    curve = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(table.weight).backward()
        optimizer.step()
        schedule.step()
        curve.append(float(nearest_angles(table.weight).mean()))
    return table.weight.detach(), curve


losses = {
    "uniformity": KernelDispersion(log=True),
    "Riesz, s = 7": KernelDispersion(kernel="riesz", s=7.0, log=True),
    "KoLeo": KoLeo(),
    "max min angle": MaxMinAngle(),
    "Lloyd": LloydDispersion(generator=generator),
    "sliced": SlicedDispersion(generator=generator),
}
results = {name: recovered(loss) for name, loss in losses.items()}

# %%
# Numbers mean little without those of uniform points for the same n and d. With this one schedule, the constant force
# of the smallest angle and Lloyd's cells end beyond random points. The smooth energy and the slices have balanced the
# moments (variance near 1, 8 directions filled) and leave some pairs near. KoLeo and Riesz push hardest at the smallest
# distances and are still unfolding a cap: they need more steps from here.

rows = {"collapsed": dispersion_metrics(torch.ones(n, d)), "uniform": uniform_baseline(n, d, generator=generator)}
rows |= {name: dispersion_metrics(x) for name, (x, _) in results.items()}
print(" " * 16 + "".join(f"{key.replace('_', ' '):>22s}" for key in rows["uniform"]))
for name, metrics in rows.items():
    print(f"{name:16s}" + "".join(f"{value:22.4f}" for value in metrics.values()))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
histogram = partial(right.hist, bins=40, histtype="step", density=True)
for name, (x, curve) in results.items():
    left.plot(curve, label=name)
    histogram(nearest_angles(x).numpy(), label=name)
left.axhline(rows["uniform"]["mean_nearest_angle"], color="grey", linestyle=":", label="uniform")
left.set(xlabel="step", ylabel="mean angle to the nearest (degrees)")
histogram(nearest_angles(uniform_points(n, d, generator=generator)).numpy(), color="grey", linestyle=":")
right.set(xlabel="angle to the nearest (degrees)", ylabel="density")
left.legend(fontsize=8)
plt.show()
