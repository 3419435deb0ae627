r"""
What a target says of domains
=============================

Half of the images are pale: grey on grey. That makes two domains, and a contrastive loss keeps them apart, as the
domain tells images from each other. The target of the loss is a plan, and :class:`~otdml.losses.DomainTarget` gives
some of its mass to pairs inside a domain (:math:`\alpha`) and some to pairs across (:math:`\beta`) :cite:p:`chen:24`.
A little mass across mixes the domains, so that classes can be told from images of the other one; much of it mixes
classes, too. Mass inside does the opposite.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

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


def train(alpha, beta, epochs=20, batch=200):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 32)
    )
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
# A little mass goes a long way, as there are 400 rows in a batch: 0.02 for each of the 200 rows of a domain is already
# four times the mass of the positive pair.

differences = [-0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05]
embeddings = [train(max(d, 0.0), max(-d, 0.0)) for d in differences]
full, pale = seen & (domains == 0), ~seen & (domains == 1)
curves = {
    "domain": [accuracy(z, domains, seen, ~seen) for z in embeddings],
    "class": [accuracy(z, labels, seen, ~seen) for z in embeddings],
    "class of pale images, from others": [accuracy(z, labels, full, pale) for z in embeddings],
}

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, values in curves.items():
    axis.plot(differences, values, "o-", label=name)
axis.set(xlabel=r"$\alpha - \beta$", ylabel="accuracy of neighbours", ylim=(0, 1.03))
axis.legend()
plt.show()
