r"""Non-isotropy regularisation: a conditional flow that models how samples lie around their class proxy."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import functional_call
from zuko.distributions import NormalizingFlow
from zuko.lazy import LazyDistribution

from otdml._checks import argument_error, check_boolean, check_choice, check_integer, check_points, check_positive
from otdml._precision import full_precision
from otdml.dml.glow import reference_flow
from otdml.sphere import unit

__all__ = ["NIR", "REFERENCE_PROXY_WEIGHTS", "flow_nll"]

OBJECTIVES = "nll", "exp_nll"

REFERENCE_PROXY_WEIGHTS: Mapping[str, float] = MappingProxyType({"cub": 0.0075, "cars": 0.01, "sop": 0.3})
"""The factor of the proxy loss in the released code, whose total is ``factor * proxy_loss + exp_nll``.

Its proxy loss is proxy-anchor with the attraction averaged over samples: that of this library where all classes of a
batch have the same number of samples.
"""


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
    cap = check_positive("cap", cap)
    _check_rows(z, proxies)
    energy, log_det = _latent(flow, unit(z), unit(proxies))
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
        self.detach_embeddings = check_boolean("detach_embeddings", detach_embeddings)
        self.detach_proxies = check_boolean("detach_proxies", detach_proxies)
        if flow is not None and generator is not None:
            raise argument_error(
                "generator", "be None where a `flow` is given", "both", "Seed the flow when it is made."
            )
        self.flow = reference_flow(dim, generator=generator) if flow is None else _check_flow(flow, dim)

    def extra_repr(self) -> str:
        options = [name for name in ("detach_embeddings", "detach_proxies") if getattr(self, name)]
        return ", ".join([f"{self.dim}, objective={self.objective!r}, cap={self.cap:g}", *options])

    def forward(self, z: Tensor, proxies: Tensor) -> Tensor:
        if check_points("z", z).shape[-1] != self.dim:
            raise argument_error("z", f"have shape (n, {self.dim})", tuple(z.shape))
        z = z.detach() if self.detach_embeddings else z
        proxies = proxies.detach() if self.detach_proxies else proxies
        return flow_nll(z, proxies, self.flow, objective=self.objective, cap=self.cap)


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
            # Element-wise transforms return one log-determinant per feature.
            base, log_det = base.base, log_det.reshape(len(z), -1).sum(dim=-1)
        return -base.log_prob(u) - 0.5 * math.log(2 * math.pi) * z.shape[-1], log_det


def _latent(flow: nn.Module, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """``_Latent`` in the wider dtype of points and parameters."""
    parameter = next(flow.parameters(), z)
    dtype = torch.promote_types(z.dtype, parameter.dtype)
    latent, points = _Latent(flow), (z.to(dtype), condition.to(dtype))
    if parameter.dtype == dtype:
        return latent(*points)
    # The flow may be in half precision, or the points in float64: parameters keep their values, arithmetic is in the
    # wider type.
    state = {**dict(latent.named_parameters()), **dict(latent.named_buffers())}
    return functional_call(latent, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, points)


def _capped_exp(x: Tensor, cap: float) -> Tensor:
    """``exp(x)`` up to ``cap``, and its tangent at ``cap`` beyond."""
    low = x.clamp(max=cap)
    return low.exp() * (1 + x - low)


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
