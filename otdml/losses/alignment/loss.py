"""Generalized contrastive alignment."""

import math

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_boolean, check_labels, check_points, check_positive, check_views
from otdml._derivatives import once
from otdml._precision import full_precision
from otdml._transforms import called, transforming
from otdml.distributed import gather as gather_rows
from otdml.distributed import local_rows, total
from otdml.losses.alignment.logits import NO_SECOND
from otdml.losses.alignment.options import Marginals, Options
from otdml.losses.alignment.pairs import DomainTarget, Labels, Pairing, Samples, Target, as_target
from otdml.losses.alignment.problem import Alignment, factors
from otdml.losses.alignment.target import target_plan

__all__ = ["EMPTY", "ContrastiveAlignment", "contrast_within", "contrastive_alignment"]

# What a batch without positive pairs is to be: an error, zero, or zero just as one without negative pairs.
EMPTY = ("error", "zero", "zero-one-sided")

# Rows of this process, of the first and of the second set, or None for all.
Anchors = tuple[Tensor | None, Tensor | None]


def contrastive_alignment(
    z1: Tensor,
    z2: Tensor,
    target: Target = None,
    *,
    eps: Tensor | float = 0.5,
    marginals: Marginals = "rows",
    divergence: str = "kl",
    q: float = 0.5,
    lam: float = 0.01,
    weight: float = 1.0,
    form: str = "one-way",
    ids: Labels | None = None,
    gather: bool = False,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
) -> Tensor:
    r"""Contrastive loss as the divergence of a transport plan of the similarities from a target plan.

    .. math::
        -\sum_{ij} T_{ij} \log \frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}}, \qquad
        s_{ij} = \frac{\cos(z_i, z'_j)}{\varepsilon} + g_j

    T is the target of mass one (:math:`I / n` for positive pairs). Under ``marginals="rows"`` :math:`g = 0`: InfoNCE.
    Else g is the column potential of the plan P that is nearest to :math:`e^{\cos / \varepsilon}` in the
    Kullback-Leibler sense among those with the marginals of T (``"balanced"``), or with these penalised by
    :math:`\rho \, \mathrm{KL}`; this family is that of :cite:t:`chen:24`, with inverse optimal transport
    :cite:p:`shi:23` as ``"balanced"``. As :math:`\rho` goes from 0 to infinity, the loss goes from InfoNCE to
    ``"balanced"``. The divergence ``"rince"`` is a bound that is robust to false positives :cite:p:`chuang:22`,

    .. math:: \sum_{ij} T_{ij} \Bigl( \frac{(\lambda \sum_k e^{s_{ik}})^q}{q} - \frac{e^{q s_{ij}}}{q} \Bigr)

    which tends to InfoNCE + :math:`\log \lambda` as :math:`q \to 0`. It is taken of :math:`e^s` as it is, so its
    scale grows as :math:`e^{q / \varepsilon}`, and the learning rate has to follow; g has mean zero under the column
    sums of T.

    Choose ``"rows"`` where batches are large and clean; ``"balanced"`` where some candidates attract every anchor, or
    classes are uneven; a penalty between 0.1 and 10 for a mixture; ``"rince"`` where views are corrupted. The loss is
    smooth away from zero vectors. It costs O(n m d) in memory O((n + m) d): the matrix of similarities is never held
    unless it is small, or a ``target`` of its size is passed, or Sinkhorn's iterations run on a kernel of up to
    256 MiB (``backend="streamed"`` forbids that). Gradients are those of the converged plan, and resolved to
    ``tol`` as it is: lower it where the plan is nearer to its target than that. Second derivatives exist for
    ``"none"``, and for ``"rows"`` with ``backend="dense"`` or where a small matrix is kept; elsewhere they raise an
    error.

    Args:
        z1: Anchors, shape (..., n, d), of any length: their directions are what counts.
        z2: Candidates, shape (..., m, d). Row i is the other view of row i of ``z1``, unless a target says otherwise.
        target: Which pairs should match. None: row i and row i. Integers of shape (n,), labels or instances: all
            pairs of one label, each anchor's share divided among them; or a pair of those, shapes (n,) and (m,).
            Booleans of shape (n, m): likewise the pairs marked True. Numbers of shape (n, m), dense or sparse: the
            plan up to a factor. Or a :class:`DomainTarget`. Anchors without a positive have no part in the mean.
        eps: Temperature in units of the cosine, a number or a tensor of one element, which may require a gradient.
        marginals: ``"rows"``; ``"balanced"``; a penalty :math:`\rho` of both marginals, or a pair of them, in units of
            the divergence (that is, of eps times those of :func:`otdml.ot.sinkhorn`), None being a constraint; or
            ``"none"``, which leaves :math:`\sum T_{ij} (1 - \cos) / \varepsilon`, the attraction alone, as in BYOL
            :cite:p:`grill:20`.
        divergence: ``"kl"``, ``"rince"``, or ``"kl+rince"``: the first plus ``weight`` times the second.
        q: Robustness in (0, 1]: the larger, the less force on positive pairs of small similarity.
        lam: Weight :math:`\lambda` of the repulsion in ``"rince"``.
        weight: Of the second term of ``"kl+rince"``.
        form: ``"one-way"``: ``z1`` against ``z2``; ``"two-way"``: the mean of that and ``z2`` against ``z1``, as in
            CLIP; ``"joint"``: both views in one batch of 2 n rows, each an anchor against all others but itself, as
            in SimCLR. There a matrix target has shape (2 n, 2 n), first views first, and its diagonal is left out.
        ids: Instance of each sample, integers of shape (n,), or a pair of them: pairs of one instance that are no
            positives are false negatives, and are left out.
        gather: Take the batches of all processes as one, see :func:`otdml.distributed.gather`. A matrix target then
            has the rows of this process and the columns of all. Value and gradient are those of one process.
        tol: L1 error of the marginals at which Sinkhorn's algorithm stops.
        max_iter: Most iterations; a warning says if they were not enough.
        backend: ``"dense"``; ``"streamed"``; ``"triton"`` and its roundings, on a GPU, as in :func:`otdml.ot.sinkhorn`;
            or ``"auto"``.

    Returns:
        The mean over anchors, weighted by the row sums of the target; one value per batch element, shape (...).

    Raises:
        ValueError: If shapes do not fit, an option is out of range, or there is no positive pair.
        TypeError: If points are no floating-point tensors, or labels no integers.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> contrastive_alignment(z, z, eps=1.0)  # log(e + 1) - 1
        tensor(0.3133)
    """
    options = Options(
        marginals=marginals,
        divergence=divergence,
        q=q,
        lam=lam,
        weight=weight,
        form=form,
        gather=gather,
        tol=tol,
        max_iter=max_iter,
        backend=backend,
    )
    dtype = check_points("z1", z1).dtype
    eps = eps if isinstance(eps, Tensor) and eps.is_floating_point() else options.check_temperature(eps, dtype)  # type: ignore[arg-type]
    return _checked_alignment(z1, z2, target, ids, eps, options)


def _checked_alignment(
    z1: Tensor, z2: Tensor, target: Target, ids: Labels | None, eps: Tensor | float, options: Options
) -> Tensor:
    target = as_target(target)
    if transforming(z1, z2, eps if isinstance(eps, Tensor) else None):
        return _transformed_alignment(z1, z2, target, ids, eps, options)
    paired = options.form == "joint" or target is None or isinstance(target, DomainTarget) or isinstance(ids, Tensor)
    check_views(z1, z2, paired=paired or (isinstance(target, Tensor) and target.ndim == 1))
    samples = Samples.checked(target, ids, z1.shape[-2], z2.shape[-2])
    if isinstance(eps, Tensor):
        if eps.numel() != 1:
            raise argument_error("eps", "be a number or a tensor of one element", f"shape {tuple(eps.shape)}")
        if not float(eps.detach()) > 0:
            raise argument_error("eps", "be positive", f"{float(eps.detach()):g}", "Learn its logarithm.")
        # Without dimensions, which would broadcast those of the points and of the value.
        eps = eps.reshape(())
    if z1.ndim == 2:
        return _alignment(z1, z2, eps, samples, options)
    views = (z.reshape(-1, *z.shape[-2:]) for z in (z1, z2))
    values = [_alignment(first, second, eps, samples, options) for first, second in zip(*views, strict=True)]
    return _stacked(values, eps, z1, z2)


def _transformed_alignment(
    z1: Tensor, z2: Tensor, target: Target, ids: Labels | None, eps: Tensor | float, options: Options
) -> Tensor:
    """The loss under a transform of ``torch.func`` or in forward mode, in the two sets only."""
    _check_constant(eps, target)

    def value(z1: Tensor, z2: Tensor) -> Tensor:
        return _checked_alignment(z1, z2, target, ids, eps, options)

    return called(value, {"z1": z1, "z2": z2})


def _check_constant(*others: object) -> None:
    """Raise if the temperature, the target or the labels are under a transform, or have a gradient."""
    tensors = (t for t in others if isinstance(t, Tensor))
    if any(
        torch._C._functorch.is_functorch_wrapped_tensor(t) or (t.requires_grad and torch.is_grad_enabled())
        for t in tensors
    ):
        raise RuntimeError(
            "contrastive_alignment has no transforms of torch.func, and no derivatives in forward mode, in `eps` and "
            "`target`. Pass a number as `eps` and a target without gradient, or use `torch.autograd.grad` for `eps`."
        )


@full_precision
def _alignment(z1: Tensor, z2: Tensor, eps: Tensor | float, samples: Samples, options: Options) -> Tensor:
    anchors: Anchors = (None, None)
    both = options.form == "joint"
    if options.gather:
        anchors = _numbers(len(z1), z1.device), _numbers(len(z2), z2.device)
        z1, z2 = gather_rows(z1), gather_rows(z2)
        anchors = (torch.cat([anchors[0], anchors[1] + len(z1)]), None) if both else anchors
    x, y = factors(z1, z2, eps, joint=both)
    samples = samples.aligned(anchors[0], (len(x), len(y)), joint=both)
    first = _problem(x, y, eps, samples, options)
    if options.form == "two-way":
        second = _problem(y, x, eps, samples.swapped(), options)
        transposed = samples.reversible and not isinstance(options.marginals, (tuple, list))
        value = _mean_of_both(first, second, anchors, options, transposed=transposed)
    else:
        value = first.part(anchors[0]).value(first.potentials(options)[1], options)
    value = value if options.marginals in ("rows", "none") else once(value, NO_SECOND)
    return total(value) if options.gather else value


def contrast_within(
    z: Tensor, labels: Tensor, eps: Tensor | float, options: Options, *, empty: str = "error"
) -> Tensor:
    """The loss of one batch, each sample an anchor against all others, those of its label being positives.

    Args:
        z: Shape (..., n, d).
        labels: Shape (n,).
        eps: Temperature.
        options: All other options.
        empty: One of ``EMPTY``: what a batch without positive pairs is, or one without pairs of either kind.
    """
    if transforming(z, eps if isinstance(eps, Tensor) else None):
        _check_constant(eps, labels)
        return called(lambda z: contrast_within(z, labels, eps, options, empty=empty), {"z": z})
    labels = check_labels("labels", labels, check_points("z", z).shape[-2])
    if z.ndim == 2:
        return _within(z, labels, eps, options, empty)
    values = [_within(cloud, labels, eps, options, empty) for cloud in z.reshape(-1, *z.shape[-2:])]
    return _stacked(values, eps, z)


@full_precision
def _stacked(values: list[Tensor], eps: Tensor | float, *views: Tensor) -> Tensor:
    """The values of a batch, shape (...); of no problems, no values, with a graph."""
    if not values:
        return views[0].sum((-2, -1)) + _zero_of(*views, eps)
    return torch.stack(values).reshape(views[0].shape[:-2])


@full_precision
def _within(z: Tensor, labels: Tensor, eps: Tensor | float, options: Options, empty: str) -> Tensor:
    anchors = None
    if options.gather:
        anchors = _numbers(len(z), z.device)
        z, labels = gather_rows(z), gather_rows(labels.to(z.device))
    if empty != "error":
        classes = len(labels.unique())
        if classes == len(labels) or (classes == 1 and empty == "zero-one-sided"):
            return _zero_of(z, eps)
    x, _ = factors(z, z[:0], eps, joint=True)
    pairing = Pairing.within(len(x), x.device)
    problem = Alignment(x, x, eps, pairing, target_plan((labels, labels), pairing, x), None, options.backend)
    value = problem.part(anchors).value(None, options)
    return total(value) if options.gather else value


def _zero_of(*sources: Tensor | float) -> Tensor:
    """A zero whose gradient in each of the tensors is there, of zeros: ``DistributedDataParallel`` waits for it."""
    return torch.stack([(0 * t).sum() for t in sources if isinstance(t, Tensor)]).sum()


def _numbers(n: int, device: torch.device) -> Tensor:
    """The numbers of this process's rows among those of all processes."""
    rows = local_rows(n, device)
    return torch.arange(rows.start, rows.stop, device=device)


def _problem(x: Tensor, y: Tensor, eps: Tensor | float, samples: Samples, options: Options) -> Alignment:
    n, m = len(x), len(y)
    pairing = Pairing.joint(n // 2, x.device) if options.form == "joint" else Pairing.one_way(n, m, x.device)
    return Alignment(x, y, eps, pairing, target_plan(samples.target, pairing, x), samples.ids, options.backend)


def _mean_of_both(
    first: Alignment, second: Alignment, anchors: Anchors, options: Options, *, transposed: bool
) -> Tensor:
    """The mean of the values from one side and from the other, whose plans may be each other's transposes."""
    backward, forward = first.potentials(options, both=transposed)
    if not transposed:
        backward = second.potentials(options)[1]
    value = None
    if anchors[0] is None and options.shares_logits:
        value = first.mutual_value(second, (backward, forward))
    if value is None:
        parts = (first.part(anchors[0]), forward), (second.part(anchors[1]), backward)
        value = torch.stack([part.value(h, options) for part, h in parts]).sum()
    return value / 2


class ContrastiveAlignment(nn.Module):
    """Module form of :func:`contrastive_alignment`.

    Args:
        eps: Temperature, or its first value if it is learnable.
        learnable: Whether the temperature is learnt, through the parameter ``log_eps``.
        marginals: As in :func:`contrastive_alignment`, like all that follow.
        divergence: The divergence.
        q: Robustness.
        lam: Weight of the repulsion.
        weight: Of the second term of ``"kl+rince"``.
        form: One-way, two-way or joint.
        gather: Whether to take the batches of all processes as one.
        tol: Tolerance of the marginals.
        max_iter: Most iterations.
        backend: How matrices are treated.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> ContrastiveAlignment(eps=1.0)(z, z)  # log(e + 1) - 1
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        eps: float = 0.5,
        learnable: bool = False,
        marginals: Marginals = "rows",
        divergence: str = "kl",
        q: float = 0.5,
        lam: float = 0.01,
        weight: float = 1.0,
        form: str = "one-way",
        gather: bool = False,
        tol: float = 1e-3,
        max_iter: int = 2000,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.options = Options(
            marginals=marginals,
            divergence=divergence,
            q=q,
            lam=lam,
            weight=weight,
            form=form,
            gather=gather,
            tol=tol,
            max_iter=max_iter,
            backend=backend,
        )
        self.options.check_temperature(eps)
        self.fixed_eps = check_positive("eps", eps)
        # The logarithm keeps the temperature positive, and gives a step the same relative size at every temperature.
        learnt = check_boolean("learnable", learnable)
        self.log_eps = nn.Parameter(torch.tensor(math.log(self.fixed_eps))) if learnt else None

    @property
    def eps(self) -> Tensor | float:
        """The temperature, with its gradient if it is learnable."""
        return self.fixed_eps if self.log_eps is None else self.log_eps.exp()

    def extra_repr(self) -> str:
        o = self.options
        shown = f"eps={float(self.eps):.3g}, marginals={o.marginals!r}, divergence={o.divergence!r}, form={o.form!r}"
        if "rince" in o.divergence:
            shown += f", q={o.q:g}, lam={o.lam:g}"
        return shown + (f", weight={o.weight:g}" if "+" in o.divergence else "") + (", gather=True" if o.gather else "")

    def forward(self, z1: Tensor, z2: Tensor, target: Target = None, ids: Labels | None = None) -> Tensor:
        return _checked_alignment(z1, z2, target, ids, self.eps, self.options)
