"""The training loop of small models, by hand."""

import math

import pytest
import torch

from otdml._training import drawn_rows, evaluating, inputs_of, learnt, minimised
from otdml.losses import InfoNCE


def descended(steps, **options):
    x = torch.tensor([1.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.5)
    assert list(minimised(lambda: (x**2).sum() / 2, optimizer, steps, **options)) == list(range(1, steps + 1))
    return float(x.detach())


def test_rates_are_constant_or_fall_like_a_cosine():
    assert descended(3, cosine=False) == pytest.approx(0.5**3)
    rates = [0.25 * (1 + math.cos(math.pi * step / 3)) for step in range(3)]
    assert descended(3) == pytest.approx(math.prod(1 - rate for rate in rates))


def test_the_gradient_is_clipped():
    assert descended(1, cosine=False, clip=0.2) == pytest.approx(1 - 0.5 * 0.2)


def test_rows_are_some_of_the_table_each_once():
    table, generator = torch.arange(10.0)[:, None], torch.Generator().manual_seed(0)
    assert drawn_rows(table, None, generator) is table
    rows = drawn_rows(table, 4, generator)[:, 0].tolist()
    assert len(set(rows)) == 4
    assert set(rows) <= set(range(10))
    assert rows != drawn_rows(table, 4, generator)[:, 0].tolist()


def test_parameters_of_modules_are_learnt_each_once():
    network, loss = torch.nn.Linear(2, 1), InfoNCE(learnable=True)
    assert learnt(network, loss, None, abs, network) == [network.weight, network.bias, loss.log_eps]


def test_a_model_evaluates_and_goes_back_whatever_happens():
    model = torch.nn.Linear(1, 1)

    def fail():
        with evaluating(model):
            assert not model.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.training
    model.eval()
    with evaluating(model):
        pass
    assert not model.training


def test_inputs_have_the_dtype_of_the_model():
    stored = torch.tensor([0, 255], dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        model = torch.nn.Linear(1, 1, dtype=dtype)
        for images in (stored, stored.bfloat16() / 255, stored.double() / 255):
            found = inputs_of(model, images)
            assert found.dtype == dtype
            assert found.tolist() == [0.0, 1.0]
