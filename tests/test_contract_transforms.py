"""Every public function that is differentiable, under every derivative and transform: right, or refused in a sentence.

The losses have these laws in their contract, with points alone; here are their weights, and everything else.
"""

import re
from collections.abc import Callable

import pytest
import torch
from draws import drawn, seeded
from torch import Tensor
from torch.autograd import forward_ad
from transforms import REFUSED, TRANSFORMS

import otdml.costs
import otdml.dml
import otdml.losses.dispersion
import otdml.ot
import otdml.sphere
from otdml import kernel_sums, kernels
from otdml.costs import COSTS, cost_matrix
from otdml.dml import (
    multi_similarity,
    recall_at_k,
    triplet_margin,
)
from otdml.dml.losses import LOSSES, NamedLoss
from otdml.losses import (
    SupCon,
    distortion,
    entropic_ot,
    gromov_monge_gap,
    mmd,
    mmd_self_term,
    monge_gap,
    sinkhorn_divergence,
    sinkhorn_divergence_matrix,
    sinkhorn_self_term,
    sliced_wasserstein,
)
from otdml.ot import (
    exact,
    exact_matrix,
    gromov,
    gromov_matrix,
    low_rank_sinkhorn,
    semidiscrete,
    sinkhorn,
    sinkhorn_barycenter,
    sinkhorn_matrix,
    sliced,
    soft_rank,
    soft_topk,
    wasserstein_1d,
)
from otdml.sphere import angle, distinct_directions, length, unit

pytestmark = TRANSFORMS

TIGHT = {"eps": 1.0, "tol": 1e-9, "max_iter": 5000}


X, Y, Z = drawn(5, 3), drawn(4, 3, seed=1), drawn(5, 3, seed=2)
S, T = drawn(5, seed=3), drawn(4, seed=4)
LABELS = torch.tensor([0, 0, 1, 2, 2])
AXES = drawn(2, 3, seed=7)


def weighted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same of logits: weights move on the simplex, where measures keep their mass."""
    return lambda x, y, s, t: function(x, y, s.softmax(-1), t.softmax(-1))


def paired(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, y, s: function(x, y, s.softmax(-1))


def tilted(values: Tensor) -> Tensor:
    """A sum with unequal factors."""
    return (values.flatten() * torch.linspace(-1, 1, values.numel(), dtype=values.dtype)).sum()


def of_proxies(loss: NamedLoss) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The function of a loss with proxies, points, and proxies: three classes, of three centres if it has several."""
    function, shape = getattr(otdml.dml, loss.function), loss.kind(3, 3).proxies.shape
    return lambda z, p: function(z, p, LABELS), (X, drawn(*(min(size, 3) for size in shape), seed=6))


def low_rank_objective(*measures: Tensor) -> Tensor:
    """Of which the value has the gradient."""
    result = low_rank_sinkhorn(*measures, rank=2, eps=1.0, tol=1e-9, max_iter=3000)
    return result.value + (result.eps * result.divergence).detach()


MEASURES = (X, Y, S, T)
ENTRIES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "unit": (lambda x: tilted(unit(x)), (X,)),
    "length": (lambda x: tilted(length(x)), (X,)),
    "angle": (lambda x, y: tilted(angle(unit(x), unit(y))), (X, Z)),
    "distinct_directions": (lambda x: tilted(distinct_directions(x)), (X,)),
    **{f"cost_matrix {c}": (lambda x, y, c=c: tilted(cost_matrix(x, y, c)), (X, Y)) for c in COSTS},
    **{
        f"cross_sum {k} {b}": (
            lambda x, a, y, w, k=k, b=b: kernel_sums.cross_sum(getattr(kernels, k)(), x, a, y, w, backend=b),
            (X, S, Y, T),
        )
        for k in ("gaussian", "laplacian", "inverse_multiquadric", "energy")
        for b in ("dense", "streamed")
    },
    **{
        f"pair_sum {b}": (lambda x, a, b=b: kernel_sums.pair_sum(kernels.riesz(2.0), x, a, backend=b), (X, S))
        for b in ("dense", "streamed")
    },
    "quadratic_form": (lambda x, a: kernel_sums.quadratic_form(kernels.gaussian(), x, a), (X, S)),
    "mmd": (weighted(mmd), MEASURES),
    "mmd streamed": (weighted(lambda *t: mmd(*t, kernel="energy", backend="streamed")), MEASURES),
    "mmd_self_term": (lambda x, s: mmd_self_term(x, s.softmax(-1)), (X, S)),
    "sliced_wasserstein": (weighted(lambda *t: sliced_wasserstein(*t, projections=AXES)), MEASURES),
    "sliced": (weighted(lambda *t: sliced(*t, projections=AXES, p=1.5)), MEASURES),
    "wasserstein_1d": (weighted(wasserstein_1d), (X[:, 0], Y[:, 0], S, T)),
    "exact": (lambda x, y: exact(x, y, S.softmax(-1), T.softmax(-1)).value, (X, Y)),
    "exact weights": (weighted(lambda *t: exact(*t).value), MEASURES),
    "exact_matrix": (lambda C: exact_matrix(C).value, (X @ Y.T,)),
    "entropic_ot": (weighted(lambda *t: entropic_ot(*t, **TIGHT)), MEASURES),
    "sinkhorn_divergence": (weighted(lambda *t: sinkhorn_divergence(*t, **TIGHT)), MEASURES),
    "sinkhorn_divergence_matrix": (
        lambda C, x, y: sinkhorn_divergence_matrix(C, x + x.mT, y + y.mT, S.softmax(-1), T.softmax(-1), **TIGHT),
        (X @ Y.T, X @ X.T, Y @ Y.T),
    ),
    "sinkhorn_self_term": (lambda x, s: sinkhorn_self_term(x, s.softmax(-1), **TIGHT), (X, S)),
    "sinkhorn": (weighted(lambda *t: sinkhorn(*t, **TIGHT).value), MEASURES),
    "sinkhorn unbalanced": (lambda *t: sinkhorn(*t, **TIGHT, rho=2.0).value, (X, Y, S.exp(), T.exp())),
    "sinkhorn_matrix": (lambda C: sinkhorn_matrix(C, **TIGHT).value, (X @ Y.T,)),
    "monge_gap": (paired(lambda *t: monge_gap(*t, **TIGHT)), (X, Z, S)),
    "distortion": (paired(distortion), (X, Z, S)),
    "gromov_monge_gap": (lambda x, y: gromov_monge_gap(x, y, eps=1e-2, tol=1e-6, max_iter=3000), (X, X + Z / 8)),
    "gromov": (lambda x, y: gromov(x, y, eps=0.1, tol=1e-8, max_iter=3000).gap, (X, X + Z / 8)),
    **{loss.function: of_proxies(loss) for loss in LOSSES.values() if loss.has_proxies},
    "multi_similarity": (lambda z: multi_similarity(z, LABELS), (X,)),
    "sinkhorn_barycenter": (
        lambda x, y, s: tilted(
            sinkhorn_barycenter(torch.stack([x, y]), s[:2].exp(), init=X[:3], eps=1.0, tol=1e-10).points
        ),
        (X, Z, S),
    ),
    "sinkhorn_barycenter on a support": (
        lambda x, y, s: tilted(
            sinkhorn_barycenter(torch.stack([x, y]), s[:2].exp(), support=2 * Y, eps=1.0, tol=1e-10).weights
        ),
        (X, Z, S),
    ),
    "low_rank_sinkhorn": (weighted(lambda *t: low_rank_objective(*t)), MEASURES),
    "sinkhorn of a mass": (weighted(lambda *t: sinkhorn(*t, **TIGHT, mass=0.6).value), MEASURES),
    "SupCon": (lambda z: SupCon(eps=0.5)(z, LABELS), (X,)),
    "recall_at_k": (lambda z: recall_at_k(z, LABELS, eps=0.4), (X,)),
    "soft_rank": (lambda s: tilted(soft_rank(s, eps=1.0, tol=1e-11)), (S,)),
    "soft_topk": (lambda s: tilted(soft_topk(s, 2, eps=0.5)), (S,)),
    "triplet_margin": (lambda z: triplet_margin(z, LABELS, margin=1.0), (X,)),
}
every = pytest.mark.parametrize("name", ENTRIES)


# Public names that are not differentiated here, and why: all others are functions with an entry above, or losses with a
# line in the contract of tests/losses, under their own name or under that of their Module.
NOT_DIFFERENTIATED = {
    "numbers, choices and names": "BACKENDS COSTS Cost Ground Kernel NamedCost REFERENCE_PROXY_WEIGHTS",
    "what a function returns": "BarycenterResult FitResult GromovResult LowRankResult OTResult SemidiscreteResult",
    "forms of a cost, of which solvers take the derivatives": "Bilinear Matrix Pointwise ground",
    "kernels, of which the sums have entries": "Mixture RadialKernel energy gaussian geodesic inverse_multiquadric "
    "laplacian logarithmic mixture riesz uniform_mean",
    "temperatures, which are constants": "default_temperature temperature_of_spread",
    "random points and circles": "great_circles uniform_points",
    "measures of how points lie, without gradients": "dispersion_metrics effective_rank frame_potential nearest_angles "
    "spherical_variance uniform_baseline uniform_smallest_angle retrieval_by_class retrieval_metrics RetrievalMetrics "
    "cluster_agreement smallest_squared_distance",
    "choices of points, pairs and batches": "couple hard_triplets semi_hard_triplets multi_similarity_pairs "
    "ClassBalancedBatchSampler",
    "an optimum that is found by steps of its own": "spherical_code",
    "copies and arguments": "pad_clouds DomainTarget",
    "parameters of a cost or of a layer, tested with what uses them": "ScaledCost UnitRows",
    "networks, training and files": "Dispersion EmbeddingHead EmbeddingIndex GradCache NIR ProxyDML TrainingConfig "
    "embed evaluate export_onnx export_safetensors fit flow_nll param_groups reference_flow CrossBatchMemory",
    "refused, see below": "semidiscrete",
    "of first order alone, see below": "gromov_matrix",
}


def public_names() -> set[str]:
    modules = (otdml.costs, otdml.dml, otdml.kernel_sums, kernels, otdml.losses, otdml.losses.dispersion)
    return {name for module in (*modules, otdml.ot, otdml.sphere) for name in module.__all__}


def plain_name(name: str) -> str:
    """What a function and its Module have in common."""
    return name.replace("_", "").lower()


def test_no_public_name_is_forgotten():
    explained = {name for names in NOT_DIFFERENTIATED.values() for name in names.split()}
    here = {plain_name(name.split()[0]) for name in ENTRIES}
    # Every Module of a loss has a line in the contract, which holds itself to that.
    modules = {n for n in otdml.losses.__all__ if isinstance(getattr(otdml.losses, n), type)} - explained
    covered = here | {plain_name(name) for name in modules}
    names = public_names()
    assert {name for name in names - explained if plain_name(name) not in covered} == set()
    assert explained - names == set()
    assert {name for name in explained if plain_name(name) in here} == set()


def entry(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    function, tensors = ENTRIES[name]
    return function, tuple(t.clone().requires_grad_() for t in tensors)


def found(find: Callable[[], Tensor | tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
    """What a transform gives, or None if it says that it cannot."""
    try:
        result = find()
    except (RuntimeError, NotImplementedError) as error:
        assert re.search(REFUSED, str(error)), error  # noqa: PT017 -- either answer is right.
        return None
    return result if isinstance(result, tuple) else (result,)


def same(result: tuple[Tensor, ...] | None, *expected: Tensor) -> None:
    if result is not None:
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@every
def test_gradients_are_finite_differences(name):
    function, tensors = entry(name)
    assert torch.autograd.gradcheck(function, tensors, eps=1e-5, atol=1e-4, rtol=1e-3, fast_mode=True)


@every
def test_second_derivatives_are_finite_differences(name):
    function, tensors = entry(name)
    ok = found(
        lambda: torch.tensor(
            torch.autograd.gradgradcheck(function, tensors, eps=1e-5, atol=1e-3, rtol=1e-3, fast_mode=True)
        )
    )
    assert ok is None or ok[0]


@every
@pytest.mark.parametrize("dual", [False, True], ids=["jvp", "dual numbers"])
def test_forward_mode(name, dual):
    function, tensors = entry(name)
    ways = [drawn(*t.shape, seed=9) for t in tensors]
    value = function(*tensors)
    slope = sum((g * v).sum() for g, v in zip(torch.autograd.grad(value, tensors), ways, strict=True))
    plain = tuple(t.detach() for t in tensors)

    def by_dual_numbers() -> tuple[Tensor, Tensor]:
        with forward_ad.dual_level():
            result = function(*(forward_ad.make_dual(p, v) for p, v in zip(plain, ways, strict=True)))
            primal, tangent = forward_ad.unpack_dual(result)
            # A tangent that is not there would be read as zero.
            return primal, torch.zeros_like(primal) if tangent is None else tangent

    result = found(by_dual_numbers if dual else lambda: torch.func.jvp(function, plain, tuple(ways)))
    same(result, value.detach(), slope)


@every
def test_grad_and_vmap_of_torch_func(name):
    function, tensors = entry(name)
    places, plain = tuple(range(len(tensors))), [t.detach() for t in tensors]
    several = [torch.stack([t, 1.1 * t, 0.9 * t]) for t in plain]
    values, slopes = [], []
    for one in zip(*several, strict=True):
        leaves = [t.clone().requires_grad_() for t in one]
        values.append(function(*leaves))
        slopes.append(torch.autograd.grad(values[-1], leaves))
    same(found(lambda: torch.func.grad(function, argnums=places)(*plain)), *slopes[0])
    same(found(lambda: torch.func.vmap(function)(*several)), torch.stack(values).detach())
    stacked = [torch.stack(parts) for parts in zip(*slopes, strict=True)]
    same(found(lambda: torch.func.vmap(torch.func.grad(function, argnums=places))(*several)), *stacked)


@every
def test_hessian_is_that_of_reverse_mode(name):
    function, tensors = entry(name)
    try:
        expected = torch.autograd.functional.hessian(function, tensors)[0][0]
    except (RuntimeError, NotImplementedError) as error:
        assert re.search(REFUSED, str(error)), error  # noqa: PT017 -- then nothing else is to be asked.
        return
    plain = [t.detach() for t in tensors]
    same(found(lambda: torch.func.hessian(function)(*plain)), expected)
    same(found(lambda: torch.func.jacrev(torch.func.jacfwd(function))(*plain)), expected)
    # A formula for the first derivative would be a constant to the outer one, and the Hessian zero.
    same(found(lambda: torch.func.jacfwd(torch.func.jacfwd(function))(*plain)), expected)


def test_gradients_of_gromov_matrix_are_finite_differences():
    def objective(x: Tensor, y: Tensor) -> Tensor:
        # The value has the gradient of the entropic objective.
        result = gromov_matrix(x @ x.mT, y @ y.mT, eps=2.0, tol=1e-9, max_iter=3000)
        return result.value + (result.eps * result.divergence).detach()

    tensors = X.clone().requires_grad_(), Y.clone().requires_grad_()
    assert torch.autograd.gradcheck(objective, tensors, eps=1e-5, atol=1e-4, rtol=1e-3)


def test_semidiscrete_is_refused_in_a_sentence():
    def value(y: Tensor) -> Tensor:
        return semidiscrete(X, y, n_samples=8, n_steps=2, generator=seeded()).value

    for transform in (torch.func.grad, torch.func.vmap, torch.func.hessian):
        assert (
            found(lambda transform=transform: transform(value)(Y if transform is not torch.func.vmap else Y[None]))
            is None
        )


@every
def test_several_gradients_at_once(name):
    function, tensors = entry(name)
    value = function(*tensors)
    slopes = torch.autograd.grad(value, tensors, retain_graph=True)
    factors = torch.tensor([1.0, -2.0], dtype=value.dtype)
    result = found(lambda: torch.autograd.grad(value, tensors, factors, is_grads_batched=True))
    same(result, *(torch.stack([g, -2 * g]) for g in slopes))


@every
def test_hessian_by_several_gradients_at_once(name):
    function, tensors = entry(name)
    try:
        expected = torch.autograd.functional.hessian(function, tensors)
    except (RuntimeError, NotImplementedError) as error:
        assert re.search(REFUSED, str(error)), error  # noqa: PT017 -- then nothing else is to be asked.
        return
    result = found(lambda: sum(torch.autograd.functional.hessian(function, tensors, vectorize=True), ()))
    same(result, *sum(expected, ()))
