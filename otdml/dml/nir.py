r"""Non-isotropy regularisation: a conditional flow that models how samples lie around their class proxy."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.func import functional_call
from torch.nn import functional as F

from otdml._checks import argument_error, check_choice, check_integer, check_points, check_positive
from otdml._precision import full_precision

try:
    from zuko.distributions import DiagNormal, NormalizingFlow
    from zuko.lazy import Flow, LazyDistribution, LazyTransform, UnconditionalDistribution, UnconditionalTransform
    from zuko.nn import MLP
    from zuko.transforms import PermutationTransform
    from zuko.utils import broadcast
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("NIR is built on zuko: pip install 'otdml[train]'") from error

__all__ = ["NIR", "REFERENCE_PROXY_WEIGHTS", "GlowCouplings", "flow_nll", "reference_flow"]

OBJECTIVES = "nll", "exp_nll"

REFERENCE_PROXY_WEIGHTS: Mapping[str, float] = MappingProxyType({"cub": 0.0075, "cars": 0.01, "sop": 0.3})
"""The factor of the proxy loss in the released code, whose total is ``factor * proxy_loss + exp_nll``."""


@full_precision
def flow_nll(z: Tensor, proxies: Tensor, flow: nn.Module, *, objective: str = "nll", cap: float = 20.0) -> Tensor:
    r"""Negative log-likelihood of embeddings under a flow conditioned on their class proxies.

    With :math:`u = \tau^{-1}(z \mid p)` and :math:`J = \partial u / \partial z`,

    .. math::
        \mathtt{nll} = \lVert u \rVert^2 - \log \lvert \det J \rvert, \qquad
        \mathtt{exp\_nll} = \exp\bigl(\tfrac{1}{2} \lVert u \rVert^2 - \log \lvert \det J \rvert\bigr).

    The first is the published objective: the negative log-likelihood for latents of variance 1/2, less
    :math:`\frac{d}{2} \log \pi`. The second is that of the released code: its exponent is the negative
    log-likelihood for latents of variance 1, less :math:`\frac{d}{2} \log 2 \pi`. Embeddings and proxies are
    normalised first. Embeddings lie on a sphere, where a density on the whole space is unbounded: neither objective
    has a minimum, and only the flow's clamp bounds them (reference flow: :math:`\log \lvert \det J \rvert` is at most
    10 d). ``nll`` keeps pulling and shrinks the classes' spread; ``exp_nll`` switches itself off as the likelihood
    grows. The gradient is smooth in both.

    All is computed in float32, or float64 if any input or parameter is. The exponential continues beyond ``cap`` along
    its tangent, :math:`e^{\mathrm{cap}} (1 + x - \mathrm{cap})`: for negative log-likelihoods between -1000 and 1000
    value and gradient are finite for every cap up to 80. At 20 the squares of the gradient that Adam keeps are far
    from overflow, too. Below -87 the exponential of float32 is zero; its gradient has by then long been smaller than
    Adam's 1e-8.

    The latent norm is read from the flow's own base distribution p, :math:`\frac{1}{2} \lVert u \rVert^2 = -\log p(u)
    - \frac{d}{2} \log 2 \pi`, which for a standard normal base is an identity. A lazy distribution that is not a flow
    counts as a base with u = z.

    Args:
        z: Embeddings, shape (n, d), of any norm.
        proxies: Row i is the proxy of sample i's class, shape (n, d), of any norm.
        flow: A ``zuko.lazy.LazyDistribution`` over d features with d context features.
        objective: ``"nll"`` or ``"exp_nll"``.
        cap: Where ``exp_nll`` continues along its tangent; a negative log-likelihood.

    Returns:
        One value per sample, shape (n,).

    Raises:
        ValueError: If the batch is empty, or if shapes disagree.

    Example:
        >>> import torch
        >>> from zuko.distributions import DiagNormal
        >>> from zuko.lazy import UnconditionalDistribution
        >>> identity = UnconditionalDistribution(DiagNormal, torch.zeros(2), torch.ones(2), buffer=True)
        >>> z = torch.tensor([[3.0, 4.0]])  # norm one after normalisation, and J = 1
        >>> flow_nll(z, z, identity), flow_nll(z, z, identity, objective="exp_nll")  # 1, exp(1/2)
        (tensor([1.]), tensor([1.6487]))

    Source: :cite:p:`roth:22`.
    """
    check_choice("objective", objective, OBJECTIVES)
    _check_rows(z, proxies)
    energy, log_det = _latent(flow, F.normalize(z, dim=-1), F.normalize(proxies, dim=-1))
    return 2 * energy - log_det if objective == "nll" else _capped_exp(energy - log_det, cap)


class NIR(nn.Module):
    r"""Non-isotropy regularisation head: :func:`flow_nll` with its flow.

    A proxy loss alone lets every class collapse isotropically onto its proxy. NIR asks that an invertible map explain
    the embeddings of a class from its proxy, and so that they keep a structure of their own. Compose it as
    ``proxy_loss(z, labels) + weight * nir(z, proxy_loss.class_proxies(z, labels)).mean()``. The released code scales
    the other term instead: ``REFERENCE_PROXY_WEIGHTS["cub"] * proxy_loss(z, labels) + exp_nll``, the same up to a
    factor of the whole, which matters under coupled L2 decay. A gain over the bare proxy loss should therefore be
    checked against the same scaling, learning rates and warm-up without the flow.

    One pass of the reference flow is 80 small matrix products, whatever the number of classes. Importing this class
    imports zuko, which switches off the argument validation of ``torch.distributions`` in the whole process.

    Args:
        dim: Number of features, d.
        flow: A ``zuko.lazy.LazyDistribution`` over d features with d context features, such as
            ``zuko.flows.NSF(d, d)``. :func:`reference_flow` if None.
        objective: ``"nll"``, the published objective, or ``"exp_nll"``, that of the released code.
        cap: Where ``exp_nll`` continues along its tangent; a negative log-likelihood.
        detach_embeddings: Whether embeddings are constants: the flow and the proxies are fitted to them.
        detach_proxies: Whether proxies are constants: they follow the proxy loss alone.
        generator: Source of the reference flow's permutations and weights. PyTorch's default one if None.

    Attributes:
        flow: The lazy distribution; its permutations are buffers.

    Example:
        >>> import torch
        >>> nir = NIR(128, generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in nir.parameters())  # 10 sub-networks of 8 linear layers
        1402880
        >>> nir(torch.randn(4, 128), torch.randn(4, 128)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        dim: int,
        *,
        flow: nn.Module | None = None,
        objective: str = "nll",
        cap: float = 20.0,
        detach_embeddings: bool = False,
        detach_proxies: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, least=2)
        self.objective = check_choice("objective", objective, OBJECTIVES)
        self.cap = check_positive("cap", cap)
        self.detach_embeddings = detach_embeddings
        self.detach_proxies = detach_proxies
        if flow is not None and generator is not None:
            raise argument_error(
                "generator", "be None where a `flow` is given", "both", "Seed the flow when it is made."
            )
        self.flow = reference_flow(dim, generator=generator) if flow is None else _check_flow(flow, dim)

    def extra_repr(self) -> str:
        options = [name for name in ("detach_embeddings", "detach_proxies") if getattr(self, name)]
        return ", ".join([f"{self.dim}, objective={self.objective!r}, cap={self.cap:g}", *options])

    def forward(self, z: Tensor, proxies: Tensor) -> Tensor:
        if z.shape[-1:] != (self.dim,):
            raise argument_error("z", f"have shape (n, {self.dim})", tuple(z.shape))
        z = z.detach() if self.detach_embeddings else z
        proxies = proxies.detach() if self.detach_proxies else proxies
        return flow_nll(z, proxies, self.flow, objective=self.objective, cap=self.cap)


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

    The couplings are :class:`GlowCouplings`. The sizes of the defaults give 1,402,880 parameters at d = 128.

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
    check_integer("dim", dim, least=2)
    check_positive("clamp", clamp)
    hidden = (check_integer("width", width),) * (check_integer("layers", layers, least=2) - 1)
    transforms: list[nn.Module] = []
    # The constructors draw from the global generator, and `_redraw` replaces what they drew.
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        for _ in range(check_integer("blocks", blocks)):
            order = torch.randperm(dim, generator=generator, device=generator.device if generator else None)
            order = order.to(torch.get_default_device())
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


class _Latent(nn.Module):
    """Half the squared latent norm and the log-determinant, as a module whose parameters can be substituted."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        base = self.flow(condition)
        u, log_det = z, z.new_zeros(len(z))
        if isinstance(base, NormalizingFlow):
            u, log_det = base.transform.call_and_ladj(z)
            # Element-wise transforms give one logarithm per feature.
            base, log_det = base.base, log_det.reshape(len(z), -1).sum(dim=-1)
        return -base.log_prob(u) - 0.5 * math.log(2 * math.pi) * z.shape[-1], log_det


def _latent(flow: nn.Module, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """``_Latent`` in the wider dtype of points and parameters."""
    parameter = next(flow.parameters(), z)
    dtype = torch.promote_types(z.dtype, parameter.dtype)
    latent, points = _Latent(flow), (z.to(dtype), condition.to(dtype))
    if parameter.dtype == dtype:
        return latent(*points)
    # A flow that was cast to half precision, or meets float64 points: its numbers are kept, its arithmetic is not.
    state = {**dict(latent.named_parameters()), **dict(latent.named_buffers())}
    return functional_call(latent, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, points)


def _capped_exp(x: Tensor, cap: float) -> Tensor:
    """``exp(x)`` up to ``cap``, and its tangent at ``cap`` beyond."""
    low = x.clamp(max=cap)
    return low.exp() * (1 + x - low)


def _redraw(flow: nn.Module, generator: torch.Generator) -> None:
    """Draw the linear layers' initial parameters, uniform up to 1 / sqrt(fan in), from ``generator``."""
    for weight, bias in zip(*[iter(flow.parameters())] * 2, strict=True):
        bound = 1 / math.sqrt(weight.shape[-1])
        for parameter in (weight, bias):
            draw = torch.rand(parameter.shape, generator=generator, device=generator.device)
            parameter.data.copy_(bound * (2 * draw - 1))


def _check_rows(z: Tensor, proxies: Tensor) -> None:
    check_points("z", z)
    check_points("proxies", proxies)
    if z.ndim != 2:
        raise argument_error("z", "have shape (n, d)", tuple(z.shape), "Flatten the batch dimensions.")
    if proxies.shape != z.shape:
        remedy = "Pass `loss.class_proxies(z, labels)` of a proxy loss, or `proxies[labels]`."
        must = f"hold the proxy of every sample's class, shape {tuple(z.shape)}"
        raise argument_error("proxies", must, tuple(proxies.shape), remedy)


def _check_flow(flow: nn.Module, dim: int) -> nn.Module:
    """``flow``, if it is a lazy distribution over ``dim`` features that takes ``dim`` context features."""
    if not isinstance(flow, LazyDistribution):
        raise argument_error("flow", "be a zuko.lazy.LazyDistribution or None", type(flow).__name__, kind=TypeError)
    point = next(flow.parameters(), torch.zeros(())).new_ones(1, dim)
    must = f"be a distribution of {dim} features given {dim} context features"
    remedy = f"For example zuko.flows.NSF({dim}, {dim})."
    try:
        values = flow_nll(point, point, flow)
    except (RuntimeError, ValueError) as error:
        raise argument_error("flow", must, f"one that fails on them: {error}", remedy) from error
    if values.shape != (1,):
        raise argument_error("flow", must, f"values of shape {tuple(values.shape)}", remedy)
    return flow
