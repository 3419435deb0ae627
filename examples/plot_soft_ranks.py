r"""
Ranks and recall with gradients
===============================

Sorting is transport: of all plans between scores and the ranks 1, ..., n the sorted order has the largest
:math:`\sum P_{ij} x_i j`. At a temperature above zero the plan is smooth in the scores, and so are the ranks and the
choice of the k largest. Scores that are closer than the temperature share their ranks; scores that are not are ranked
as ever, without a gradient.

Recall at k, what retrieval is judged by, asks whether one of the k nearest is of the query's class. With soft top-k in
place of the k nearest it can be trained on: here by linear maps of digits to three dimensions, beside triplets. The
temperature says how far from the border a sample still counts. That is one seed, with the defaults of each: it shows
that the loss trains what it names, and not that it is the better one.
"""

import matplotlib.pyplot as plt
import torch

from otdml.data import Digits
from otdml.dml import RecallAtK, TripletMargin, retrieval_metrics
from otdml.ot import soft_rank, soft_topk
from otdml.plot import COLORS

scores = torch.tensor([0.1, 0.35, 0.4, 1.2, 1.3, 2.0])
temperatures = torch.logspace(-2.5, 1.5, 60).tolist()
ranks = torch.stack([soft_rank(scores, eps=eps) for eps in temperatures])
chosen = torch.stack([soft_topk(scores, 2, eps=eps) for eps in temperatures])
print("ranks at eps = 0.01:", [round(r, 2) for r in soft_rank(scores, eps=0.01).tolist()])
print("ranks at eps = 0.30:", [round(r, 2) for r in soft_rank(scores, eps=0.3).tolist()])

# %%
# Each line is one score. The two at 0.35 and 0.4 share their ranks from a twentieth on; the choice of the two largest
# is that between 1.2 and 1.3, until the temperature makes all alike.

halves = [Digits(split=split) for split in ("trainval", "test")]
images = torch.cat([torch.stack([image for image, _ in half]) for half in halves]).flatten(1)
labels = torch.cat([torch.as_tensor(half.labels) + 5 * i for i, half in enumerate(halves)])
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
seen, unseen = order[:900], order[900:]


def curve(loss, steps=150):
    """Recall at 1 of unseen digits while a linear map is trained."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Linear(images.shape[1], 3, bias=False)
    torch.nn.init.normal_(net.weight, std=0.1, generator=generator)
    optimizer, found = torch.optim.Adam(net.parameters(), lr=0.01), []
    for step in range(steps + 1):
        if step % 10 == 0:
            found.append(retrieval_metrics(net(images[unseen]).detach(), labels[unseen], ks=(1,))["recall@1"])
        batch = seen[torch.randperm(len(seen), generator=generator)[:200]]
        optimizer.zero_grad()
        loss(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    return found


figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for axis, values, name in ((axes[0], ranks, "soft ranks"), (axes[1], chosen, "soft choice of the 2 largest")):
    for i, line in enumerate(values.T):
        axis.plot(temperatures, line, color=plt.cm.viridis(i / 6), label=f"{float(scores[i]):g}")
    axis.set(xscale="log", xlabel="temperature eps", title=name)
axes[1].legend(title="score", fontsize="small", loc="upper right")
losses = {"recall@1, eps = 0.1": RecallAtK(eps=0.1), "recall@1, eps = 0.01": RecallAtK(eps=0.01)}
for color, (name, loss) in zip(COLORS, {**losses, "triplets": TripletMargin()}.items(), strict=False):
    found = curve(loss)
    print(f"{name:22s} {found[0]:.3f} to {found[-1]:.3f}")
    axes[2].plot(range(0, 151, 10), found, color=color, label=name)
axes[2].set(xlabel="step", title="hard recall@1 of unseen digits")
axes[2].legend()
plt.show()
