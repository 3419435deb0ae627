"""Flows for tests, far from the identity."""

import torch
from draws import seeded

from otdml.dml import reference_flow

__all__ = ["random_flow"]


def random_flow(dim, seed=0, gain=1.5):
    """The reference flow, with its weights scaled up so that it is far from the identity."""
    flow = reference_flow(dim, blocks=3, layers=3, width=16, generator=seeded(seed))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= gain
    return flow
