"""What refuses a derivative that would be wrong."""

import pytest
import torch
from transforms import TRANSFORMS

from otdml._derivatives import fixed, needs_derivative, once, refuse_transforms
from otdml.ot import couple, gromov, gromov_matrix, low_rank_sinkhorn, sinkhorn_barycenter

pytestmark = TRANSFORMS


def test_where_derivatives_are_needed():
    x = torch.ones(3, requires_grad=True)
    assert needs_derivative(x)
    assert not needs_derivative(x.detach())
    with torch.no_grad():
        assert not needs_derivative(x)
    assert torch.func.vmap(lambda t: torch.tensor(needs_derivative(t)))(x.detach()[None]).all()


def test_refusal_is_one_sentence_that_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"this loss has no transforms of torch.func .* Use `torch.autograd.grad`"):
        torch.func.grad(lambda x: refuse_transforms("this loss", None, x))(torch.ones(()))
    refuse_transforms("this loss", torch.ones(3, requires_grad=True), None)


@pytest.mark.parametrize("function", [lambda x: 3 * x.sum(), lambda x: x.pow(3).sum()])
def test_a_second_derivative_is_refused_even_where_the_first_is_a_constant(function):
    x = torch.ones(3, requires_grad=True)
    (slope,) = torch.autograd.grad(function(once(x, "there is no second one")), x, create_graph=True)
    torch.testing.assert_close(slope.detach(), torch.full((3,), 3.0))
    with pytest.raises(RuntimeError, match="there is no second one"):
        slope.sum().backward()


def test_what_is_fixed_is_differentiable_in_nothing():
    x, value = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    found = fixed(value, "nobody knows", x)
    assert torch.equal(found, value)
    with pytest.raises(RuntimeError, match="nobody knows"):
        found.sum().backward()
    with pytest.raises(RuntimeError, match="nobody knows"):
        torch.func.jvp(lambda x: fixed(value, "nobody knows", x), (x.detach(),), (value,))


REFUSING = {
    "gromov": lambda x: gromov(x, x + 1).value,
    "gromov_matrix": lambda x: gromov_matrix(x @ x.mT, x @ x.mT).value,
    "sinkhorn_barycenter": lambda x: sinkhorn_barycenter(torch.stack([x, x + 1])).points,
    "low_rank_sinkhorn": lambda x: low_rank_sinkhorn(x, x + 1, rank=2).value,
    "couple": lambda x: couple(x, x + 1)[0],
}


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev, torch.func.jacfwd])
def test_what_has_no_transforms_says_so_before_anything_is_looked_at(name, transform):
    x = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match=rf"^{name} has no transforms of torch.func"):
        transform(REFUSING[name])(x if transform is torch.func.vmap else x[0])
