"""The literature's names for configurations of contrastive alignment."""

from otdml.losses.alignment.loss import ContrastiveAlignment

__all__ = ["BYOL", "GCAINCE", "GCARINCE", "GCAUOT", "RINCE", "InfoNCE", "SupCon"]


def InfoNCE(
    *, eps: float = 0.5, learnable: bool = False, form: str = "one-way", gather: bool = False
) -> ContrastiveAlignment:
    r"""InfoNCE, cross-entropy of the matching view among all :cite:p:`oord:18`.

    With ``form="joint"`` it is the NT-Xent loss of SimCLR :cite:p:`chen:20`, with ``form="two-way"`` and a learnable
    temperature the loss of CLIP :cite:p:`radford:21`. Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> InfoNCE(eps=1.0)(torch.eye(2), torch.eye(2))  # log(e + 1) - 1
        tensor(0.3133)
    """
    return ContrastiveAlignment(eps=eps, learnable=learnable, form=form, gather=gather)


def SupCon(
    *, eps: float = 0.1, learnable: bool = False, form: str = "joint", gather: bool = False
) -> ContrastiveAlignment:
    r"""Supervised contrastive loss: all pairs of one label are positives :cite:p:`khosla:20`.

    Call it with the labels as ``target``. Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> SupCon(eps=1.0)(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))  # log(e + 2) - 1 / 3
        tensor(1.2181)
    """
    return ContrastiveAlignment(eps=eps, learnable=learnable, form=form, gather=gather)


def RINCE(
    *, eps: float = 0.5, q: float = 0.5, lam: float = 0.01, form: str = "one-way", gather: bool = False
) -> ContrastiveAlignment:
    r"""Robust InfoNCE, a bound that bears false positive pairs :cite:p:`chuang:22`.

    Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> RINCE(eps=1.0, q=1.0, lam=0.5)(torch.eye(2), torch.eye(2))  # (e + 1) / 2 - e
        tensor(-0.8591)
    """
    return ContrastiveAlignment(eps=eps, divergence="rince", q=q, lam=lam, form=form, gather=gather)


def GCAINCE(
    *, eps: float = 0.5, learnable: bool = False, form: str = "one-way", gather: bool = False, tol: float = 1e-3
) -> ContrastiveAlignment:
    r"""InfoNCE of the transport plan: rows and columns are normalised :cite:p:`chen:24`; inverse OT :cite:p:`shi:23`.

    Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> GCAINCE(eps=1.0)(torch.eye(2), torch.eye(2))  # symmetric, so it is InfoNCE: log(e + 1) - 1
        tensor(0.3133)
    """
    return ContrastiveAlignment(eps=eps, learnable=learnable, marginals="balanced", form=form, gather=gather, tol=tol)


def GCARINCE(
    *,
    eps: float = 0.5,
    q: float = 0.5,
    lam: float = 0.01,
    form: str = "one-way",
    gather: bool = False,
    tol: float = 1e-3,
) -> ContrastiveAlignment:
    r"""Robust InfoNCE of the transport plan :cite:p:`chen:24`.

    Arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> GCARINCE(eps=1.0, q=1.0, lam=0.5)(torch.eye(2), torch.eye(2))  # (e + 1) / 2 - e
        tensor(-0.8591)
    """
    return ContrastiveAlignment(
        eps=eps, marginals="balanced", divergence="rince", q=q, lam=lam, form=form, gather=gather, tol=tol
    )


def GCAUOT(
    *,
    rho: float | tuple[float | None, float | None] = 1.0,
    eps: float = 0.5,
    weight: float = 1.0,
    q: float = 0.5,
    lam: float = 0.01,
    form: str = "one-way",
    gather: bool = False,
    tol: float = 1e-3,
) -> ContrastiveAlignment:
    r"""InfoNCE of the unbalanced transport plan, plus ``weight`` times its robust bound :cite:p:`chen:24`.

    ``rho`` is the penalty of the marginals; with ``weight=0`` the loss goes from InfoNCE to :func:`GCAINCE` as it
    grows. The other arguments are those of :class:`ContrastiveAlignment`.

    Example:
        >>> import torch
        >>> GCAUOT(eps=1.0, weight=0.0)(torch.eye(2), torch.eye(2))  # symmetric, so it is InfoNCE: log(e + 1) - 1
        tensor(0.3133)
    """
    divergence = "kl+rince" if weight else "kl"
    return ContrastiveAlignment(
        eps=eps,
        marginals=rho,
        divergence=divergence,
        q=q,
        lam=lam,
        weight=weight,
        form=form,
        gather=gather,
        tol=tol,
    )


def BYOL() -> ContrastiveAlignment:
    r"""Attraction alone, the mean squared distance of the views' directions :cite:p:`grill:20`.

    Without a predictor and a target network it has the trivial minimum at which all embeddings agree.

    Example:
        >>> import torch
        >>> BYOL()(torch.eye(2), torch.eye(2).flip(0))  # orthogonal views: 2
        tensor(2.)
    """
    # 2 (1 - cos) is the squared distance of unit vectors.
    return ContrastiveAlignment(eps=0.5, marginals="none")
