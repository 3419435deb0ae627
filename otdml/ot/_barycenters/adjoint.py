"""Derivatives of what solves an equation: the implicit function theorem, with one linear solve for each gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from otdml._derivatives import refuse_several
from otdml.ot._implicit import first_order
from otdml.ot._linearised import of_size_one

__all__ = ["implicit", "krylov_solution"]

Operator = Callable[[Tensor], Tensor]
# What is zero at the solution, shape (..., N), as a function of the solution and of what it depends on.
Residual = Callable[..., Tensor]

# Most directions of a linear solve.
MOST = 100


def implicit(solution: Tensor, residual: Residual, *inputs: Tensor, tol: float) -> Tensor:
    r"""The solution :math:`s` of :math:`r(s, \theta) = 0`, shape (..., N), differentiable in :math:`\theta` once.

    A cotangent v of s is one of :math:`\theta` by :math:`-(\partial_\theta r)^\top u` with
    :math:`(\partial_s r)^\top u = v`, so memory and time do not grow with the iterations that found s.

    Args:
        solution: s, without graph.
        residual: r, made of differentiable operations.
        inputs: :math:`\theta`.
        tol: To what the solution is known, relative to itself: directions that r sees less of are left alone.
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return solution
    return _Implicit.apply(residual, tol, solution, *inputs)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Residual, tol: float, solution: Tensor, *inputs: Tensor) -> Tensor:
        ctx.residual, ctx.tol = residual, tol
        ctx.save_for_backward(solution, *inputs)
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_several(grad)
        saved = ctx.saved_tensors
        found = first_order(_pulled_back(ctx, grad.detach(), saved), (grad, *saved))
        return None, None, None, *found


@torch.enable_grad()
def _pulled_back(ctx: Any, grad: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    solution = saved[0].detach().requires_grad_()
    inputs = [t.detach().requires_grad_(need) for t, need in zip(saved[1:], ctx.needs_input_grad[3:], strict=True)]
    value = ctx.residual(solution, *inputs)

    def operator(u: Tensor) -> Tensor:
        return torch.autograd.grad(value, solution, u, retain_graph=True)[0]

    with torch.no_grad():
        u = krylov_solution(operator, grad, tol=ctx.tol)
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, -u, allow_unused=True))
    return tuple(next(found) if t.requires_grad else None for t in inputs)


def krylov_solution(operator: Operator, rhs: Tensor, *, tol: float) -> Tensor:
    """The solution of ``operator(u) = rhs``, shapes (..., N), where the operator is not nearly singular.

    Arnoldi's algorithm from the right-hand side, and the least residual over its directions :cite:p:`golub:13`;
    singular values below ``tol`` of the largest are left out.

    Example:
        >>> import torch
        >>> krylov_solution(lambda u: u * torch.tensor([2.0, 4.0, 0.0]), torch.tensor([2.0, 2.0, 0.0]), tol=1e-6)
        tensor([1.0000, 0.5000, 0.0000])
    """
    (rhs,), unit = of_size_one(rhs)
    size = torch.linalg.vector_norm(rhs, dim=-1, keepdim=True)
    tiny, most = torch.finfo(rhs.dtype).tiny, min(MOST, rhs.shape[-1])
    enough = max(tol, 16 * torch.finfo(rhs.dtype).eps)
    basis, columns = [rhs / size.clamp(min=tiny)], []
    while True:
        k = len(basis)
        Q = torch.stack(basis, -1)
        image, along = operator(basis[-1]), torch.zeros_like(rhs[..., :0])
        along = image.new_zeros(*image.shape[:-1], k)
        # Twice, as once leaves what rounding has put along earlier directions.
        for _ in range(2):
            part = (Q.mT @ image[..., None])[..., 0]
            along, image = along + part, image - (Q @ part[..., None])[..., 0]
        beside = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        columns.append(torch.cat((along, beside), -1))
        H = torch.stack([torch.nn.functional.pad(c, (0, k + 1 - c.shape[-1])) for c in columns], -1)
        first = torch.zeros_like(H[..., :1])
        first[..., 0, :] = 1
        found = torch.linalg.pinv(H, rtol=tol) @ first
        left = torch.linalg.vector_norm(H @ found - first, dim=(-2, -1))
        if k >= most or bool((left <= enough).all() | (beside <= enough).all()):
            return unit * (size * (Q @ found)[..., 0])
        basis.append(torch.where(beside > 16 * torch.finfo(rhs.dtype).eps, image / beside.clamp(min=tiny), 0.0))
