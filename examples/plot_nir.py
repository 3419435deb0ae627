r"""
What a NIR head does, and its control arm
=========================================

Non-isotropy regularisation (:class:`~otdml.dml.NIR`) adds to a proxy loss that a normalizing flow, given the proxy of
an image's class, turn its embedding into noise. Its recipe also scales the proxy loss, doubles the learning rate of the
proxies and warms up longer; the control arm does all of that without the flow. A small network learns the digits 0-4
and is tested on 5-9, over five seeds.
"""

import matplotlib.pyplot as plt
import torch

from otdml.data import Digits, Distort
from otdml.dml import ClassBalancedBatchSampler, ProxyDML, embed, param_groups, retrieval_metrics
from otdml.dml.optim import schedule
from otdml.sphere import angle, unit

alone = {"lr": {"backbone": 1e-3, "proxies": 1e-2}, "warmup_epochs": 1}
control = {"lr": {"backbone": 1e-3, "proxies": 2e-2}, "warmup_epochs": 2, "loss_weight": 0.3}
exp_nll, nll = (control | {"nir_weight": 1.0, "nir_options": {"objective": o}} for o in ("exp_nll", "nll"))
arms = {"control arm": control, "no NIR": alone, "NIR, exp_nll": exp_nll, "NIR, nll": nll}
train, test = Digits(split="trainval"), Digits(split="test")
distort = Distort(degrees=15.0, scale=0.15, shear=0.2, translate=0.06)
steps, seeds = 120, 5


def trained(seed, arm):
    """The network, and at every fifth step the gradient of the flow's term over that of the proxy loss."""
    module = ProxyDML(5, backbone_options={"widths": [32, 64]}, dim=32, seed=seed, **arm)
    parts = {"backbone": module.backbone, "head": module.head, "proxies": module.loss, "flow": module.nir}
    optimizer = torch.optim.AdamW(param_groups(parts, lr=module.lr, weight_decay=module.weight_decay))
    rate = schedule("cosine", steps, warmup=20 * module.warmup_epochs)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    generator, forces = torch.Generator().manual_seed(seed), []
    for step, rows in enumerate(ClassBalancedBatchSampler(train.labels, 5, 16, seed=seed, batches=steps)):
        terms = module.losses(distort(train.images[rows].float() / 255, generator), train.labels[rows])
        if module.nir and step % 5 == 0:
            weight = module.head.linear.weight
            nir, proxy = (torch.autograd.grad(terms[k], weight, retain_graph=True)[0].norm() for k in ("nir", "proxy"))
            forces.append(float(nir / (module.loss_weight * proxy)))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        rates.step()
    return embed(module, train), embed(module, test), forces


def spread(z, labels):
    """Mean angle of a class about its mean direction, in degrees."""
    parts = [z[labels == label] for label in labels.unique()]
    return torch.cat([angle(x, unit(x.mean(0))) for x in parts]).mean().rad2deg()


# %%
# The released code minimises the exponential of the negative log-likelihood, which **switches itself off**: after 100
# steps its gradient is about a ten-millionth of the proxy loss's, and what is left is the control arm. The published
# objective, unbounded on a sphere, **takes over**: its gradient is about a thousand times the proxy loss's, and classes
# shrink from 19 degrees to one. Recall@1 differs from the control arm's by -0.27 and -1.52 points (± 0.26 and 1.75 over
# the seeds): no gain, at a weight of one that was not tuned. See :doc:`/metric_learning` for more classes and tuning.

figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), constrained_layout=True)
recalls = []
for k, (name, arm) in enumerate(arms.items()):
    seen, new, forces = zip(*(trained(seed, arm) for seed in range(seeds)), strict=True)
    seen, spreads = ([spread(z, data.labels) for z in zs] for zs, data in ((seen, train), (new, test)))
    recalls.append(torch.tensor([100 * retrieval_metrics(z, test.labels, ks=(1,))["recall@1"] for z in new]))
    found = torch.stack(seen), torch.stack(spreads), recalls[-1], recalls[-1] - recalls[0]
    print(name, *(f"{x.mean():.2f} ± {x.std():.2f}" for x in found), sep=", ")
    axes[0].plot(range(0, 5 * len(forces[0]), 5), torch.tensor(forces).median(0).values, color=f"C{k}", label=name)
    axes[1].plot([k - 0.1] * seeds, seen, "o", [k + 0.1] * seeds, spreads, "x", color=f"C{k}")
axes[2].plot(range(len(arms)), torch.stack(recalls), "o-", color="grey", linewidth=0.5)
axes[0].set(yscale="log", xlabel="step", title="gradient of the flow's term \nover that of the proxy loss")
axes[1].set(yscale="log", title="spread of trained (o) and new (x)\nclasses, degrees, one mark per seed")
axes[2].set(title="Recall@1 of new classes, percent,\none line per seed")
axes[0].legend(handles=axes[0].lines[2:])
for axis in axes[1:]:
    axis.set_xticks(range(len(arms)), arms, fontsize=8)
plt.show()
