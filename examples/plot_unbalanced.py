r"""
Outliers, and mass that need not move
=====================================

Balanced transport must deliver all mass, outliers included: a few points far away decide where everything goes. With
``rho`` the marginals are penalties instead of constraints: mass travels only as long as its way costs less than
leaving it out. We look for the shift between two copies of a shape, of which the second has one tenth of its points
replaced by noise far away.
"""

import matplotlib.pyplot as plt
import torch

from otdml.costs import cost_matrix
from otdml.losses import sinkhorn_divergence
from otdml.ot import sinkhorn
from otdml.plot import COLORS, transport_plan

n, outliers = 150, 15
generator = torch.Generator().manual_seed(0)
angle = 2 * torch.pi * torch.rand(n, generator=generator)
shape = torch.stack([angle.cos(), 0.6 * (2 * angle).sin()], 1)
shift = torch.tensor([0.4, 0.9])
target = shape + shift + 0.02 * torch.randn(n, 2, generator=generator)
target[:outliers] = torch.tensor([4.5, -1.0]) + 0.3 * torch.randn(outliers, 2, generator=generator)


def found_shift(rho, steps=60, rate=0.4):
    """The shift that minimises the divergence between the shifted shape and the target, by gradient descent."""
    t = torch.zeros(2)
    for _ in range(steps):
        t.requires_grad_()
        value = sinkhorn_divergence(shape + t, target, eps=0.05, rho=rho)
        t = (t - rate * torch.autograd.grad(value, t)[0]).detach()
    return t


# %%
# The unit of ``rho`` is that of the cost, here squared distance: mass whose way would cost many times ``rho`` stays
# where it is. So there is a plateau, here from a tenth of what the true shift costs to a tenth of what the way to the
# outliers costs (dotted). Further right outliers are served; further left the shape itself is left out, and the
# gradient vanishes before the two meet.

rhos = torch.logspace(-2, 2.5, 19)
errors = [float((found_shift(float(rho)) - shift).norm()) for rho in rhos]
balanced = float((found_shift(None) - shift).norm())
costs = [float(shift.square().sum()), float(cost_matrix(shape, target[:outliers]).mean())]
print(f"error of the shift: balanced {balanced:.3f}, at best {min(errors):.3f}, its length {float(shift.norm()):.3f}")
print(f"the shift costs {costs[0]:.2f}, the way to the outliers {costs[1]:.1f}")

figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained", width_ratios=(1.2, 1.2, 0.9))
for axis, rho in zip(axes[:2], (None, 1.0), strict=True):
    result = sinkhorn(shape, target, eps=0.02, rho=rho, max_iter=10_000)
    transport_plan(shape, target, result.plan, share=0.1, ax=axis)
    reached = float(result.marginals[1][:outliers].sum())
    served = f"{100 * reached:.1f} % of the mass goes to outliers"
    axis.set_title(("balanced" if rho is None else f"rho = {rho:g}") + f": {served}", fontsize=10)
    axis.set(xticks=[], yticks=[])
axes[2].semilogx(rhos, errors, "o-", color=COLORS[0], markersize=4, label="unbalanced")
axes[2].axhline(balanced, color=COLORS[1], label="balanced")
for cost in costs:
    axes[2].axvline(cost / 10, color="0.6", linestyle=":")
axes[2].set(xlabel="rho", ylabel="error of the shift found", ylim=(0, None))
axes[2].legend()
plt.show()
