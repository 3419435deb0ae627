"""Minima of convex functions that are known."""

import torch

from otdml.ot._low_rank.newton import Expansion, minimum


def test_quadratic_functions_of_a_batch_take_one_step():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    H, z = (
        root @ root.mT + torch.eye(4, dtype=torch.float64),
        torch.randn(3, 4, generator=generator, dtype=torch.float64),
    )
    calls = []

    def function(y):
        calls.append(y)
        slope = (H @ (y - z)[..., None])[..., 0]
        return Expansion(0.5 * ((y - z) * slope).sum(-1), slope, H.clone)

    torch.testing.assert_close(minimum(function, torch.zeros_like(z), 1e-4), z, rtol=1e-3, atol=1e-4)
    assert len(calls) <= 3


def test_it_comes_back_from_far_where_the_function_is_flat():
    target = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    start = torch.tensor([[60.0, -60.0], [0.0, 0.0]], dtype=torch.float64)

    def function(s):
        shares = s.softmax(-1)
        value = s.logsumexp(-1) - (target * s).sum(-1)
        return Expansion(
            value, shares - target, lambda: torch.diag_embed(shares) - shares[..., None] * shares[..., None, :]
        )

    torch.testing.assert_close(minimum(function, start, 1e-10).softmax(-1), target)
