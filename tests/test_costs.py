"""Ground costs: their values, their reduced form, and their gradients."""

import copy
import math
import pickle
import re

import pytest
import torch
from transforms import TRANSFORMS

from otdml.costs import COSTS, Bilinear, Matrix, Pointwise, cost_matrix, default_temperature, ground
from otdml.losses import mmd, sinkhorn_divergence
from otdml.ot import sinkhorn, sinkhorn_matrix


def points(n=5, m=4, d=3):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(k, d, dtype=torch.float64, generator=generator) for k in (n, m))


EXPECTED = {
    "sqeuclidean": lambda x, y: (x - y).square().sum(),
    "cosine": lambda x, y: 1 - x @ y / (x.norm() * y.norm()),
    "inner": lambda x, y: -x @ y,
    "euclidean": lambda x, y: (x - y).norm(),
    "geodesic": lambda x, y: torch.arccos(x @ y / (x.norm() * y.norm())),
}


@pytest.mark.parametrize("cost", COSTS)
def test_matrix_is_the_cost_of_every_pair(cost):
    x, y = points()
    expected = torch.stack([torch.stack([EXPECTED[cost](p, q) for q in y]) for p in x])
    torch.testing.assert_close(cost_matrix(x, y, cost), expected)
    torch.testing.assert_close(cost_matrix(x.expand(2, 1, -1, -1), y.expand(2, 1, -1, -1), cost)[1, 0], expected)


@pytest.mark.parametrize("cost", COSTS)
def test_gradients(cost):
    x, y = (t.requires_grad_() for t in points())
    assert torch.autograd.gradcheck(lambda x, y: cost_matrix(x, y, cost), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: cost_matrix(x, y, cost), (x, y))


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("alone", [0, 1])
def test_second_derivatives_and_gradients_of_one_cloud(cost, alone, generator):
    clouds = list(torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) + 2)
    moving = clouds[alone].requires_grad_()

    def values(points):
        return cost_matrix(*(points if i == alone else t for i, t in enumerate(clouds)), cost).square()

    assert torch.autograd.gradcheck(values, (moving,))
    assert torch.autograd.gradgradcheck(values, (moving,))


@TRANSFORMS
def test_squared_distances_take_every_transform():
    x, y = points()

    def plain(x, y):
        return (x[:, None] - y).square().sum(-1)

    transforms = [
        lambda c: torch.func.grad(lambda t: c(t, y).square().sum())(x),
        lambda c: torch.func.hessian(lambda t: c(t, y).square().sum())(x),
        lambda c: torch.func.jacfwd(c)(x, y),
        lambda c: torch.vmap(c)(x.expand(2, -1, -1), y.expand(2, -1, -1)),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(cost_matrix), transform(plain))


def test_distances_of_far_clouds_have_an_exact_reduced_form_and_gradient():
    x, y = (t.requires_grad_() for t in points())
    t = torch.tensor([1e3, -2e3, 0.0], dtype=torch.float64)
    c = ground(x, y + t, "euclidean")
    torch.testing.assert_close(cost_matrix(x, y + t, "euclidean"), torch.cdist(x, y + t))
    single = ground(x.float(), y.float() + t.float(), "euclidean")
    assert single.block(slice(0, 5)).abs().max() < 10
    exactly = (torch.cdist(x.float().double(), (y.float() + t.float()).double()) - single.v).detach()
    torch.testing.assert_close(single.block(slice(0, 5)).double().detach(), exactly, rtol=1e-5, atol=3e-4)
    torch.testing.assert_close(c.mT.block(slice(0, 4)) + c.mT.u[:, None], torch.cdist(y + t, x))
    assert torch.autograd.gradcheck(lambda x, y: cost_matrix(x, y + t, "euclidean"), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: cost_matrix(x, y + t, "euclidean"), (x, y))


@pytest.mark.parametrize("cost", ["euclidean", "geodesic"])
def test_coincident_points_have_a_finite_gradient(cost):
    x = torch.ones(2, 3, requires_grad=True)
    cost_matrix(x, torch.ones(2, 3), cost).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros(2, 3))


def test_geodesic_is_exact_at_small_angles_and_at_the_antipode():
    angle = torch.tensor([1e-6, 1.0, math.pi / 2, 3.0, math.pi])
    y = torch.stack([angle.cos(), angle.sin()], -1)
    torch.testing.assert_close(cost_matrix(torch.tensor([[1.0, 0.0]]), y, "geodesic")[0], angle, rtol=1e-5, atol=2e-7)


def test_points_that_meet_beside_clouds_that_are_far():
    # One batch element makes the far form worth while; in the other the clouds, and so their centres, are the same.
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x + torch.tensor([0.0, 1000.0])[:, None, None]).requires_grad_()
    distances = cost_matrix(x, y, "euclidean")
    torch.testing.assert_close(distances[0], torch.cdist(x[0], x[0]))
    assert torch.autograd.grad(distances.sum(), y)[0].isfinite().all()


@pytest.mark.parametrize("cost", ["cosine", "geodesic"])
def test_a_row_of_zeros_leaves_second_derivatives_of_others_as_they_are(cost, generator):
    x, y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    x[1] = 0
    found = torch.autograd.functional.hessian(lambda z: cost_matrix(z, y, cost).sum(), x)
    rest = [0, 2, 3]
    expected = torch.autograd.functional.hessian(lambda z: cost_matrix(z, y, cost).sum(), x[rest])
    assert found.isfinite().all()
    torch.testing.assert_close(found[rest][:, :, rest], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_clouds_leave_the_others_of_a_batch_as_they_are(dtype, generator):
    near = torch.randn(30, 3, generator=generator, dtype=dtype)
    far = torch.randn(31, 3, generator=generator, dtype=dtype) + 1000
    # Most points meet, and the centres of the clouds differ.
    y = torch.stack([far, torch.cat([near, 3 * near[:1]])])
    x = torch.stack([near, near]).requires_grad_()
    found = cost_matrix(x, y, "euclidean")
    alone = cost_matrix(x[1], y[1], "euclidean")
    assert torch.equal(found[1].diagonal(), torch.zeros(30, dtype=dtype))
    torch.testing.assert_close(found[1], alone)
    for read in (torch.Tensor.diagonal, torch.Tensor.flatten):
        slopes = [torch.autograd.grad(read(C).sum(), x, retain_graph=True)[0][1] for C in (found[1], alone)]
        torch.testing.assert_close(*slopes)
    assert torch.equal(torch.autograd.grad(found[1].diagonal().sum(), x)[0], torch.zeros_like(x))


def test_batches_of_far_clouds_broadcast(generator):
    x = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64) + 1000
    torch.testing.assert_close(cost_matrix(x, y, "euclidean"), torch.cdist(x, y))


def test_distances_keep_their_digits_far_from_the_origin():
    x = torch.tensor([[1e6, 0.0], [1e6 + 1, 0.0]])
    y = torch.tensor([[-1e6, 0.0], [-1e6 + 2, 0.0]])
    c = ground(x, y)
    reduced = c.block(slice(None))
    # Which pairs are nearer is decided by the reduced cost, in small numbers.
    assert reduced.abs().max() < 10
    torch.testing.assert_close(cost_matrix(x, x), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("cost", COSTS)
def test_default_temperature_is_of_the_pairs_that_may_have_mass(cost, monkeypatch):
    monkeypatch.setattr("otdml._cost_forms.base._BLOCK", 10)
    x, y = points()
    a, b = torch.arange(5, dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    forbidden = torch.zeros(5, 4, dtype=torch.bool)
    forbidden[4, 1:3] = True
    C, weights = cost_matrix(x, y, cost), (a[:, None] * b).masked_fill(forbidden, 0)
    expected = 0.05 * ((weights * C).sum() / weights.sum() - C[weights > 0].min())
    clouds = (t.expand(2, -1, -1) for t in (x, y))
    found = default_temperature(ground(*clouds, cost), a, b, lambda rows, columns: forbidden[rows, columns])
    torch.testing.assert_close(found, expected.expand(2))


@pytest.mark.parametrize("form", [Bilinear, Pointwise, Matrix])
def test_forms_agree_on_blocks_transposes_and_scales(form):
    x, y = points()
    c = {
        Bilinear: ground(x, y),
        Pointwise: Pointwise(lambda x, y: -2 * x @ y.mT, x, y),
        Matrix: Matrix(-2 * x @ y.mT),
    }[form]
    whole = c.block(slice(0, 5))
    torch.testing.assert_close(c.block(slice(1, 3)), whole[1:3])
    torch.testing.assert_close(c.mT.block(slice(0, 4)), whole.mT)
    torch.testing.assert_close(c.scaled(3.0).block(slice(0, 5)), 3 * whole)
    h = torch.arange(4.0, dtype=torch.float64)
    torch.testing.assert_close(c.scores(slice(0, 5), h), h - whole)
    assert c.shape == (5, 4)


def test_errors_name_the_argument():
    x, y = points()
    with pytest.raises(ValueError, match="`cost` must be one of 'sqeuclidean'"):
        ground(x, y, "squared")
    with pytest.raises(ValueError, match=r"`cost` must return a matrix of shape \(5, 4\), got \(5,\)"):
        cost_matrix(x, y, lambda x, y: x.sum(-1))
    with pytest.raises(TypeError, match="`cost` must return a tensor, got ndarray"):
        cost_matrix(x, y, lambda x, y: torch.cdist(x, y).numpy())


def test_a_function_broadcasts_batches_as_a_named_cost_does():
    x, y = points()
    for one, other in ((x, y.expand(2, -1, -1)), (x.expand(2, -1, -1), y)):
        for cost in ("euclidean", torch.cdist):
            torch.testing.assert_close(cost_matrix(one, other, cost), torch.cdist(x, y).expand(2, -1, -1))


def distances(x, y):
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1).sqrt()


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)], ids=str
)
def test_costs_of_another_dtype_are_read_in_that_of_the_points(dtype, error, backend, generator):
    x, y = torch.randn(2, 12, 3, generator=generator)
    x.requires_grad_()
    found = sinkhorn(x, y, cost=lambda x, y: distances(x, y).to(dtype), eps=0.5, tol=1e-6, backend=backend).value
    expected = sinkhorn(x.double(), y.double(), cost="euclidean", eps=0.5, tol=1e-9).value
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, expected.float(), rtol=error, atol=0)
    slopes = [torch.autograd.grad(value, x)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=10 * error, atol=10 * error)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool], ids=str)
def test_costs_that_count_are_numbers(dtype, backend):
    # One half of each cloud on either side: nothing has to cross.
    x, y = torch.linspace(-1, 1, 6)[:, None], torch.linspace(-2, 2, 4)[:, None]
    cost = lambda x, y: ((x > 0) != (y > 0).mT).to(dtype)  # noqa: E731 -- the dtype is that of the test.
    result = sinkhorn(x, y, cost=cost, eps=0.02, backend=backend)
    torch.testing.assert_close(result.value, torch.tensor(0.02 * math.log(2)))


UNLINKED = {
    "constant": lambda x, y: torch.ones(x.shape[-2], y.shape[-2]),
    "of signs": lambda x, y: (x[..., :1] > y[..., :1].mT).float(),
    "of detached points": lambda x, y: torch.cdist(x.detach(), y.detach()),
}


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("cost", UNLINKED)
def test_costs_that_do_not_depend_on_the_points_have_the_gradient_zero(cost, backend, generator):
    x, y = torch.randn(2, 12, 3, generator=generator)
    x.requires_grad_()
    (found,) = torch.autograd.grad(sinkhorn(x, y, cost=UNLINKED[cost], eps=0.5, backend=backend).value, x)
    assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_costs_that_depend_on_one_cloud_have_its_gradient(backend, generator):
    x, y = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64)
    x.requires_grad_(), y.requires_grad_()
    options = {"eps": 0.5, "tol": 1e-9, "backend": backend}
    value = sinkhorn(x, y, cost=lambda x, y: distances(x, y.detach()), **options).value
    expected = torch.autograd.grad(sinkhorn(x, y.detach(), cost="euclidean", **options).value, x)
    torch.testing.assert_close(torch.autograd.grad(value, x), expected)


WEIGHTS = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]])


def learned(x, y):
    """A cost with parameters in single precision."""
    return distances(x @ WEIGHTS, y @ WEIGHTS)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize(
    "options", [{"tol": 1e-7}, {"eps": 2e-4}, {"rho": 1.0, "tol": 1e-7}, {"mass": 0.5, "tol": 1e-7}]
)
def test_learned_costs_are_solved_in_double_precision_where_single_does_not_do(options, backend, generator):
    x, y = torch.randn(2, 20, 3, generator=generator)
    x.requires_grad_()
    result = sinkhorn(x, y, cost=learned, backend=backend, **options)
    exact = x.detach().double().requires_grad_()
    precise = sinkhorn(exact @ WEIGHTS.double(), y.double() @ WEIGHTS.double(), cost="euclidean", **options)
    assert result.converged
    torch.testing.assert_close(result.value, precise.value.float(), rtol=2e-4, atol=0)
    slopes = [torch.autograd.grad(r.value, z)[0].double() for r, z in ((result, x), (precise, exact))]
    torch.testing.assert_close(*slopes, rtol=1e-2, atol=1e-3)


def test_results_of_learned_costs_in_double_precision_are_copied(generator):
    x, y = torch.randn(2, 20, 3, generator=generator)
    result = sinkhorn(x, y, cost=learned, tol=1e-7)
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        torch.testing.assert_close(copied.plan, result.plan)


@pytest.mark.parametrize("cost", ["cosine", "geodesic"])
def test_costs_of_directions_do_not_depend_on_lengths(cost, generator):
    x, y = torch.randn(2, 4, 3, generator=generator)
    lengths = torch.tensor([[1e-30], [1e-13], [1.0], [1e30]])
    torch.testing.assert_close(cost_matrix(lengths * x, y, cost), cost_matrix(x, y, cost))
    short = (1e-13 * x).requires_grad_()
    (grad,) = torch.autograd.grad(cost_matrix(short, y, cost).sum(), short)
    x = x.requires_grad_()
    (expected,) = torch.autograd.grad(cost_matrix(x, y, cost).sum(), x)
    torch.testing.assert_close(1e-13 * grad, expected)


def _whole(cost):
    """All costs, offsets included."""
    n, m = cost.shape[-2:]
    u = torch.zeros(n) if cost.u is None else cost.u
    v = torch.zeros(m) if cost.v is None else cost.v
    return cost.block(slice(0, n)) + u[..., None] + v[..., None, :]


@pytest.mark.parametrize("cost", [*COSTS, lambda x, y: (x[..., :, None, :] - y[..., None, :, :]).abs().sum(-1)])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_an_extended_cost_has_a_row_and_a_column_of_zeros_more(cost, batch):
    generator = torch.Generator().manual_seed(0)
    x, y = (1 + torch.rand(*batch, n, 2, generator=generator) for n in (4, 3))
    between = ground(x, y, cost)
    expected = torch.nn.functional.pad(_whole(between), (0, 1, 0, 1))
    torch.testing.assert_close(_whole(between.extended()), expected)
    torch.testing.assert_close(_whole(between.mT.extended()), expected.mT)
    # Made anew in double precision from the points, where it was made of points.
    double = between.extended().double()
    exact = torch.nn.functional.pad(_whole(ground(x.double(), y.double(), cost)), (0, 1, 0, 1))
    torch.testing.assert_close(_whole(double).double(), exact, rtol=1e-6, atol=1e-6)


def test_an_extended_matrix_with_offsets_has_zeros_too():
    C, u, v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0]), torch.tensor([5.0, 7.0])
    extended = Matrix(C, u, v).extended()
    torch.testing.assert_close(_whole(extended), torch.tensor([[16.0, 19.0, 0.0], [28.0, 31.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0.0, 1.0]], "`x` must be a torch.Tensor, got list. Convert it with `torch.as_tensor`."),
        (torch.zeros(3, 2, dtype=torch.long), "`x` must be of floating point, got torch.int64."),
        (torch.zeros(3, 2, dtype=torch.complex64), "`x` must be of floating point, got torch.complex64."),
        (torch.zeros(3), "`x` must have shape (..., n, d) with n, d >= 1, got (3,)."),
        (torch.zeros(3, 4), "`y` must have the features of `x`, 4, got 2."),
        (torch.zeros(3, 2).to(torch.float8_e4m3fn), "`x` must be of half precision or finer, got torch.float8_e4m3fn."),
    ],
)
def test_what_are_no_points_is_refused_in_a_sentence(points, message):
    for function in (cost_matrix, mmd, sinkhorn):
        with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
            function(points, torch.zeros(3, 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_in_a_sentence():
    nested = torch.nested.nested_tensor([torch.zeros(2, 2), torch.zeros(3, 2)])
    for function in (cost_matrix, mmd, sinkhorn):
        with pytest.raises(TypeError, match=r"`x` must be a dense tensor, got a nested tensor. .*pad_clouds"):
            function(nested, torch.zeros(3, 2))


@pytest.mark.parametrize("C", [[[0.0]], torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, dtype=torch.long)])
def test_what_is_no_matrix_of_costs_is_refused_in_a_sentence(C):
    with pytest.raises(TypeError, match=r"^`C` must be"):
        sinkhorn_matrix(C)


def collapsed(generator, size=1e-3, n=60, d=64):
    """Two clouds around one point, as embeddings that have collapsed."""
    return torch.randn(d, generator=generator) + size * torch.randn(2, n, d, generator=generator)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_cosines_of_collapsed_points_keep_their_digits(backend, generator):
    x, y = collapsed(generator)
    expected = cost_matrix(x.double(), y.double(), "cosine")
    torch.testing.assert_close(expected, 1 - torch.cosine_similarity(x.double()[:, None], y.double(), dim=-1))
    torch.testing.assert_close(cost_matrix(x, y, "cosine").double(), expected, rtol=1e-4, atol=0)
    result = sinkhorn(x, y, cost="cosine", tol=1e-4, backend=backend)
    precise = sinkhorn(x.double(), y.double(), cost="cosine", tol=1e-4)
    assert (result.plan.double() - precise.plan).abs().sum() < 2e-3
    torch.testing.assert_close(result.value.double(), precise.value, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [0.1, 0.06, 0.05, 0.04, 0.01])
def test_cosines_have_their_digits_at_any_spread_and_are_products_where_those_do(size, generator):
    x, y = collapsed(generator, size)
    expected = 1 - torch.cosine_similarity(x.double()[:, None], y.double(), dim=-1)
    torch.testing.assert_close(cost_matrix(x, y, "cosine").double(), expected, rtol=1e-5, atol=0)
    assert (ground(x, y, "cosine").v is None) == (expected.mean() > 0.1)


def test_divergence_of_collapsed_directions_and_its_gradient(generator):
    x, y = collapsed(generator)
    found, expected = [], []
    for dtype, values in ((torch.float32, found), (torch.float64, expected)):
        z = x.to(dtype).requires_grad_()
        values.append(sinkhorn_divergence(z, (y + 3e-4).to(dtype), cost="cosine"))
        values.append(torch.autograd.grad(values[0], z)[0])
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-3, atol=0)
    assert (found[1].double() - expected[1]).norm() < 1e-3 * expected[1].norm()


@TRANSFORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_second_derivatives_where_points_coincide(dtype, generator):
    x = torch.randn(40, 5, generator=generator, dtype=dtype)
    assert (cost_matrix(x, x).diagonal() >= 0).all()

    def of_pairs(z):
        return cost_matrix(z, x).diagonal().sum()

    expected = 2 * torch.eye(200, dtype=dtype)
    for hessian in (torch.autograd.functional.hessian(of_pairs, x), torch.func.hessian(of_pairs)(x)):
        torch.testing.assert_close(hessian.reshape(200, 200), expected)


@TRANSFORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("cost", "right", "straight"), [("cosine", 1.0, 2.0), ("geodesic", math.pi / 2, math.pi)])
def test_a_row_of_zeros_is_at_a_right_angle_to_all_others(cost, right, straight, dtype):
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=dtype)
    y = torch.tensor([[0.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], dtype=dtype)
    expected = torch.tensor([[right, right, right], [right, right, straight]], dtype=dtype)
    torch.testing.assert_close(cost_matrix(x, y, cost), expected)
    torch.testing.assert_close(torch.func.vmap(lambda z: cost_matrix(z, y, cost))(x[None])[0], expected)
    x.requires_grad_()
    # That of the product with each direction, which the cost falls by at first order.
    (slope,) = torch.autograd.grad(cost_matrix(x, y, cost).sum(), x)
    torch.testing.assert_close(slope[0], torch.tensor([1.0, -1.0], dtype=dtype))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_rounding_leaves_of_equal_costs_is_no_temperature(dtype, turned, generator):
    directions = torch.randn(20, 5, generator=generator, dtype=dtype)
    circle = directions / directions.norm(dim=-1, keepdim=True)
    centre, rays = torch.zeros(1, 5, dtype=dtype), torch.rand(20, 1, generator=generator, dtype=dtype) * directions[0]
    for x, y, cost in ((3 * circle + 1, centre + 1, "sqeuclidean"), (rays, 2 * rays, "cosine")):
        c = ground(y, x, cost).mT if turned else ground(x, y, cost)
        a, b = (torch.full((k,), 1 / k, dtype=dtype) for k in c.shape)
        assert default_temperature(c, a, b) == 1


def test_the_temperature_of_clouds_that_are_far_is_of_their_spread(generator):
    x, y = torch.randn(2, 20, 3, generator=generator)
    y = y + 1e5
    a = torch.full((20,), 1 / 20)
    expected = default_temperature(ground(x.double(), y.double()), a.double(), a.double())
    torch.testing.assert_close(default_temperature(ground(x, y), a, a).double(), expected, rtol=1e-2, atol=0)
