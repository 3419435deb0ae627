r"""The flow of the published NIR experiments: fixed permutations and conditional affine couplings, built on zuko."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, LazyTransform, UnconditionalDistribution, UnconditionalTransform
from zuko.nn import MLP
from zuko.transforms import PermutationTransform
from zuko.utils import broadcast

from otdml._checks import check_generator, check_integer, check_positive, device_of_draws

__all__ = ["GlowCouplings", "reference_flow"]


def reference_flow(
    dim: int,
    *,
    blocks: int = 5,
    layers: int = 8,
    width: int = 128,
    clamp: float = 2.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Flow of the published experiments: blocks of a fixed random permutation and two affine couplings.

    The sizes of the defaults give 1,402,880 parameters at d = 128.

    Args:
        dim: Number of features, d, and of context features.
        blocks: Number of blocks.
        layers: Number of linear layers of each sub-network, with ReLU between them.
        width: Number of hidden features.
        clamp: Bound of the logarithm of a feature's scale in one coupling.
        generator: Source of permutations and weights. PyTorch's default one if None.

    Returns:
        A ``zuko.flows.Flow`` that maps embeddings to standard normal latents; the permutations are buffers.

    Example:
        >>> import torch
        >>> density = reference_flow(4)(torch.zeros(3, 4))
        >>> density.sample().shape, density.log_prob(torch.zeros(3, 4)).shape
        (torch.Size([3, 4]), torch.Size([3]))

    Source: :cite:p:`roth:22`.
    """
    dim, clamp = check_integer("dim", dim, least=2), check_positive("clamp", clamp)
    hidden = (check_integer("width", width),) * (check_integer("layers", layers, least=2) - 1)
    transforms: list[nn.Module] = []
    # The constructors draw from the global generator, and `_redraw` replaces what they drew.
    with torch.random.fork_rng(devices=[], enabled=check_generator(generator) is not None):
        for _ in range(check_integer("blocks", blocks)):
            order = torch.randperm(dim, generator=generator, device=device_of_draws(generator))
            order = order.to(torch.empty(0).device)
            transforms.append(UnconditionalTransform(PermutationTransform, order, buffer=True))
            transforms.append(GlowCouplings(dim, hidden=hidden, clamp=clamp))
    normal = UnconditionalDistribution(DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True)
    flow = Flow(transforms, normal)
    if generator is not None:
        _redraw(flow, generator)
    return flow


class GlowCouplings(LazyTransform):
    r"""Two affine couplings, each mapping one half of the features given the other half and the condition.

    .. math::
        a' = e^{s_1} a + t_1, \quad (r_1, t_1) = h_1(b, c), \qquad
        b' = e^{s_2} b + t_2, \quad (r_2, t_2) = h_2(a', c), \qquad
        s_i = 0.636 \, \mathrm{clamp} \cdot \arctan(r_i)

    The factor is about :math:`2 / \pi`, so that :math:`\lvert s \rvert < \mathrm{clamp}`: the map and its inverse stay
    well conditioned whatever the networks compute.

    Args:
        dim: Number of features, and of context features.
        hidden: Numbers of hidden features of the networks.
        clamp: Bound of the logarithms of the scales.

    Example:
        >>> import torch
        >>> couplings, c, x = GlowCouplings(4, hidden=(8,), clamp=2.0), torch.zeros(3, 4), torch.ones(3, 4)
        >>> torch.allclose(couplings(c).inv(couplings(c)(x)), x)
        True

    Source: :cite:p:`kingma:18`; the clamp, :cite:p:`ardizzone:19`.
    """

    def __init__(self, dim: int, *, hidden: Sequence[int], clamp: float) -> None:
        super().__init__()
        self.split = dim // 2, dim - dim // 2
        self.clamp = clamp
        a, b = self.split
        self.first = MLP(b + dim, 2 * a, hidden)
        self.second = MLP(a + dim, 2 * b, hidden)

    def forward(self, c: Tensor) -> Transform:
        return _GlowTransform(self, c)


class _GlowTransform(Transform):
    """The bijection of :class:`GlowCouplings` under one condition."""

    # Both couplings in one pass over contiguous halves: index sets would cost a device synchronisation each.
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, couplings: GlowCouplings, condition: Tensor) -> None:
        super().__init__()
        self.couplings = couplings
        self.condition = condition

    def _affine(self, network: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = network(torch.cat(broadcast(given, self.condition, ignore=1), dim=-1)).chunk(2, dim=-1)
        return 0.636 * self.couplings.clamp * raw.atan(), shift

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.split(self.couplings.split, dim=-1)
        s1, t1 = self._affine(self.couplings.first, b)
        a = torch.addcmul(t1, s1.exp(), a)
        s2, t2 = self._affine(self.couplings.second, a)
        b = torch.addcmul(t2, s2.exp(), b)
        return torch.cat([a, b], dim=-1), s1.sum(dim=-1) + s2.sum(dim=-1)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        a, b = y.split(self.couplings.split, dim=-1)
        s2, t2 = self._affine(self.couplings.second, a)
        b = (b - t2) * (-s2).exp()
        s1, t1 = self._affine(self.couplings.first, b)
        a = (a - t1) * (-s1).exp()
        return torch.cat([a, b], dim=-1)


def _redraw(flow: nn.Module, generator: torch.Generator) -> None:
    """Draw the linear layers' initial parameters, uniform up to 1 / sqrt(fan in), from ``generator``."""
    for weight, bias in zip(*[iter(flow.parameters())] * 2, strict=True):
        bound = 1 / math.sqrt(weight.shape[-1])
        for parameter in (weight, bias):
            draw = torch.rand(parameter.shape, generator=generator, device=generator.device)
            parameter.data.copy_(bound * (2 * draw - 1))
