"""The fused engine, its kernels interpreted on the CPU, against matrices in double precision."""

import math

import pytest
import torch
from kernel_marks import INTERPRETED

from otdml import costs
from otdml._fused.barred import Barred
from otdml.costs import Bilinear, Matrix, ground
from otdml.ot import sinkhorn
from otdml.ot._problem import Posed, Problem
from otdml.ot.engines import Dense, Fused, Streamed, engine

pytestmark = INTERPRETED

COSTS = ("sqeuclidean", "euclidean", "geodesic")
# Features that are summed one by one, in a loop, in one matrix product, in one that is padded, and in several.
FEATURES = {"sqeuclidean": (1, 4, 16, 20, 70), "euclidean": (1, 4, 20), "geodesic": (2, 5)}
CASES = [(cost, d) for cost in COSTS for d in FEATURES[cost]]


def clouds(d, n=37, m=70, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*batch, size, d, generator=generator) for size in (n, m))


def engines(cost, d, eps=0.7, mask=None, **shape):
    """The fused engine in single precision, and the streamed one in double precision, of the same points."""
    x, y = clouds(d, **shape)
    exact = ground(x.double(), y.double(), cost)
    if isinstance(exact, Bilinear):
        # The centres of the clouds, and with them the split of the cost, are those of either precision.
        single = Bilinear(exact.q.float(), exact.k.float())
        exact = Bilinear(single.q.double(), single.k.double())
    else:
        single = ground(x, y, cost)
    return Fused(single.scaled(1 / eps), mask), Streamed(exact.scaled(1 / eps), mask)


def potentials(reference, seed=1):
    """Row and column exponents of a plan: columns of mass one, some without weight."""
    generator = torch.Generator().manual_seed(seed)
    *batch, _, m = reference.shape
    hg = torch.randn(*batch, m, generator=generator, dtype=torch.float64)
    hg[..., 3] = -torch.inf
    return reference.row_softmin(hg).float(), hg.float()


def close(found, expected, tol=1e-5):
    assert found.dtype == torch.float32
    scale = expected[expected.isfinite()].abs().amax().clamp(min=1.0)
    torch.testing.assert_close(found.double(), expected, rtol=tol, atol=float(tol * scale))


@pytest.mark.parametrize(("cost", "d"), CASES)
def test_soft_minima(cost, d):
    fused, reference = engines(cost, d)
    hf, hg = potentials(reference)
    close(fused.row_softmin(hg), reference.row_softmin(hg.double()))
    close(fused.column_softmin(hf), reference.column_softmin(hf.double()))
    close(fused.mT.row_softmin(hf), reference.column_softmin(hf.double()))


@pytest.mark.parametrize(("cost", "d"), CASES)
@pytest.mark.parametrize("e", [1, 5, 17, 70])
def test_products_of_the_plan(cost, d, e):
    fused, reference = engines(cost, d)
    hf, hg = potentials(reference)
    v = torch.randn(70, e, generator=torch.Generator().manual_seed(2))
    close(fused.plan_product(hf, hg, v), reference.plan_product(hf.double(), hg.double(), v.double()))
    w = v[:37]
    close(fused.mT.plan_product(hg, hf, w), reference.mT.plan_product(hg.double(), hf.double(), w.double()))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("batch", [(2,), (2, 3)])
def test_batches(cost, batch):
    fused, reference = engines(cost, 5, n=9, m=33, batch=batch)
    hf, hg = potentials(reference)
    v = torch.randn(*batch, 33, 2, generator=torch.Generator().manual_seed(2))
    close(fused.row_softmin(hg), reference.row_softmin(hg.double()))
    close(fused.plan_product(hf, hg, v), reference.plan_product(hf.double(), hg.double(), v.double()))


@pytest.mark.parametrize("cost", COSTS)
def test_a_batch_that_shares_points_and_has_temperatures_of_its_own(cost):
    x, y = clouds(20, n=9, m=33)
    eps = torch.tensor([0.5, 2.0])
    shared = ground(x.expand(2, -1, -1), y.expand(2, -1, -1), cost)
    h = torch.zeros(33).expand(2, 33)
    found = Fused(shared.scaled(1 / eps)).row_softmin(h)
    expected = torch.stack([Streamed(ground(x, y, cost).scaled(1 / e)).row_softmin(h[0]) for e in eps.tolist()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_columns_in_parts_are_put_together(monkeypatch):
    from otdml._fused import _triton_launch

    monkeypatch.setattr(_triton_launch, "LEAST_SPAN", 50)
    fused, reference = engines("sqeuclidean", 3, n=5, m=200)
    hf, hg = potentials(reference)
    hg[:64] = -torch.inf
    assert fused.fused._split(fused.fused.tiles[0])[0] == 4
    close(fused.row_softmin(hg), reference.row_softmin(hg.double()))
    v = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    close(fused.plan_product(hf, hg, v), reference.plan_product(hf.double(), hg.double(), v.double()))
    assert (fused.row_softmin(torch.full((200,), -torch.inf)) == torch.inf).all()


def masks(n=37, m=70):
    rows, columns = torch.arange(n), torch.arange(m)
    own = rows + 3, columns
    same, kept = (rows % 5, columns % 5), (rows % 10, columns % 10)
    return {
        "own": (Barred(own=own), lambda i, j: j == i + 3),
        "same": (Barred(same=same), lambda i, j: i % 5 == j % 5),
        "kept": (Barred(same=same, kept=kept), lambda i, j: (i % 5 == j % 5) & (i % 10 != j % 10)),
        "all": (Barred(own, same, kept), lambda i, j: (j == i + 3) | ((i % 5 == j % 5) & (i % 10 != j % 10))),
    }


@pytest.mark.parametrize("kind", ["own", "same", "kept", "all"])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_pairs_without_mass(kind, cost):
    barred, rule = masks()[kind]
    i, j = torch.arange(37)[:, None], torch.arange(70)
    assert torch.equal(barred(slice(5, 20), slice(0, 70)), rule(i, j)[5:20])
    fused, reference = engines(cost, 20, mask=barred)
    hf, hg = potentials(reference)
    close(fused.row_softmin(hg), reference.row_softmin(hg.double()))
    close(fused.column_softmin(hf), reference.column_softmin(hf.double()))
    v = torch.randn(70, 3, generator=torch.Generator().manual_seed(2))
    close(fused.plan_product(hf, hg, v), reference.plan_product(hf.double(), hg.double(), v.double()))


@pytest.mark.parametrize("cost", COSTS)
def test_no_partner_is_infinity_and_no_number_stays_none(cost):
    numbers = torch.tensor([0, 1]), torch.zeros(3, dtype=torch.long)
    x, y = clouds(5, n=2, m=3)
    fused = Fused(ground(x, y, cost), Barred(same=numbers))
    found = fused.row_softmin(torch.zeros(3))
    assert found[0] == torch.inf
    assert found[1].isfinite()
    assert (fused.row_softmin(torch.full((3,), -torch.inf)) == torch.inf).all()
    x[0, 1] = torch.nan
    fused = Fused(ground(x, y, cost).between(x, y))
    found = fused.row_softmin(torch.zeros(3))
    assert found[0].isnan()
    assert found[1].isfinite()
    assert fused.column_softmin(torch.zeros(2)).isnan().all()
    assert fused.plan_product(torch.zeros(2), torch.zeros(3), torch.ones(3, 1))[0].isnan()


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("eps", [0.1, None])
def test_points_that_are_no_numbers_are_an_error(cost, eps):
    x, y = clouds(3, n=12, m=10)
    x[1, 0] = torch.nan
    with pytest.raises(ValueError, match="`x` must give finite costs"):
        sinkhorn(x, y, cost=cost, eps=eps, backend="triton")


@pytest.mark.parametrize("cost", COSTS)
def test_empty_sides(cost):
    x, y = clouds(5, n=2, m=3)
    assert Fused(ground(x, y, cost).between(x[:0], y)).row_softmin(torch.zeros(3)).shape == (0,)
    found = Fused(ground(x, y, cost).between(x, y[:0])).row_softmin(torch.zeros(0))
    assert (found == torch.inf).all()
    assert Fused(ground(x, y, cost)).plan_product(torch.zeros(2), torch.zeros(3), torch.zeros(3, 0)).shape == (2, 0)


@pytest.mark.parametrize("cost", ["euclidean", "geodesic"])
def test_near_points_keep_their_digits(cost):
    """Distances of 4e-5 between points of length one: products of the points would leave no digit of them."""
    x, _ = clouds(20, n=8)
    x = x / x.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(3)
    y = x + 1e-5 * torch.randn(x.shape, generator=generator)
    # One column alone leaves the cost itself.
    for i in range(8):
        h = torch.full((8,), -torch.inf)
        h[i] = 0.0
        found = Fused(ground(x, y, cost)).row_softmin(h)[i]
        exact = ground(x.double(), y.double(), cost).block(slice(i, i + 1))[0, i]
        # The square root of rounding would be 2e-4; the directions of the points are rounded to 6e-8.
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=3e-8)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.5, math.pi / 2, 2.5, math.pi - 1e-3, math.pi])
def test_angles_on_the_whole_half_circle(angle):
    x = torch.tensor([[1.0, 0.0]])
    y = torch.tensor([[math.cos(angle), math.sin(angle)]])
    found = Fused(ground(x, y, "geodesic")).row_softmin(torch.zeros(1))
    torch.testing.assert_close(found, torch.tensor([angle]), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("cost", COSTS)
def test_the_excess_keeps_its_digits_at_high_temperatures(cost):
    fused, reference = engines(cost, 5, eps=1e5)
    hf, hg = torch.full((37,), 1e-5), torch.full((70,), -2e-5)
    b = torch.full((70,), 1 / 70)
    found, expected = fused.row_excess(hf, hg, b), reference.row_excess(hf.double(), hg.double(), b.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)
    hot, exact = engines(cost, 5, eps=5.0)
    found, expected = hot.row_excess(hf, hg, b), exact.row_excess(hf.double(), hg.double(), b.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("e", [1, 3, 20])
@pytest.mark.parametrize(
    ("cost", "d"), [("inner", 3), ("inner", 20), ("euclidean", 3), ("euclidean", 20), ("geodesic", 3)]
)
def test_gradients_of_the_cost(cost, d, e):
    """The gradient of sum P <l, r> R by autograd on the matrix, in double precision."""
    x, y = clouds(d, n=19, m=33)
    y[:2] = x[:2]
    left, right = clouds(e, n=19, m=33, seed=4)
    fused = Fused(Bilinear(x, y)) if cost == "inner" else Fused(ground(x, y, cost).scaled(0.5))
    hg = torch.randn(33, generator=torch.Generator().manual_seed(1))
    hf = fused.row_softmin(hg)
    found = fused.slopes(hf, hg, left, right)

    points = [t.double().requires_grad_() for t in (x, y)]
    if cost == "geodesic":
        points = [(t / t.norm(dim=-1, keepdim=True)).double().requires_grad_() for t in (x, y)]
    R = Bilinear(*points).block(slice(None)) if cost == "inner" else 0.5 * costs.cost_matrix(*points, cost)
    weights = (hf.double()[:, None] + hg.double() - R).exp().detach() * (left.double() @ right.double().mT)
    exact = torch.autograd.grad((weights * R).sum(), points)
    for slope, expected, point in zip(found, exact, points, strict=True):
        slope = slope.double()
        if cost == "geodesic":
            # What is along a unit vector has no effect.
            slope = slope - point.detach() * (slope * point.detach()).sum(-1, keepdim=True)
        torch.testing.assert_close(slope, expected, rtol=2e-4, atol=float(2e-5 * expected.abs().max()))


def solved(cost, rho, dtype, **options):
    """The value and the derivatives of it and of the potential, of a batch that shares a cloud."""
    (x, first), (_, second) = clouds(3, n=24, m=35, seed=5), clouds(3, n=24, m=35, seed=6)
    ys = torch.stack([first, second])
    x, ys = x.to(dtype).requires_grad_(), ys.to(dtype).requires_grad_()
    result = sinkhorn(x, ys, cost=cost, eps=0.4, rho=rho, **options)
    assert result.converged.all()
    once = torch.autograd.grad(result.value.sum(), (x, ys), retain_graph=True)
    twice = torch.autograd.grad(result.f.square().sum(), (x, ys))
    return [t.double() for t in (result.value.detach(), *once, *twice)]


@pytest.mark.parametrize("rho", [None, 1.0])
@pytest.mark.parametrize("cost", [*COSTS, "cosine"])
def test_the_solver_on_fused_kernels(cost, rho):
    found = solved(cost, rho, torch.float32, backend="triton", tol=1e-5)
    exact = solved(cost, rho, torch.float64, backend="dense", tol=1e-8)
    for one, other, tol in zip(found, exact, (1e-5, 1e-4, 1e-4, 1e-3, 1e-3), strict=True):
        torch.testing.assert_close(one, other, rtol=tol, atol=tol * float(other.abs().max()))


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_other_precisions_of_products(precision):
    """The interpreter multiplies TF32 in full, and bfloat16 not at all: that is compiled only."""
    x, y = clouds(20)
    exact = Streamed(Bilinear(x.double(), y.double()))
    hf, hg = potentials(exact)
    fused = Fused(Bilinear(x, y), precision=precision)
    close(fused.row_softmin(hg), exact.row_softmin(hg.double()))
    v = torch.randn(70, 17, generator=torch.Generator().manual_seed(2))
    close(fused.plan_product(hf, hg, v), exact.plan_product(hf.double(), hg.double(), v.double()))


# Significant bits, what is made of the others, and the error in units of the product of lengths, as documented.
ROUNDED = {"tf32": (11, torch.trunc, 2e-3), "bf16": (8, torch.round, 8e-3)}


@pytest.mark.parametrize("precision", ROUNDED)
def test_the_documented_error_of_a_precision_bounds_it(precision):
    bits, whole, bound = ROUNDED[precision]

    def errors(x, y):
        found = []
        for t in (x, y):
            mantissa, exponent = torch.frexp(t)
            found.append(torch.ldexp(whole(mantissa * 2**bits) / 2**bits, exponent))
        return (found[0] @ found[1].T - x @ y.T).abs() / (x.norm(dim=1)[:, None] * y.norm(dim=1))

    random = errors(*(t.double() for t in clouds(20, n=500, m=500)))
    assert random.max() <= bound
    assert random.mean() <= 0.1 * bound
    # The largest error is that of numbers just below the next one, or halfway between two.
    below = 2.0 ** (1 - bits) * (1 if whole is torch.trunc else 0.5) - 2.0**-20
    worst = torch.full((1, 20), 1 + below, dtype=torch.float64)
    assert 0.9 * bound < errors(worst, worst).max() <= bound


def test_a_precision_is_a_name_of_a_backend():
    x, y = clouds(20)
    for precision in ("tf32x3", "tf32", "bf16"):
        made = engine(ground(x, y), 1.0, f"triton-{precision}")
        assert isinstance(made, Fused)
        assert made.precision == made.mT.precision == made.fused.precision == precision
        assert isinstance(engine(ground(x.double(), y.double()), 1.0, f"triton-{precision}"), Streamed)
    result = sinkhorn(x, y, eps=5.0, backend="triton-tf32")
    torch.testing.assert_close(result.value, sinkhorn(x, y, eps=5.0).value, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="`precision` must be one of 'ieee'"):
        Fused(ground(x, y), precision="tf16")


def test_half_precision_points_are_summed_in_single_precision():
    x, y = (t.half() for t in clouds(20))
    found = Fused(Bilinear(x, y)).row_softmin(torch.zeros(70))
    close(found, Streamed(Bilinear(x.double(), y.double())).row_softmin(torch.zeros(70, dtype=torch.float64)))


def test_which_engine_is_made():
    x, y = clouds(3)
    cost = ground(x, y)
    assert isinstance(engine(cost, 1.0, "triton"), Fused)
    assert isinstance(engine(ground(x.double(), y.double()), 1.0, "triton"), Streamed)
    assert isinstance(engine(cost, 1.0, "auto"), Dense)


def test_in_double_precision_another_engine_computes():
    x, y = clouds(20)
    posed = Posed.of(Problem.between(x, y, None, None, eps=1.0), "triton-tf32")
    finer = posed.double()
    assert isinstance(finer.engine, Streamed)
    exact = Streamed(ground(x.double(), y.double()))
    h = torch.linspace(-1, 1, 70, dtype=torch.float64)
    torch.testing.assert_close(finer.engine.row_softmin(h), exact.row_softmin(h), rtol=1e-12, atol=1e-12)
    single = posed.engine.like(ground(x, y))
    assert isinstance(single, Fused)
    assert single.precision == "tf32"


def test_what_it_does_not_take_is_refused():
    x, y = clouds(3)
    with pytest.raises(ValueError, match="'dense' or 'streamed' for a matrix or a function"):
        Fused(Matrix(torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="where a function forbids pairs"):
        Fused(ground(x, y), lambda i, j: torch.zeros(1, 1, dtype=torch.bool))
