"""The speed table of couplings: pairs are judged by what they save, whoever draws them."""

import pytest
import torch

from otdml.benchmarks.speed import couplings as table


@pytest.mark.parametrize("method", table._METHODS)
def test_pairs_of_the_plan_are_right_and_independent_ones_are_not(method):
    task = table._task(*table._clouds(500, 2), method)
    gain = table._gain(task)
    assert table._missed(task, gain, table._otdml(task)) < 0.08
    generator = torch.Generator().manual_seed(1)
    independent = (torch.randperm(500, generator=generator), torch.randperm(500, generator=generator))
    assert table._missed(task, gain, independent) == pytest.approx(1, abs=0.15)


def test_the_gain_of_the_assignment_is_what_it_saves():
    x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]])
    # 2.5 in place of the mean of 9, 1, 4 and 0.
    assert table._gain(table.Task(x0, x1, "exact", 1.0, 1.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("method", table._METHODS)
def test_torchcfm_is_given_the_same_plan(method):
    pytest.importorskip("torchcfm", reason="torchcfm is no requirement; pip install --no-deps torchcfm")
    task = table._task(*table._clouds(500, 2), method)
    assert table._missed(task, table._gain(task), table._torchcfm(task)()) < 0.15
