import pytest
import torch
from problems import offset_problem

from otdml.ot._marginal import Marginal
from otdml.ot._problem import Posed


def plan(p, f, g):
    return (p.rows.log[:, None] + p.columns.log + f[:, None] + g - p.cost.C / p.eps).exp()


@pytest.mark.parametrize("rho", [(None, None), (2.0, 0.3)])
def test_the_error_is_the_distance_of_the_plan_s_marginal_to_its_target(rho):
    p = offset_problem(rho)
    f, g = torch.tensor([0.3, -0.2, 0.1, 0.5]).double(), torch.tensor([0.2, 0.9, -0.4]).double()
    softmin = Posed.of(p, "streamed").engine.row_softmin(g + p.columns.log)
    target = p.rows.target(f)
    expected = (plan(p, f, g).sum(1) - target).abs().sum() / target.sum()
    torch.testing.assert_close(p.rows.error(f, softmin), expected)


def test_the_target_of_a_penalised_marginal_is_that_of_its_optimality_condition():
    # The penalty rho KL(p | a) has the derivative rho log(p / a), and its optimum lies at minus the full potential.
    p = offset_problem((2.0, None))
    f = torch.tensor([0.3, -0.2, 0.1, 0.5]).double()
    full = p.eps * f + p.cost.u
    torch.testing.assert_close(-2.0 * (p.rows.target(f) / p.a).log(), full)


def test_softmin_is_the_inverse_of_update():
    marginal = Marginal(torch.tensor([0.2, 0.8]), torch.tensor([1.0, -3.0]), 0.7)
    softmin = torch.tensor([0.4, -0.1])
    torch.testing.assert_close(marginal.softmin(marginal.update(softmin)), softmin)
