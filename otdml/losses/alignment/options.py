"""The hyper-parameters of an alignment loss."""

import math
from dataclasses import dataclass

import torch

from otdml._checks import (
    argument_error,
    check_boolean,
    check_choice,
    check_fields,
    check_fraction,
    check_in_range,
    check_integer,
    check_nonnegative,
    check_positive,
)
from otdml.ot import engines
from otdml.ot._problem import Penalties, check_rho, given_rho

__all__ = ["Marginals", "Options"]

Marginals = str | float | tuple[float | None, float | None]

MARGINALS = ("rows", "balanced", "none")
DIVERGENCES = ("kl", "rince", "kl+rince")
# Engines that take forbidden pairs and any number of features.
BACKENDS = tuple(name for name in engines.BACKENDS if name not in ("keops", "multiscale"))
FORMS = ("one-way", "two-way", "joint")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked hyper-parameters of an alignment loss; see :func:`~otdml.losses.contrastive_alignment`."""

    marginals: Marginals
    divergence: str
    q: float
    lam: float
    weight: float
    form: str
    gather: bool
    tol: float
    max_iter: int
    backend: str

    def __post_init__(self) -> None:
        if isinstance(self.marginals, str):
            check_choice("marginals", self.marginals, MARGINALS)
        else:
            object.__setattr__(self, "marginals", given_rho(self.marginals, "marginals"))
        check_choice("divergence", self.divergence, DIVERGENCES)
        if self.marginals == "none" and self.divergence != "kl":
            raise argument_error("divergence", "be 'kl' where `marginals` is 'none'", repr(self.divergence))
        check_fields(self, q=check_fraction, lam=check_positive, weight=check_nonnegative)
        check_fields(self, tol=check_positive, max_iter=check_integer)
        check_choice("form", self.form, FORMS)
        check_boolean("gather", self.gather)
        check_choice("backend", self.backend, BACKENDS)

    @property
    def penalties(self) -> Penalties | None:
        """The penalties of both marginals, or None where ``marginals`` is a name."""
        return None if isinstance(self.marginals, str) else check_rho(self.marginals)

    @property
    def constant_potentials(self) -> bool:
        """Whether potentials have no part in the first derivative of the divergence."""
        return isinstance(self.marginals, str) and self.divergence == "kl"

    @property
    def shares_logits(self) -> bool:
        """Whether both directions of a two-way loss can be had from the same logits."""
        return self.constant_potentials and self.marginals != "none" and self.backend != "dense"

    def check_temperature(self, eps: float, dtype: torch.dtype = torch.float32) -> float:
        """``eps``, if the powers of the divergence can be represented."""
        dtype = torch.promote_types(dtype, torch.float32)
        eps = check_in_range("eps", eps, dtype)
        # The robust bound takes exponentials without a shift; a margin is left for their sum and for potentials.
        largest = math.log(torch.finfo(dtype).max) - 10
        if "rince" in self.divergence and self.q / eps > largest:
            got = f"{self.q / eps:.3g} times, where exp(q / eps) overflows"
            raise argument_error("q", f"be at most {largest:.0f} times `eps`", got, "Lower `q`, or raise `eps`.")
        return eps
