"""Draw docs/_static/otdml.png, the picture of the README: transport, dispersion and retrieval.

    python docs/picture.py runs/demo/proxy-nca/seed-0

The argument is the folder of a finished run; its unseen classes make the last panel.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.offsetbox
import torch
from torch.nn import functional as F

from otdml.benchmarks.exhibits import embedding_map, load_exhibits
from otdml.losses import kernel_dispersion
from otdml.ot import sinkhorn
from otdml.plot import COLORS, transport_plan

mpl.use("agg")
from matplotlib import pyplot


def transport(ax):
    """A ring carried onto two moons."""
    chance = torch.Generator().manual_seed(0)
    angle = torch.linspace(0, 2 * torch.pi, 81)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(80, 2, generator=chance)
    half = angle[:40] / 2
    moons = torch.cat([torch.stack([half.cos(), half.sin()], 1), torch.stack([1 - half.cos(), 0.4 - half.sin()], 1)])
    moons = moons * 1.1 + torch.tensor([2.2, -0.2]) + 0.04 * torch.randn(80, 2, generator=chance)
    transport_plan(ring, moons, sinkhorn(ring, moons, eps=0.01).plan, share=0.35, ax=ax)
    ax.set_aspect("equal", adjustable="datalim")


def dispersion(ax):
    """Points of a sphere that a dispersion loss spreads, seen from outside: their way, and where they end."""
    z = F.normalize(
        torch.tensor([0.5, 0.2, 1.0]) + 0.25 * torch.randn(90, 3, generator=torch.Generator().manual_seed(1)), dim=1
    )
    z.requires_grad_()
    ways, optimizer = [], torch.optim.Adam([z], lr=0.02)
    for _ in range(400):
        ways.append(F.normalize(z.detach(), dim=1).clone())
        optimizer.zero_grad()
        kernel_dispersion(F.normalize(z, dim=1), kernel="riesz", distance="chord", s=1.0).backward()
        optimizer.step()
    ways = torch.stack(ways)
    ax.add_patch(pyplot.Circle((0, 0), 1, color="0.95", zorder=0))
    for way in ways.unbind(1):
        seen = way[:, 2] > 0
        if seen[-1]:
            ax.plot(*way[seen, :2].T, color="0.6", lw=0.6, zorder=1)
    front = ways[-1][ways[-1][:, 2] > 0]
    ax.scatter(*ways[0, :, :2].T, s=6, color=COLORS[1], lw=0, zorder=2, alpha=0.6)
    ax.scatter(*front[:, :2].T, s=26, color=COLORS[0], edgecolors="white", lw=0.6, zorder=3)
    ax.set_aspect("equal")


def retrieval(ax, folder):
    """Images of classes that no network saw in training, where t-SNE puts their embeddings."""
    shown = load_exhibits(folder / "exhibits.npz")
    points, labels = embedding_map(shown["map_embedding"]), shown["map_class"]
    kinds = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    for (x, y), image, label in zip(points, shown["map_image"], labels.tolist(), strict=True):
        box = mpl.offsetbox.OffsetImage(image, zoom=8 / image.shape[0], cmap="gray")
        frame = {"edgecolor": COLORS[kinds[label] % 7], "linewidth": 0.8}
        ax.add_artist(mpl.offsetbox.AnnotationBbox(box, (x, y), pad=0.05, bboxprops=frame))
    ax.update_datalim(points)
    ax.autoscale_view()


if __name__ == "__main__":
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.9), layout="constrained", width_ratios=(1.15, 1, 1.25))
    transport(axes[0])
    dispersion(axes[1])
    retrieval(axes[2], Path(sys.argv[1]))
    for ax, title in zip(axes, ("transport", "dispersion", "retrieval of unseen classes"), strict=True):
        ax.set_title(title, fontsize=12, color="0.25", y=1.0)
        ax.axis("off")
    figure.savefig(Path(__file__).parent / "_static" / "otdml.png", dpi=110)
