r"""
Cells measured in two ways
==========================

Two assays of the same kind of cells, say gene expression and open chromatin, have no feature in common, and mostly no
cell: each destroys what it measures. What they share is the geometry of the population, and Gromov-Wasserstein
transport matches populations by the distances within each. :cite:t:`demetci:22` take distances along the graph of
nearest neighbours, and send each cell where the plan sends it on average; so labels of one assay carry over.

The cells below are made up, as nothing is downloaded here: a tree of three fates, seen through two random maps. Given a
folder, ``python examples/plot_single_cells.py FOLDER`` reads the 1,047 cells of SNARE-seq, each measured in both ways,
from the files ``SNAREseq_{rna,atac}_{feat.npy,types.txt}`` in it. The pairing is read for the scores alone;
:doc:`../performance` has their figures.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph

from otdml.ot import gromov_matrix
from otdml.plot import COLORS


def made_up(n=300):
    """Cells on a tree of three branches of unequal length and weight, in two assays."""
    generator = torch.Generator().manual_seed(0)
    fate = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    age = torch.rand(n, generator=generator) * torch.tensor([1.0, 0.7, 0.5])[fate]
    place = age[:, None] * torch.stack([(2.0 * fate).cos(), (2.0 * fate).sin()], 1)
    for d in (19, 10):
        weights, shift = 1.5 * torch.randn(2, d, generator=generator), torch.randn(d, generator=generator)
        yield (place @ weights + shift).sin() + 0.03 * torch.randn(n, d, generator=generator), fate


def read(folder):
    for assay in ("atac", "rna"):
        cells = torch.from_numpy(np.load(folder / f"SNAREseq_{assay}_feat.npy")).float()
        yield (
            cells / cells.norm(dim=1, keepdim=True),
            torch.from_numpy(np.loadtxt(folder / f"SNAREseq_{assay}_types.txt")),
        )


def geodesic(cells, k):
    """Lengths of the shortest paths on the graph of the k nearest neighbours by correlation, in edges."""
    graph = kneighbors_graph(cells, k, metric="correlation")
    return torch.tensor(shortest_path(graph, directed=False, unweighted=True)).float()


(x, fate_x), (y, fate_y) = read(Path(sys.argv[1])) if len(sys.argv) > 1 else made_up()
# A tenth of the cells are neighbours, about as many as SCOT's settings for SNARE-seq have.
A, B = (D / D.max() for D in (geodesic(cells, len(cells) // 10) for cells in (x, y)))
result = gromov_matrix(A, B, init="product")
moved = result.barycentric_map(y)

# %%
# The fraction of cells closer than the true match (FOSCTTM) is 0 where each cell is moved onto itself, and one half by
# chance. Labels are transferred from five neighbours.

D = torch.cdist(moved, y)
closer = 0.5 * ((D.diagonal()[:, None] > D).float().mean() + (D.diagonal() > D).float().mean())
transferred = KNeighborsClassifier(5).fit(y, fate_y).score(moved, fate_x)
print(f"FOSCTTM {closer:.4f}, label transfer {transferred:.4f}, after {result.n_iter} steps")

figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
first, second = (torch.pca_lowrank(cells, 2, niter=8)[2] for cells in (x, y))
axes[2].scatter(*(y @ second).T, s=6, color="0.85")
shown = (x @ first, fate_x, "first"), (y @ second, fate_y, "second"), (moved @ second, fate_x, "first, moved to second")
for axis, (cells, fate, name) in zip(axes, shown, strict=True):
    axis.scatter(*cells.T, s=8, c=[COLORS[int(label) % len(COLORS)] for label in fate])
    axis.set(xticks=[], yticks=[], title=name)
plt.show()
