"""Batches that clouds and weights share."""

import pytest
import torch

from otdml.measures import broadcast_clouds, broadcast_matrix, broadcast_measures, broadcast_pairs, weighted


def test_clouds_and_weights_share_the_batch():
    x, y = torch.zeros(4, 2), torch.zeros(3, 1, 5, 2)
    a, b = torch.ones(6, 4), torch.ones(5)
    shapes = [tuple(t.shape) for t in broadcast_measures(x, y, a, b)]
    assert shapes == [(3, 6, 4, 2), (3, 6, 5, 2), (3, 6, 4), (3, 6, 5)]


def test_what_fits_is_passed_on_as_it_is():
    x, y, b = torch.zeros(3, 4, 2), torch.zeros(3, 5, 2), torch.ones(3, 5)
    found = broadcast_measures(x, y, None, b)
    assert found[0] is x
    assert found[1] is y
    assert found[2] is None
    assert found[3] is b


def test_gradient_of_what_is_shared_is_summed():
    x = torch.zeros(4, 2, requires_grad=True)
    broadcast_clouds(x, torch.zeros(3, 5, 7))[0].sum().backward()
    assert torch.equal(x.grad, torch.full((4, 2), 3.0))


def test_pairs_and_single_measures():
    x, y, a = broadcast_pairs(torch.zeros(4, 2), torch.zeros(3, 4, 7), torch.ones(4))
    assert [tuple(t.shape) for t in (x, y, a)] == [(3, 4, 2), (3, 4, 7), (3, 4)]
    assert [tuple(t.shape) for t in weighted(torch.zeros(2, 3))] == [(2, 3), (2,)]
    torch.testing.assert_close(weighted(torch.zeros(2, 3))[1], torch.tensor([0.5, 0.5]))


def test_matrix_of_costs():
    C, a, b = broadcast_matrix(torch.zeros(5, 2, 3), None, torch.ones(3))
    assert [tuple(t.shape) for t in (C, a, b)] == [(5, 2, 3), (5, 2), (5, 3)]
    torch.testing.assert_close(a, torch.full((5, 2), 0.5))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 3), (3, 5, 3), None, None), r"`y` must have the batch dimensions of `x`, \(2,\), got \(3,\). They"),
        (((4, 3), (3, 5, 3), (2, 4), None), r"`a` must have the batch dimensions of `y`, \(3,\), got \(2,\)"),
        (((4, 3), (5, 3), (5,), None), r"`a` must hold one weight per point, shape \(4,\), got \(5,\). Pass None"),
        (((4, 3), (5, 2), None, None), r"`y` must have the features of `x`, 3, got 2"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    tensors = [s if s is None else torch.ones(s) for s in shapes]
    with pytest.raises(ValueError, match=message):
        broadcast_measures(*tensors)


def test_negative_weights_are_refused():
    x, a = torch.zeros(2, 3), torch.tensor([-0.5, 1.5])
    calls = [
        lambda: broadcast_measures(x, x, None, a),
        lambda: broadcast_clouds(x, x, None, a),
        lambda: broadcast_pairs(x, x, a),
        lambda: weighted(x, a),
        lambda: broadcast_matrix(x, a),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"`[ab]` must hold no negative weight, got -0.5"):
            call()


def test_a_matrix_goes_by_its_own_name():
    with pytest.raises(ValueError, match=r"`a` must have the batch dimensions of `C`, \(2,\), got \(5,\)"):
        broadcast_matrix(torch.zeros(2, 2, 3), torch.ones(5, 2))
