"""Optimal transport from a measure that can be sampled to finitely many points."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_generator, check_integer, check_matrix, device_of_draws
from otdml._derivatives import once, refuse_transforms
from otdml._precision import full_arithmetic, full_precision
from otdml.costs import Cost, cost_matrix, default_temperature, ground
from otdml.measures import broadcast_measures, weighted, weights
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._sinkhorn import entropic

__all__ = ["SemidiscreteResult", "semidiscrete"]

Sampler = Callable[[int], Tensor]

_NO_SECOND = "semidiscrete has no second derivatives. Take `sinkhorn` of one sample, or leave out `create_graph`."


@dataclass(frozen=True)
class SemidiscreteResult:
    r"""A semi-discrete transport problem's solution.

    Attributes:
        value: Unbiased estimate of the dual objective, shape (); it carries the gradient in y, b and the samples.
        g: Potential of the points, shape (m,), in the units of the cost, with :math:`\langle b, g \rangle = 0`.
        mass: Share of the samples in each point's cell, shape (m,): b, up to the error of the sample.
        marginal_error: L1 distance between ``mass`` and b.
        y: The points, shape (m, d).
        cost: The ground cost.
    """

    value: Tensor
    g: Tensor
    mass: Tensor
    marginal_error: Tensor
    y: Tensor
    cost: Cost

    def cells(self, x: Tensor) -> Tensor:
        """The index of the point to which each of ``x``, shape (n, d), is sent, shape (n,).

        This map is optimal between the source and the points. Differentiate ``y[cells(x)]`` for its gradient in y.
        """
        check_matrix("x", x)
        with full_arithmetic(x.device.type):
            return _cells(x.to(self.g), self.y.detach(), self.cost, self.g)


@full_precision
def semidiscrete(
    x: Sampler | Tensor,
    y: Tensor,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    n_samples: int = 4096,
    n_steps: int = 200,
    generator: torch.Generator | None = None,
) -> SemidiscreteResult:
    r"""Optimal transport from a measure, given by samples, to weighted points, without regularisation.

    .. math::
        \max_g \; \mathbb{E}_{x \sim \alpha} \min_j \left( c(x, y_j) - g_j \right) + \langle b, g \rangle

    whose optimum splits the space into Laguerre cells, of which the j-th has the mass :math:`b_j` and is sent to
    :math:`y_j`. Solved by stochastic gradients that are averaged :cite:p:`genevay:16`, from the potentials of an
    entropic problem on one sample; their error falls as the root of the number of all samples. Value and gradient are
    those of one further sample: the gradient in y_j is that of the mean cost over its cell, in b it is g, and in a
    sampled point it is that of its cost, which reaches the points of a tensor ``x``, or parameters by which a function
    draws them. There are no second derivatives.

    Args:
        x: Source: a function of a number n that draws n points, shape (n, d); or points, shape (N, d), from which
            samples are drawn.
        y: Points, shape (m, d).
        b: Weights of the points, shape (m,), of mass one. Uniform if None.
        cost: Ground cost, see :func:`~otdml.costs.ground`.
        n_samples: Points per step. Memory and time of a step are ``n_samples`` m.
        n_steps: Steps of stochastic gradients.
        generator: Of the samples, where ``x`` is a tensor.

    Returns:
        The result.

    Raises:
        ValueError: If shapes do not fit, or the mass of b is not one.

    Example:
        >>> import torch
        >>> x = torch.linspace(0, 1, 1001)[:, None]  # The uniform measure on the unit interval
        >>> y, b = torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75])
        >>> result = semidiscrete(x, y, b, generator=torch.Generator().manual_seed(0))
        >>> result.cells(torch.tensor([[0.2], [0.3]]))  # A quarter of the mass goes to the first point.
        tensor([0, 1])
    """
    y, b = weighted(y, b, name="y", weight="b")
    refuse_transforms("semidiscrete", y, b, x if isinstance(x, Tensor) else None)
    if y.ndim != 2:
        raise argument_error("y", "have shape (m, d)", tuple(y.shape))
    check_generator(generator)
    y, b = once(y, _NO_SECOND), once(b, _NO_SECOND)
    if not abs(float(b.detach().sum()) - 1) <= 1e-3:
        raise argument_error("b", "have mass one", f"{float(b.detach().sum()):g}", "Divide it by its sum.")
    if isinstance(x, Tensor):
        check_matrix("x", x)
    elif not callable(x):
        must = "be points in a torch.Tensor, or a function of a number that draws as many"
        raise argument_error("x", must, type(x).__name__, "Convert an array with `torch.as_tensor`.", TypeError)
    samples = _samples(x, y.detach(), check_integer("n_samples", n_samples), generator)
    with torch.no_grad():
        g = _potential(samples, y, b, cost, check_integer("n_steps", n_steps))
    last = once(next(samples), _NO_SECOND)
    cells = _cells(last, y.detach(), cost, g)
    mass = torch.bincount(cells, minlength=len(y)).to(y.dtype) / len(last)
    value = _paired_cost(last, y[cells], cost).mean() - g @ mass + b @ g
    return SemidiscreteResult(value, g, mass, (mass - b.detach()).abs().sum(), y, cost)


def _samples(x: Sampler | Tensor, y: Tensor, n: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    while True:
        if isinstance(x, Tensor):
            where = device_of_draws(generator, x.device)
            points = x[torch.randint(len(x), (n,), generator=generator, device=where).to(x.device)]
        else:
            points = check_matrix("x", x(n))
        points = points.to(y.dtype)
        broadcast_measures(points, y)
        yield points


def _potential(samples: Iterator[Tensor], y: Tensor, b: Tensor, cost: Cost, n_steps: int) -> Tensor:
    present = b > 0
    if bool(present.all()):
        return _ascent(samples, y, b, cost, n_steps)
    g = torch.empty_like(b)
    g[present] = _ascent(samples, y[present], b[present], cost, n_steps)
    # The potential of a point without mass is the largest at which its cell is empty: the c-transform, on one sample.
    C = cost_matrix(next(samples), y, cost)
    least = (C[:, present] - g[present]).amin(1, keepdim=True)
    g[~present] = (C[:, ~present] - least).amin(0)
    return g


def _ascent(samples: Iterator[Tensor], y: Tensor, b: Tensor, cost: Cost, n_steps: int) -> Tensor:
    first = next(samples)
    g = _entropic_potential(first, y, b, cost)
    if len(y) == 1:
        return g
    best = _reduced_scores(first, y, cost, g).topk(2).values
    # A cell loses its mass when its potential falls by about the mean gap between the best and the second best score.
    # So this is the length of a Newton step.
    newton = (best[:, 0] - best[:, 1]).mean() / b.clamp(min=torch.finfo(b.dtype).eps)
    average, total = torch.zeros_like(g), 0
    for step in range(1, n_steps + 1):
        mass = torch.bincount(_cells(next(samples), y, cost, g), minlength=len(y)).to(b.dtype) / len(first)
        g = g + newton * (step + 3) ** -0.5 * (b - mass)
        g = g - b @ g
        # Later iterates get more weight, as early ones are far from the optimum.
        total += step
        average += step / total * (g - average)
    return average


# The temperature of the entropic start, in units of the spread of the costs.
TEMPERATURE = 0.01


def _entropic_potential(x: Tensor, y: Tensor, b: Tensor, cost: Cost) -> Tensor:
    c, a = ground(x, y, cost), weights(x, None)
    problem = Problem(c, a, b, default_temperature(c, a, b, share=TEMPERATURE))
    g = entropic(problem, SolverOptions(tol=1e-2)).g
    return g - b @ g


def _reduced_scores(x: Tensor, y: Tensor, cost: Cost, g: Tensor) -> Tensor:
    """:math:`g_j - c(x_i, y_j)`, up to a constant per row."""
    c = ground(x, y, cost)
    return c.scores(slice(0, len(x)), g if c.v is None else g - c.v)


@torch.no_grad()
def _cells(x: Tensor, y: Tensor, cost: Cost, g: Tensor) -> Tensor:
    return _reduced_scores(x, y, cost, g).argmax(-1)


def _paired_cost(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """The costs between row i of x and row i of y, shape (n,)."""
    c = ground(x[:, None], y[:, None], cost)
    values = c.block(slice(0, 1))[:, 0, 0]
    for offset in (c.u, c.v):
        values = values if offset is None else values + offset[:, 0]
    return values
