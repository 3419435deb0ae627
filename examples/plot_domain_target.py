r"""
What a target says of domains
=============================

Half of the images are pale: grey on grey. That makes two domains, and a contrastive loss keeps them apart, as the
domain tells images from each other. The target of the loss is a plan, and :class:`~otdml.losses.DomainTarget` gives
some of its mass to pairs inside a domain (:math:`\alpha`) and some to pairs across (:math:`\beta`) :cite:p:`chen:24`.
We train without labels, and ask the ten nearest neighbours of unseen images for their domain and for their class.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import Flatten, Linear, ReLU, Sequential

from otdml.data import Distort
from otdml.losses import DomainTarget, InfoNCE

pixels, labels = load_digits(return_X_y=True)
order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
x = (torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16)[order]
labels = torch.from_numpy(labels)[order]
domains = torch.arange(len(x)) % 2
distort = Distort(degrees=15)
seen = torch.arange(len(x)) < 1200


def printed(images, domains):
    return torch.where(domains[:, None, None, None] == 1, 0.3 + 0.5 * images, images)


def train(alpha, beta, seed, epochs=20, batch=200):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Sequential(Flatten(), Linear(64, 256), ReLU(), Linear(256, 32))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    loss = InfoNCE(eps=0.2, form="joint")
    for _ in range(epochs):
        for rows in torch.randperm(1200, generator=generator).split(batch):
            views = [network(printed(distort(x[rows], generator), domains[rows])) for _ in range(2)]
            optimizer.zero_grad()
            loss(*views, DomainTarget(domains[rows], alpha, beta)).backward()
            optimizer.step()
    with torch.no_grad():
        return network(printed(x, domains)).numpy()


def accuracy(z, target, voters, judged):
    """Of the vote of the 10 nearest voters."""
    judge = KNeighborsClassifier(10, metric="cosine").fit(z[voters], target[voters])
    return judge.score(z[judged], target[judged])


# %%
# Lines are means of three seeds, bands their ranges. At zero, plain InfoNCE, the domain of every image is known. A
# little mass across hides it from one image in five, and more classes are found than before, pale images among full
# ones included; much of it mixes classes, too. Mass inside never hides the domain, and drives the domains so far apart
# that one says little about the other. A little is enough, as there are 400 rows in a batch: 0.02 for each of the 200
# of a domain is already four times the mass of the positive pair.

differences = [-0.1, -0.05, -0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05]
asked = {
    "domain": (domains, seen, ~seen),
    "class": (labels, seen, ~seen),
    "class of pale images,\nby full neighbours": (labels, seen & (domains == 0), ~seen & (domains == 1)),
}
trained = [[train(max(d, 0.0), max(-d, 0.0), seed) for seed in range(3)] for d in differences]

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, question in asked.items():
    values = np.array([[accuracy(z, *question) for z in row] for row in trained])
    axis.plot(differences, values.mean(1), "o-", label=name)
    axis.fill_between(differences, values.min(1), values.max(1), alpha=0.2)
axis.axhline(0.5, color="0.5", linestyle=":", label="domain by chance")
axis.set(xlabel=r"$\alpha - \beta$: mass across, or inside", ylabel="accuracy of neighbours", ylim=(0.3, 1.03))
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
