r"""
A collapsed embedding, recovered
================================

An embedding table all of whose rows are equal has lost everything, and a plain repulsion cannot bring it back:
coincident points repel each other in no direction in particular. Every dispersion loss here breaks that tie first, by
a documented rule (:func:`otdml.sphere.distinct_directions`). We collapse a table of 200 rows in 8 dimensions, minimise
each loss, and compare what comes out with random uniform points. :class:`~otdml.sphere.UnitRows` keeps the rows on the
sphere.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.utils import parametrize

from otdml.losses import KernelDispersion, KoLeo, LloydDispersion, MaxMinAngle, SlicedDispersion
from otdml.losses.dispersion import dispersion_metrics, nearest_angles, uniform_baseline
from otdml.sphere import UnitRows, uniform_points

n, d, steps = 200, 8, 1000
generator = torch.Generator().manual_seed(0)


def recovered(loss, memory=0.95):
    table = torch.nn.Embedding(n, d)
    with torch.no_grad():
        table.weight.fill_(1.0)
    parametrize.register_parametrization(table, "weight", UnitRows())
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05, betas=(0.9, memory))
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
slow = {name: recovered(losses[name], memory=0.999)[1] for name in ("Riesz, s = 7", "KoLeo")}

# %%
# All of them recover, and end with every row further from its nearest than random points are. The force of the smallest
# angle has length one however near two rows are: it is there first. Forces of Riesz and KoLeo grow as 1 / distance, and
# fall a thousandfold on the way. Adam divides by the forces it remembers, so with its default memory of 1000 steps
# (dashed) these two crawl; we gave it 20. Uniformity hardly feels anything until the rows have left each other's reach.

rows = {"collapsed": dispersion_metrics(torch.ones(n, d)), "uniform": uniform_baseline(n, d, generator=generator)}
rows |= {name: dispersion_metrics(x) for name, (x, _) in results.items()}
print(" " * 16 + "".join(f"{key.replace('_', ' '):>22s}" for key in rows["uniform"]))
for name, metrics in rows.items():
    print(f"{name:16s}" + "".join(f"{value:22.4f}" for value in metrics.values()))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True, sharey=True)
part = [(i + 0.5) / n for i in range(n)]
for name, (x, curve) in results.items():
    (line,) = left.plot(range(1, steps + 1), curve)
    left.plot(range(1, len(slow.get(name, [])) + 1), slow.get(name, []), "--", color=line.get_color())
    right.plot(part, nearest_angles(x).sort().values, label=name)
uniform = nearest_angles(uniform_points(n, d, generator=generator))
left.axhline(float(uniform.mean()), color="grey", linestyle=":")
right.plot(part, uniform.sort().values, ":", color="grey", label="uniform points")
left.set(xscale="log", xlabel="step", ylabel="angle to the nearest (degrees)", title="mean over the rows")
right.set(xlabel="part of the rows, in ascending order", title="each row, at the end")
right.legend(fontsize=8, loc="lower right")
plt.show()
