"""The literature's names for configurations of contrastive alignment."""

from torch import Tensor

from otdml._arguments import check_choice
from otdml._checks import check_nonnegative
from otdml.losses.alignment.loss import EMPTY, ContrastiveAlignment, contrast_within
from otdml.losses.alignment.pairs import Target

__all__ = ["BYOL", "GCAINCE", "GCARINCE", "GCAUOT", "RINCE", "InfoNCE", "SupCon"]


class InfoNCE(ContrastiveAlignment):
    r"""InfoNCE, cross-entropy of the matching view among all :cite:p:`oord:18`.

    With ``form="joint"`` it is the NT-Xent loss of SimCLR :cite:p:`chen:20`, with ``form="two-way"`` and a learnable
    temperature the loss of CLIP :cite:p:`radford:21`. Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> InfoNCE(eps=1.0)(torch.eye(2), torch.eye(2))  # log(e + 1) - 1
        tensor(0.3133)
    """

    def __init__(
        self, *, eps: float = 0.5, learnable: bool = False, form: str = "one-way", gather: bool = False
    ) -> None:
        super().__init__(eps=eps, learnable=learnable, form=form, gather=gather)


class SupCon(ContrastiveAlignment):
    r"""Supervised contrastive loss: all pairs of one label are positives :cite:p:`khosla:20`.

    Call it with one batch of embeddings, shape (..., n, d), and its labels, shape (n,): each sample is an anchor
    against all others. Or call it with two views of the batch and the labels. An anchor without positives has no part
    in the mean. Arguments are those of :class:`ContrastiveAlignment`.

    Args:
        eps: Temperature, or its first value if it is learnable.
        learnable: Whether the temperature is learnt.
        form: Of two views: one-way, two-way or joint.
        gather: Whether to take the batches of all processes as one.
        empty: What one batch without any positive pair is: ``"error"``, or ``"zero"`` with a zero gradient. With
            ``"zero-one-sided"`` that holds of a batch without any negative pair, too, as in pytorch-metric-learning; by
            the formula it has a value, of :math:`\log(n - 1)` or more, and a gradient that makes similarities equal.

    Example:
        >>> import torch
        >>> SupCon(eps=1.0)(torch.eye(3), torch.tensor([0, 0, 1]))  # log(1 + 1)
        tensor(0.6931)
        >>> SupCon(eps=1.0)(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))  # log(e + 2) - 1 / 3
        tensor(1.2181)
    """

    def __init__(
        self,
        *,
        eps: float = 0.1,
        learnable: bool = False,
        form: str = "joint",
        gather: bool = False,
        empty: str = "error",
    ) -> None:
        super().__init__(eps=eps, learnable=learnable, form=form, gather=gather)
        self.empty = check_choice("empty", empty, EMPTY)

    def forward(  # type: ignore[override]
        self, z1: Tensor, z2: Tensor, target: Target = None, ids: Tensor | None = None
    ) -> Tensor:
        """The loss of two views and their labels, or of one batch and its labels in place of the second view."""
        if target is None and (not isinstance(z2, Tensor) or not z2.is_floating_point()):
            return contrast_within(z1, z2, self.eps, self.options, empty=self.empty)
        return super().forward(z1, z2, target, ids)


class RINCE(ContrastiveAlignment):
    r"""Robust InfoNCE, a bound that bears false positive pairs :cite:p:`chuang:22`.

    Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> RINCE(eps=1.0, q=1.0, lam=0.5)(torch.eye(2), torch.eye(2))  # (e + 1) / 2 - e
        tensor(-0.8591)
    """

    def __init__(
        self, *, eps: float = 0.5, q: float = 0.5, lam: float = 0.01, form: str = "one-way", gather: bool = False
    ) -> None:
        super().__init__(eps=eps, divergence="rince", q=q, lam=lam, form=form, gather=gather)


class GCAINCE(ContrastiveAlignment):
    r"""InfoNCE of the transport plan: rows and columns are normalised :cite:p:`chen:24`; inverse OT :cite:p:`shi:23`.

    Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> GCAINCE(eps=1.0)(torch.eye(2), torch.eye(2))  # symmetric, so it is InfoNCE: log(e + 1) - 1
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        eps: float = 0.5,
        learnable: bool = False,
        form: str = "one-way",
        gather: bool = False,
        tol: float = 1e-3,
    ) -> None:
        super().__init__(eps=eps, learnable=learnable, marginals="balanced", form=form, gather=gather, tol=tol)


class GCARINCE(ContrastiveAlignment):
    r"""Robust InfoNCE of the transport plan :cite:p:`chen:24`.

    Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> GCARINCE(eps=1.0, q=1.0, lam=0.5)(torch.eye(2), torch.eye(2))  # (e + 1) / 2 - e
        tensor(-0.8591)
    """

    def __init__(
        self,
        *,
        eps: float = 0.5,
        q: float = 0.5,
        lam: float = 0.01,
        form: str = "one-way",
        gather: bool = False,
        tol: float = 1e-3,
    ) -> None:
        super().__init__(
            eps=eps, marginals="balanced", divergence="rince", q=q, lam=lam, form=form, gather=gather, tol=tol
        )


class GCAUOT(ContrastiveAlignment):
    r"""InfoNCE of the unbalanced transport plan, plus ``weight`` times its robust bound :cite:p:`chen:24`.

    ``marginals`` is their penalty; with ``weight=0`` the loss goes from InfoNCE to :class:`GCAINCE` as it
    grows. The other arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> GCAUOT(eps=1.0, weight=0.0)(torch.eye(2), torch.eye(2))  # symmetric, so it is InfoNCE: log(e + 1) - 1
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        marginals: float | tuple[float | None, float | None] = 1.0,
        eps: float = 0.5,
        weight: float = 1.0,
        q: float = 0.5,
        lam: float = 0.01,
        form: str = "one-way",
        gather: bool = False,
        tol: float = 1e-3,
    ) -> None:
        divergence = "kl+rince" if check_nonnegative("weight", weight) else "kl"
        super().__init__(
            eps=eps,
            marginals=marginals,
            divergence=divergence,
            q=q,
            lam=lam,
            weight=weight,
            form=form,
            gather=gather,
            tol=tol,
        )


class BYOL(ContrastiveAlignment):
    r"""Attraction alone, the mean squared distance of the views' directions :cite:p:`grill:20`.

    Without a predictor and a target network it has the trivial minimum at which all embeddings agree.

    Example:
        >>> import torch
        >>> BYOL()(torch.eye(2), torch.eye(2).flip(0))  # orthogonal views: 2
        tensor(2.)
    """

    def __init__(self) -> None:
        # 2 (1 - cos) is the squared distance of unit vectors.
        super().__init__(eps=0.5, marginals="none")
