import math

import numpy as np
import pytest
import torch
from problems import offset_problem

from otdml.ot._problem import Problem, SolverOptions, check_rho


def test_a_transposed_problem_has_the_transposed_costs_marginals_and_mask():
    p = offset_problem((2.0, 0.3))
    forbidden = torch.zeros(4, 3, dtype=torch.bool)
    forbidden[1, 2] = True
    turned = Problem(p.cost, p.a, p.b, p.eps, p.rho, lambda rows, columns: forbidden[rows, columns]).mT
    torch.testing.assert_close(turned.cost.C, p.cost.C.T)
    torch.testing.assert_close(turned.rows.offset, p.columns.offset)
    assert turned.rho == (0.3, 2.0)
    assert turned.mask is not None
    torch.testing.assert_close(turned.mask(slice(0, 3), slice(0, 4)), forbidden.T)


def test_a_problem_at_another_temperature_has_its_penalties_in_units_of_it():
    p = offset_problem((2.0, None), eps=torch.tensor(0.5).double())
    assert float(p.rows.rho) == 4.0
    assert float(p.at(4.0).rows.rho) == 1.0


def test_a_penalty_on_the_columns_alone_leaves_common_costs_to_the_rows():
    x = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    between = Problem.between(x, x + 100, None, None, eps=1.0, rho=(None, 1.0))
    assert float(between.cost.u.min()) > 1e4
    assert float(between.cost.v.abs().max()) < 300  # What is left there is twice the product of 100 and a coordinate.


def test_infinite_penalties_are_constraints():
    assert check_rho(math.inf) == (None, None)
    assert check_rho((math.inf, 2)) == (None, 2.0)


@pytest.mark.parametrize("rho", [-1.0, 0.0, (1.0, 2.0, 3.0), "1", np.array([1.0, 2.0]), torch.ones(2)], ids=str)
def test_other_penalties_are_refused(rho):
    with pytest.raises((TypeError, ValueError), match="rho"):
        check_rho(rho)


def test_options_say_from_which_error_on_rounding_counts():
    assert SolverOptions(tol=1e-2).resolved == 5e-3
    assert SolverOptions(tol=1e-2, rounding=1e-5).resolved == 1e-5
