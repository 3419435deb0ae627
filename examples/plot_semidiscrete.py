r"""
Cells of equal mass
===================

Semi-discrete transport carries a density, known by samples, to finitely many points. Its optimum is a map: space is cut
into *Laguerre cells*, and all that is in a cell goes to its point. A Voronoi cell belongs to the nearest point; a
Laguerre cell to the smallest :math:`\lVert x - y_j \rVert^2 - g_j`, and the potentials g grow or shrink the cells until
each has the mass that its point can take. So 40 schools share out pupils: to the nearest one, or to the nearest as far
as there is room.
"""

import matplotlib.pyplot as plt
import torch

from otdml.costs import cost_matrix
from otdml.ot import semidiscrete
from otdml.plot import COLORS

generator = torch.Generator().manual_seed(0)
centres = torch.tensor([[0.3, 0.35], [0.72, 0.6]])


def town(n):
    """A town with two quarters, in the unit square."""
    quarter = torch.randint(2, (n,), generator=generator)
    people = centres[quarter] + 0.14 * torch.randn(n, 2, generator=generator)
    return people.remainder(1)


schools = torch.rand(40, 2, generator=generator)
result = semidiscrete(town, schools, n_steps=300)

# %%
# By distance alone, the fullest school gets many times its share. With the potentials all are full and none is over
# full, up to the noise of the samples; the price is a longer way to school.

pupils = town(100_000)
nearest = cost_matrix(pupils, schools).argmin(1)
assigned = result.cells(pupils)
for name, cells in (("nearest", nearest), ("transport", assigned)):
    sizes = torch.bincount(cells, minlength=40) / len(pupils) * 40
    way = float((pupils - schools[cells]).square().sum(1).mean().sqrt())
    print(f"{name:10s} load {float(sizes.min()):.2f} to {float(sizes.max()):.2f} of a school's places, way {way:.3f}")

side = torch.linspace(0, 1, 400)
grid = torch.cartesian_prod(side, side)
shuffled = torch.randperm(40, generator=generator)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1, 1, 1.1))
for axis, name, cells in (
    (axes[0], "Voronoi: the nearest", cost_matrix(grid, schools).argmin(1)),
    (axes[1], "Laguerre: equal shares", result.cells(grid)),
):
    axis.imshow(shuffled[cells].view(400, 400).T.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap="tab20", alpha=0.5)
    axis.scatter(*pupils[:1500].T, s=1, color="0.25", linewidths=0)
    axis.scatter(*schools.T, s=22, color="k", edgecolors="white", linewidths=0.8)
    axis.set(xticks=[], yticks=[], title=name)
for name, cells, color in (("nearest", nearest, COLORS[1]), ("transport", assigned, COLORS[0])):
    load = torch.bincount(cells, minlength=40).sort(descending=True).values / len(pupils) * 40
    axes[2].step(range(41), [*load.tolist(), float(load[-1])], where="post", color=color, label=name)
    axes[2].fill_between(range(41), [*load.tolist(), float(load[-1])], step="post", alpha=0.2, color=color)
axes[2].set(xlabel="school, by load", ylabel="load, 1 is full")
axes[2].legend()
plt.show()
