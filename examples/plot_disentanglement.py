r"""
Does keeping geometry disentangle codes?
========================================

A β-VAE turns pictures into codes. A code is *disentangled* if it tells one factor of the picture and no other.
:cite:t:`uscidda:24` ask the decoder to keep the geometry of the codes: all of it
(:class:`~otdml.losses.Distortion`), or what a rearrangement of the pictures could keep
(:class:`~otdml.losses.GromovMongeGap`). Here this is tried on sprites drawn anew, whose factors are those of dSprites,
with a network small enough for a laptop.
"""

import warnings

import matplotlib.pyplot as plt
import torch

from otdml.disentanglement import (
    FACTORS,
    SPRITES,
    Objective,
    Schedule,
    Trees,
    coarse,
    dci_scores,
    fit,
    importances,
    regularizer,
    sprites,
)

warnings.filterwarnings("ignore", "Gromov-Wasserstein stopped")  # A gradient needs no settled plan.
generator = torch.Generator().manual_seed(0)
images, _ = sprites(5000, size=32, generator=generator)
held_out, factors = sprites(1000, size=32, generator=generator)


OBJECTIVES = {
    "none": Objective(),
    "distortion, 30": Objective(regularizer=regularizer("distortion"), weight=30.0),
    "Gromov-Monge gap, 300": Objective(regularizer=regularizer("gap"), weight=300.0),
}


def matrix(objective, steps=200):
    """How much each code matters for each factor."""
    model = fit(images, objective, Schedule(steps))
    with torch.no_grad():
        means, _ = model.encode(held_out)
    return importances(means, coarse(factors, SPRITES.counts), Trees())[0]


# %%
# One short training each, all from the same network. A column is a code, a row a factor, and a bright cell says that
# boosted trees predict this factor from this code; in a perfect score no column would have two bright cells. With
# 200 steps and one seed this shows the method, and not which regularizer is better: so short a training leaves codes
# that say next to nothing. That takes thousands of steps, several seeds and a control, which is what a study is::
#
#    $ otdml study sprites-base       # the plain autoencoder: which β, how long
#    $ otdml study sprites-weights    # each regularizer, at each place, cost and weight
#
# :doc:`/findings` has what they found.

figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), sharey=True, layout="constrained")
for axis, (name, objective) in zip(axes, OBJECTIVES.items(), strict=True):
    R = matrix(objective)
    picture = axis.imshow(R.T, cmap="magma", vmin=0, vmax=1, aspect="auto")
    axis.set(xticks=[], yticks=range(5), yticklabels=FACTORS, xlabel="codes")
    axis.set_title(f"{name}: DCI-D {dci_scores(R)[0]:.2f}", fontsize=11)
figure.colorbar(picture, ax=axes, label="importance")
plt.show()
