"""Parameter groups and schedules by value."""

import math

import pytest
import torch
from torch import nn

from otdml.dml.optim import by_group, optimizer, param_groups, schedule


def test_numbers_by_part():
    assert by_group("lr", 0.1) == {"backbone": 0.1, "head": 0.1, "proxies": 0.1, "flow": 0.1}
    assert by_group("lr", {"backbone": 1.0, "proxies": 2.0}) == {
        "backbone": 1.0,
        "head": 1.0,
        "proxies": 2.0,
        "flow": 1.0,
    }
    with pytest.raises(ValueError, match=r"`lr` must name 'backbone', .* got \['proxies'\]"):
        by_group("lr", {"proxies": 0.1})
    assert by_group("weight_decay", {"head": 0.1}, default=0.0)["backbone"] == 0.0
    with pytest.raises(ValueError, match="heads"):
        by_group("lr", {"heads": 0.1})
    with pytest.raises(ValueError, match=r"`lr\['flow'\]` must be a number that is not negative"):
        by_group("lr", {"flow": -1.0})


def test_biases_and_norms_are_never_decayed():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2), nn.LayerNorm(2))
    proxies = nn.Module()
    proxies.proxies = nn.Parameter(torch.zeros(3, 2))
    numbers = {"backbone": 0.1, "proxies": 0.2, "flow": 0.3}
    groups = param_groups({"backbone": network, "proxies": proxies, "flow": None}, lr=numbers, weight_decay=numbers)
    assert [(g["name"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("backbone", 0.1, 2),
        ("backbone/undecayed", 0.0, 6),
        ("proxies", 0.2, 1),
    ]
    assert {g["lr"] for g in groups} == {0.1, 0.2}
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed)) == 9


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers_minimise(name):
    x = nn.Parameter(torch.tensor([3.0]))
    steps = optimizer(name, [{"params": [x], "lr": 0.05}])
    for _ in range(200):
        steps.zero_grad()
        x.square().sum().backward()
        steps.step()
    assert x.abs() < 0.1
    with pytest.raises(ValueError, match="adamw"):
        optimizer("lbfgs", [])


def test_cosine_after_warmup():
    rate = schedule("cosine", 110, warmup=10, final=0.1)
    assert [rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate(60) == pytest.approx(0.55)
    assert rate(35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(110) == rate(500) == pytest.approx(0.1)


def test_steps_and_constant():
    rate = schedule("step", 100, every=30, factor=0.1)
    assert [rate(step) for step in (0, 29, 30, 59, 60, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])
    assert [schedule("step", 90)(step) for step in (29, 30, 60)] == [1, 0.5, 0.25]
    assert {schedule("constant", 10, warmup=2)(step) for step in range(1, 10)} == {1.0}


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match="cosine"):
        schedule("linear", 10)
    with pytest.raises(ValueError, match="`warmup` must be at most the number of steps, 10, got 11"):
        schedule("cosine", 10, warmup=11)
