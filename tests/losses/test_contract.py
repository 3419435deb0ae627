"""The laws that every loss obeys; a new loss joins by one line in ``LOSSES``.

A line names the kind of arguments, makes a fresh Module, and states which laws do not apply and why:

========  =====================  ==========================================================
kind      call                   meaning
========  =====================  ==========================================================
measures  ``(x, y, a, b)``       two weighted clouds
paired    ``(x, y, a)``          row i of ``y`` is the image of row i of ``x``
points    ``(z)``                one cloud
views     ``(z1, z2)``           two views of the same rows
========  =====================  ==========================================================
"""

import copy
import functools
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from draws import seeded
from torch import Tensor, nn
from torch.autograd import forward_ad
from transforms import REFUSED, TRANSFORMS

import otdml.losses
from otdml.losses import (
    BYOL,
    GCAINCE,
    GCARINCE,
    GCAUOT,
    MMD,
    RINCE,
    ContrastiveAlignment,
    Distortion,
    EntropicOT,
    FusedGromovWasserstein,
    GromovMongeGap,
    InfoNCE,
    KernelDispersion,
    KoLeo,
    LloydDispersion,
    MaxCosine,
    MaxMinAngle,
    MMDToGaussian,
    MMDToUniform,
    MongeGap,
    SIGReg,
    SinkhornDivergence,
    SlicedDispersion,
    SlicedWasserstein,
    SlicedWassersteinToUniform,
)


@dataclass(frozen=True)
class Loss:
    """One line of the contract."""

    name: str
    kind: str
    make: Callable[[], nn.Module]
    without: dict[str, str] = field(default_factory=dict)

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self.make()(*tensors)

    @property
    def weighted(self) -> bool:
        return self.kind in ("measures", "paired")


ASYMMETRIC = "it scores a map, and the image comes second"
BIASED = "the entropy blurs the plan, so the value of equal measures is not zero"
BELOW_ZERO = "the entropy blurs the plan, so the gap of an optimal map is below zero"
DRAWS = {"compile": "a graph takes no torch.Generator; without one slices compile, see test_sliced.py"}
STOPS = {"compile": "the solver stops on convergence, which reads a number from the device"}
ONE_WAY = {"symmetry": "the anchors are those of the first view"}

OF_ENTROPY = "it is that of the entropic objective, which the value leaves out; see tests/ot/_gromov"
FUSED = {
    **STOPS,
    "zero on equal measures": BIASED,
    "gradient": OF_ENTROPY,
    "gradient of weights": OF_ENTROPY,
    "one space": "only features need be of one space",
}

PAIRS = dict.fromkeys(
    ("zero on equal measures", "nonnegative", "doubled point", "one point"),
    "the U-statistic leaves out the pairs of a point with itself, which the law counts",
)
PAIRS_BY_INDEX = (
    "the scale is found from pairs by index, or in blocks of rows, of which the compiler takes the number as fixed"
)
MEDIAN = "the median distance is one of points, and does not look at the size of their weights"
FROZEN = "the bandwidth carries no gradient; see test_mmd.py"
PLAIN = {"repr": "it has no parameter"}
TRACED = {"compile": "tracing a custom function warns of a deprecation within torch"}


class OfOwnFeatures(nn.Module):
    """A fused loss whose features are the points themselves."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return self.loss(x, y, a, b, features=(x, y))

    def extra_repr(self) -> str:
        return self.loss.extra_repr()


LOSSES = [
    Loss("distortion", "paired", Distortion),
    Loss(
        "entropic_ot",
        "measures",
        lambda: EntropicOT(eps=2.0, tol=2e-6),
        {**STOPS, "zero on equal measures": BIASED},
    ),
    Loss(
        "entropic_ot unbalanced",
        "measures",
        lambda: EntropicOT(cost="cosine", eps=0.5, rho=(2.0, None), tol=2e-6, backend="streamed"),
        {
            **STOPS,
            "zero on equal measures": BIASED,
            "symmetry": "the penalty is on the first measure alone",
        },
    ),
    Loss(
        "fused_gromov_wasserstein",
        "measures",
        lambda: OfOwnFeatures(FusedGromovWasserstein(alpha=0.5, eps=20.0, tol=1e-8, max_iter=2000)),
        FUSED,
    ),
    Loss(
        "fused_gromov_wasserstein partial",
        "measures",
        lambda: OfOwnFeatures(FusedGromovWasserstein(alpha=0.5, eps=20.0, mass=0.7, tol=1e-8, max_iter=2000)),
        FUSED,
    ),
    Loss(
        "fused_gromov_wasserstein unbalanced",
        "measures",
        lambda: FusedGromovWasserstein(eps=20.0, rho=20.0, tol=1e-8, max_iter=2000),
        FUSED,
    ),
    Loss(
        "gromov_monge_gap",
        "paired",
        lambda: GromovMongeGap(eps=1e-2, tol=1e-5, max_iter=2000),
        {**STOPS, "nonnegative": BELOW_ZERO, "gradient of weights": OF_ENTROPY},
    ),
    Loss(
        "monge_gap",
        "paired",
        lambda: MongeGap(eps=2.0, tol=2e-6),
        {**STOPS, "nonnegative": BELOW_ZERO, "zero on equal measures": BIASED},
    ),
    Loss(
        "monge_gap euclidean",
        "paired",
        lambda: MongeGap(cost="euclidean", eps=0.5, tol=2e-6, backend="streamed"),
        {**STOPS, "nonnegative": BELOW_ZERO, "zero on equal measures": BIASED},
    ),
    Loss("sinkhorn_divergence", "measures", lambda: SinkhornDivergence(eps=2.0, tol=2e-6), STOPS),
    Loss(
        "sinkhorn_divergence kept",
        "measures",
        lambda: SinkhornDivergence(cost="euclidean", eps=0.5, tol=2e-6, backend="streamed", cache_second=True),
        STOPS,
    ),
    Loss(
        "sinkhorn_divergence unbalanced",
        "measures",
        lambda: SinkhornDivergence(eps=2.0, rho=3.0, tol=2e-6),
        STOPS,
    ),
    Loss("sliced_wasserstein", "measures", lambda: SlicedWasserstein(n_projections=8, generator=seeded()), DRAWS),
    Loss(
        "sliced_wasserstein_1", "measures", lambda: SlicedWasserstein(n_projections=8, p=1.0, generator=seeded()), DRAWS
    ),
    Loss("mmd", "measures", MMD),
    Loss("mmd_kept", "measures", lambda: MMD(cache_second=True), {"compile": "a graph holds no weak reference"}),
    Loss("mmd_laplacian", "measures", lambda: MMD(kernel="laplacian", bandwidth=[0.5, 2.0])),
    Loss("mmd_energy", "measures", lambda: MMD(kernel="energy", backend="streamed"), TRACED),
    Loss(
        "mmd_imq",
        "measures",
        lambda: MMD(kernel="imq", bandwidth="median"),
        {"doubled point": MEDIAN, "gradient": FROZEN, "second derivatives": FROZEN, "compile once": PAIRS_BY_INDEX},
    ),
    Loss("mmd_unbiased", "measures", lambda: MMD(unbiased=True), PAIRS),
    Loss(
        "mmd_unbiased_streamed",
        "measures",
        lambda: MMD(kernel="laplacian", unbiased=True, backend="streamed"),
        PAIRS | TRACED,
    ),
    Loss("kernel_dispersion", "points", KernelDispersion),
    Loss(
        "kernel_dispersion_riesz",
        "points",
        lambda: KernelDispersion(kernel="riesz", distance="geodesic", log=True),
        {"compile once": PAIRS_BY_INDEX},
    ),
    Loss("mmd_to_uniform", "points", lambda: MMDToUniform(kernel="laplacian")),
    Loss("mmd_to_gaussian", "points", MMDToGaussian),
    Loss("mmd_to_gaussian_unbiased", "points", lambda: MMDToGaussian(bandwidth=(0.7, 2.0), unbiased=True)),
    Loss("mmd_to_gaussian_streamed", "points", lambda: MMDToGaussian(backend="streamed"), TRACED),
    Loss("sigreg", "points", lambda: SIGReg(generator=seeded()), DRAWS),
    Loss("koleo", "points", lambda: KoLeo(k=2)),
    Loss("max_min_angle", "points", MaxMinAngle, PLAIN),
    Loss("max_cosine", "points", MaxCosine, PLAIN),
    Loss("lloyd_dispersion", "points", lambda: LloydDispersion(generator=seeded()), DRAWS),
    Loss("sliced_dispersion", "points", lambda: SlicedDispersion(generator=seeded()), DRAWS),
    Loss("contrastive_alignment", "views", lambda: ContrastiveAlignment(form="joint")),
    Loss(
        "contrastive_alignment balanced",
        "views",
        lambda: ContrastiveAlignment(marginals="balanced", form="two-way", tol=1e-6),
        STOPS,
    ),
    Loss(
        "contrastive_alignment unbalanced rince",
        "views",
        lambda: ContrastiveAlignment(marginals=0.7, divergence="kl+rince", form="joint", tol=1e-6),
        STOPS,
    ),
    Loss("infonce", "views", lambda: InfoNCE(eps=0.5), ONE_WAY),
    Loss("rince", "views", lambda: RINCE(eps=0.5), ONE_WAY),
    Loss("gca_ince", "views", lambda: GCAINCE(eps=0.5, tol=1e-6), STOPS),
    Loss("gca_rince", "views", lambda: GCARINCE(eps=0.5, tol=1e-6), STOPS | ONE_WAY),
    Loss("gca_uot", "views", lambda: GCAUOT(eps=0.5, tol=1e-6), STOPS | ONE_WAY),
    Loss("byol", "views", BYOL),
    Loss("sliced_to_uniform", "points", lambda: SlicedWassersteinToUniform(unbiased=True, generator=seeded()), DRAWS),
    Loss("sliced_dispersion_axes", "points", lambda: SlicedDispersion(axis_aligned=True, generator=seeded()), DRAWS),
]
LAWS: set[str] = set()


def obeys(law: str, *kinds: str):
    """Parametrise a test over the losses of these kinds (all, if none is named) that do not waive ``law``."""
    LAWS.add(law)
    losses = [loss for loss in LOSSES if (loss.kind in kinds or not kinds) and law not in loss.without]
    return pytest.mark.parametrize("loss", losses, ids=lambda loss: loss.name)


def points_of(loss: Loss, batch: tuple[int, ...] = (), seed: int = 0, dtype: torch.dtype = torch.float64):
    """Random points: 6 and 5 of them for two measures, 6 and their images else."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*batch, n, 3, generator=generator, dtype=torch.float64) for n in (6, 5))
    noise = torch.randn(*batch, 6, 3, generator=generator, dtype=torch.float64)
    second = {"measures": [y], "paired": [x + 0.4 * noise], "views": [x + 0.4 * noise], "points": []}[loss.kind]
    return [t.to(dtype) for t in (x, *second)]


def weights_of(loss: Loss, points: list[Tensor], uniform: bool = False) -> list[Tensor]:
    """Weights of mass one for each measure: two for ``measures``, one for ``paired``."""
    clouds = {"measures": points, "paired": points[:1]}.get(loss.kind, [])
    generator = torch.Generator().manual_seed(7)
    raw = [torch.rand(x.shape[:-1], generator=generator, dtype=torch.float64) + 0.5 for x in clouds]
    raw = [torch.ones_like(a) if uniform else a for a in raw]
    return [(a / a.sum(-1, keepdim=True)).to(points[0].dtype) for a in raw]


def close(actual: Tensor, expected: Tensor, tol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


@obeys("zero on equal measures", "measures", "paired")
def test_zero_on_equal_measures(loss):
    x = points_of(loss)[0]
    close(loss(x, x.clone()), x.new_zeros(()))


@obeys("zero on equal measures", "measures")
def test_zero_on_equal_weighted_measures(loss):
    points = points_of(loss)
    x, a = points[0], weights_of(loss, points)[0]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    close(loss(x, x[order], a, a[order]), x.new_zeros(()))


@obeys("nonnegative", "measures", "paired")
@pytest.mark.parametrize("seed", range(5))
def test_nonnegative(loss, seed):
    points = points_of(loss, seed=seed)
    assert loss(*points) > 0
    assert loss(*points, *weights_of(loss, points)) > 0


@obeys("symmetry", "measures", "paired", "views")
def test_symmetry(loss):
    points = points_of(loss)
    weights = weights_of(loss, points)
    swapped = weights[::-1] if loss.kind == "measures" else weights
    close(loss(*points[::-1], *swapped), loss(*points, *weights))


@obeys("doubled point", "measures")
def test_doubled_point_is_doubled_weight(loss):
    x, y = points_of(loss)
    doubled = torch.full((7,), 1 / 7, dtype=x.dtype)
    once = torch.tensor([2, 1, 1, 1, 1, 1], dtype=x.dtype) / 7
    close(loss(torch.cat([x, x[:1]]), y, doubled, None), loss(x, y, once, None))


@obeys("doubled point", "paired")
def test_doubled_pair_is_doubled_weight(loss):
    x, y = points_of(loss)
    once = torch.tensor([2, 1, 1, 1, 1, 1], dtype=x.dtype) / 7
    close(loss(torch.cat([x, x[:1]]), torch.cat([y, y[:1]])), loss(x, y, once))


@obeys("zero weight", "measures", "paired")
def test_point_of_no_weight_is_absent(loss):
    points = points_of(loss)
    a = torch.tensor([1, 1, 1, 1, 1, 0], dtype=points[0].dtype) / 5
    present = [p[:5] for p in points] if loss.kind == "paired" else [points[0][:5], points[1]]
    close(loss(*points, a), loss(*present))


@obeys("uniform weights", "measures", "paired")
def test_no_weights_are_uniform_weights(loss):
    points = points_of(loss)
    close(loss(*points, *weights_of(loss, points, uniform=True)), loss(*points))


@obeys("permutation")
def test_order_of_points_is_immaterial(loss):
    points = points_of(loss)
    weights = weights_of(loss, points)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    together = loss.kind != "measures"
    shuffled = [p[order] if together or i == 0 else p.flip(0) for i, p in enumerate(points)]
    reweighted = [a[order] if together or i == 0 else a.flip(0) for i, a in enumerate(weights)]
    close(loss(*shuffled, *reweighted), loss(*points, *weights))


@obeys("batch")
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_batch_is_loop(loss, weighted):
    if weighted and not loss.weighted:
        pytest.skip("takes no weights")
    points = points_of(loss, batch=(2, 3))
    tensors = points + (weights_of(loss, points) if weighted else [])
    expected = [[loss(*(t[i, j] for t in tensors)) for j in range(3)] for i in range(2)]
    actual = loss(*tensors)
    assert actual.shape == (2, 3)
    close(actual, torch.stack([torch.stack(row) for row in expected]))


@obeys("no problems")
def test_a_batch_of_no_problems_has_no_values(loss):
    points = [p.requires_grad_() for p in points_of(loss, batch=(0,))]
    value = loss(*points)
    assert value.shape == (0,)
    value.sum().backward()
    assert all(p.grad.shape == p.shape for p in points)


@obeys("scalar")
def test_one_problem_gives_a_scalar(loss):
    assert loss(*points_of(loss)).shape == ()


@obeys("gradient")
def test_gradient_of_points(loss):
    points = [p.requires_grad_() for p in points_of(loss)]
    assert torch.autograd.gradcheck(loss, points, eps=1e-5, atol=1e-5, rtol=1e-3)


@obeys("gradient of weights", "measures", "paired")
def test_gradient_of_weights(loss):
    points = points_of(loss)
    weights = weights_of(loss, points)

    def along(*logits: Tensor) -> Tensor:
        # Weights move on the simplex: without a marginal penalty nothing else is a measure of the same mass.
        return loss(*points, *(t.softmax(-1) for t in logits))

    logits = [a.log().requires_grad_() for a in weights]
    assert torch.autograd.gradcheck(along, logits, eps=1e-5, atol=1e-5, rtol=1e-3)


def right_or_refused(find: Callable[[], Tensor | tuple[Tensor, ...]], *expected: Tensor, tol: float = 1e-5) -> None:
    """A transform gives what differentiation in the plain way gives, or says that it cannot."""
    try:
        found = find()
    except (RuntimeError, NotImplementedError) as error:
        assert re.search(REFUSED, str(error)), error  # noqa: PT017 -- either answer is right.
    else:
        for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
            close(one, other, tol)


def value_and_gradients(loss: Loss, points: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [p.clone().requires_grad_() for p in points]
    value = loss(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


@obeys("grad of torch.func")
def test_grad_of_torch_func(loss):
    points = points_of(loss)
    _, gradients = value_and_gradients(loss, points)
    places = tuple(range(len(points)))
    right_or_refused(lambda: torch.func.grad(loss, argnums=places)(*points), *gradients)


@obeys("vmap")
def test_vmap(loss):
    points = points_of(loss, batch=(3,))
    expected = torch.stack([loss(*one) for one in zip(*points, strict=True)])
    right_or_refused(lambda: torch.func.vmap(loss, randomness="same")(*points), expected)


@obeys("vmap of grad")
def test_vmap_of_grad(loss):
    points = points_of(loss, batch=(3,))
    each = [value_and_gradients(loss, [p[i] for p in points])[1] for i in range(3)]
    places = tuple(range(len(points)))
    gradient = torch.func.vmap(torch.func.grad(loss, argnums=places), randomness="same")
    right_or_refused(lambda: gradient(*points), *(torch.stack(parts) for parts in zip(*each, strict=True)))


@obeys("forward mode")
@TRANSFORMS
@pytest.mark.parametrize("dual", [False, True], ids=["jvp", "dual numbers"])
def test_forward_mode(loss, dual):
    points = points_of(loss)
    value, gradients = value_and_gradients(loss, points)
    ways = [torch.randn(p.shape, generator=seeded(), dtype=p.dtype) for p in points]
    slope = sum((g * v).sum() for g, v in zip(gradients, ways, strict=True))

    def by_dual_numbers() -> tuple[Tensor, Tensor]:
        with forward_ad.dual_level():
            moving = (forward_ad.make_dual(p, v) for p, v in zip(points, ways, strict=True))
            primal, tangent = forward_ad.unpack_dual(loss(*moving))
            # A tangent that is not there would be read as zero.
            return primal, torch.zeros_like(primal) if tangent is None else tangent

    find = by_dual_numbers if dual else lambda: torch.func.jvp(loss, tuple(points), tuple(ways))
    right_or_refused(find, value, slope)


@obeys("second derivatives")
def test_second_derivatives(loss):
    points = [p.requires_grad_() for p in points_of(loss)]
    ways = [torch.randn(p.shape, generator=seeded(), dtype=p.dtype) for p in points]

    def slope(sign: float) -> tuple[Tensor, ...]:
        moved = [p.detach() + sign * step * v for p, v in zip(points, ways, strict=True)]
        return value_and_gradients(loss, moved)[1]

    # Wide enough for what solvers leave of their tolerance.
    step = 1e-3
    numeric = [(up - down) / (2 * step) for up, down in zip(slope(1), slope(-1), strict=True)]

    def along() -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(loss(*points), points, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(gradients, ways, strict=True)), points)

    right_or_refused(along, *numeric, tol=3e-3)


@obeys("hessian of torch.func")
@TRANSFORMS
def test_hessian_of_torch_func(loss):
    points = [p.requires_grad_() for p in points_of(loss)]
    try:
        expected = torch.autograd.functional.hessian(loss, tuple(points))[0][0]
    except RuntimeError as error:
        assert re.search(REFUSED, str(error)), error  # noqa: PT017 -- then nothing else is to be asked.
        return
    rest = [p.detach() for p in points[1:]]
    for inner in (torch.func.jacrev, functools.partial(torch.func.jacfwd, randomness="same")):
        gradient = inner(lambda x: loss(x, *rest))
        hessian = torch.func.jacfwd(gradient, randomness="same")
        right_or_refused(lambda hessian=hessian: hessian(points[0].detach()), expected)


@obeys("dtype")
@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_dtype(loss, given, returned):
    points = [p.requires_grad_() for p in points_of(loss, dtype=given)]
    value = loss(*points)
    assert value.dtype == returned
    value.backward()
    assert all(p.grad.dtype == given and p.grad.isfinite().all() for p in points)


@obeys("float32")
def test_float32_agrees_with_float64(loss):
    points = points_of(loss)
    tensors = points + weights_of(loss, points)
    close(loss(*(t.float() for t in tensors)).double(), loss(*tensors), tol=1e-3)


@obeys("autocast")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(loss, dtype):
    points = points_of(loss, dtype=torch.float32)
    tensors = [t.requires_grad_() for t in points] + weights_of(loss, points)
    value = loss(*tensors)
    gradients = torch.autograd.grad(value, points)
    with torch.autocast("cpu", dtype):
        cast = loss(*tensors)
    assert cast.dtype == torch.float32
    close(cast, value)
    for actual, expected in zip(torch.autograd.grad(cast, points), gradients, strict=True):
        close(actual, expected)


@obeys("device")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device(loss):
    points = points_of(loss, dtype=torch.float32)
    tensors = points + weights_of(loss, points)
    on_gpu = [t.cuda().requires_grad_() for t in tensors]
    value = loss.make().cuda()(*on_gpu)
    assert value.device == on_gpu[0].device
    close(value.cpu(), loss(*tensors), tol=1e-4)
    value.backward()
    assert on_gpu[0].grad.isfinite().all()


@obeys("pickling")
def test_pickling(loss):
    module = loss.make()
    points = points_of(loss)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        close(twin(*points), loss(*points), tol=0)


@obeys("repr")
def test_repr_shows_the_parameters(loss):
    module = loss.make()
    assert repr(module).startswith(type(module).__name__ + "(")
    assert module.extra_repr()


@obeys("compile")
def test_compiles_in_one_graph(loss):
    torch._dynamo.reset()
    points = points_of(loss, dtype=torch.float32)
    compiled = torch.compile(loss.make(), fullgraph=True, backend="aot_eager")
    close(compiled(*points), loss(*points), tol=1e-5)


@obeys("compile once")
@pytest.mark.slow
def test_compiles_once_for_all_numbers_of_points(loss):
    if "compile" in loss.without:
        pytest.skip(loss.without["compile"])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    points = points_of(loss, dtype=torch.float32)
    compiled = torch.compile(loss.make(), fullgraph=True, backend="aot_eager")
    for left_out in range(4):
        fewer = [p[left_out:] for p in points]
        close(compiled(*fewer), loss(*fewer), tol=1e-5)
    # One for the first number, and one for all others.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@obeys("compile with breaks")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles_with_breaks_in_the_graph(loss):
    torch._dynamo.reset()
    points = points_of(loss, dtype=torch.float32)
    expected, gradients = value_and_gradients(loss, points)
    leaves = [p.requires_grad_() for p in points]
    value = torch.compile(loss.make(), backend="aot_eager")(*leaves)
    close(value.detach(), expected, tol=1e-4)
    for found, gradient in zip(torch.autograd.grad(value, leaves), gradients, strict=True):
        close(found, gradient, tol=1e-4)


@obeys("gradient mode")
def test_gradient_mode_is_left_alone(loss):
    points = [p.requires_grad_() for p in points_of(loss)]
    with torch.no_grad():
        assert not loss(*points).requires_grad
        assert not torch.is_grad_enabled()
    assert loss(*points).requires_grad


@obeys("scaled loss")
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradient_of_a_scaled_loss_is_the_scaled_gradient(loss, scale):
    points = [p.requires_grad_() for p in points_of(loss, dtype=torch.float32)]
    _, expected = value_and_gradients(loss, points)
    for gradient, right in zip(torch.autograd.grad(scale * loss(*points), points), expected, strict=True):
        close(gradient / scale, right, 1e-4)


@obeys("scaled loss")
def test_gradient_of_a_loss_that_overflows_is_not_finite(loss):
    # A scaler of gradients looks for that, and leaves the step out.
    points = [p.requires_grad_() for p in points_of(loss, dtype=torch.float32)]
    for gradient in torch.autograd.grad(torch.inf * loss(*points), points):
        assert not gradient.isfinite().all()


@obeys("not a number")
@pytest.mark.parametrize("position", [0, 1])
def test_not_a_number_is_not_hidden(loss, position):
    points = points_of(loss)
    points[min(position, len(points) - 1)][0, 0] = torch.nan
    try:
        value = loss(*points)
    except ValueError as error:
        assert "finite" in str(error) or "NaN" in str(error)  # noqa: PT017 -- either answer is right.
    else:
        assert not value.isfinite()


@obeys("one point", "measures", "paired")
def test_one_point(loss):
    points = [p[:1].clone().requires_grad_() for p in points_of(loss)]
    value = loss(*points)
    close(value, loss(*points, *weights_of(loss, points)))
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, points))


@obeys("points that meet", "measures", "paired", "points")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_that_meet_have_a_gradient(loss, dtype):
    x, *rest = points_of(loss, dtype=dtype)
    points = [p.requires_grad_() for p in (torch.cat([x[:1], x[:-1]]), *(x[: len(p)].clone() for p in rest))]
    value = loss(*points)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, points))


@obeys("layout")
def test_layout_in_memory_is_immaterial(loss):
    points = points_of(loss, batch=(2,))
    tensors = points + weights_of(loss, points)
    # The batch axis last in memory, and one batch element expanded.
    close(loss(*(t.movedim(0, -1).contiguous().movedim(-1, 0) for t in tensors)), loss(*tensors))
    close(loss(*(t[:1].expand_as(t) for t in tensors)), loss(*(t[0] for t in tensors)).expand(2))
    # A negation that is due, of which NumPy knows nothing.
    close(loss(*(torch.complex(t, -t).conj().imag[0] for t in tensors)), loss(*(t[0] for t in tensors)))


@obeys("inputs untouched")
def test_inputs_are_left_alone(loss):
    points = points_of(loss)
    tensors = points + weights_of(loss, points)
    before = [t.clone() for t in tensors]
    loss(*tensors)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


@obeys("errors")
def test_error_points_that_are_no_tensor(loss):
    _, *rest = points_of(loss)
    with pytest.raises(TypeError, match=r"`\w+` must be a torch.Tensor, got list"):
        loss([[0.0]], *rest)


@obeys("errors")
def test_error_integer_points(loss):
    points = [torch.ones(p.shape, dtype=torch.long) for p in points_of(loss)]
    with pytest.raises(TypeError, match=r"`\w+` must be of floating point, got torch.int64. Convert it"):
        loss(*points)


@obeys("errors")
def test_error_no_points(loss):
    points = [p[:0] for p in points_of(loss)]
    with pytest.raises(ValueError, match=r"`\w+` must have shape .* with n, d >= 1, got \(0, 3\)"):
        loss(*points)


@obeys("errors")
def test_error_missing_axis(loss):
    points = [p[:, 0] for p in points_of(loss)]
    with pytest.raises(ValueError, match=r"`\w+` must have shape .*, got \(6,\). Write `\w+\[:, None\]`"):
        loss(*points)


@obeys("errors", "measures", "paired")
def test_error_weights_of_another_length(loss):
    points = points_of(loss)
    with pytest.raises(ValueError, match=r"`a` must hold one weight per point, shape \(6,\), got \(4,\). Pass None"):
        loss(*points, torch.full((4,), 0.25, dtype=torch.float64))


@obeys("errors", "measures")
def test_error_weights_of_the_second_measure(loss):
    points = points_of(loss)
    with pytest.raises(ValueError, match=r"`b` must hold one weight per point, shape \(5,\), got \(6,\). Pass None"):
        loss(*points, None, torch.full((6,), 1 / 6, dtype=torch.float64))


@obeys("errors", "measures", "paired")
def test_error_integer_weights(loss):
    points = points_of(loss)
    with pytest.raises(TypeError, match=r"`a` must be of floating point, got torch.int64. Convert it"):
        loss(*points, torch.ones(6, dtype=torch.long))


@obeys("one space", "measures")
def test_error_other_features(loss):
    x, y = points_of(loss)
    with pytest.raises(ValueError, match=r"`y` must have the features of `x`, 3, got 2. Use a Gromov loss"):
        loss(x, y[:, :2])


@obeys("errors", "measures", "paired", "views")
def test_error_unequal_batches(loss):
    (x, _), (_, y) = points_of(loss, batch=(2,)), points_of(loss, batch=(3,))
    with pytest.raises(ValueError, match=r"`\w+` must have the batch dimensions of `\w+`, \(2,\), got \(3,\)"):
        loss(x, y)


@obeys("shared by a batch", "measures", "paired")
def test_what_has_no_batch_is_shared_by_all_of_it(loss):
    points = points_of(loss, batch=(2, 3))
    weights = weights_of(loss, points)
    for tensors in (points, points + weights):
        for i, t in enumerate(tensors):
            shared = [t[:1, 0] if i == j else other for j, other in enumerate(tensors)]
            close(loss(*shared), loss(*(s.expand(2, 3, *s.shape[1:]) if i == j else s for j, s in enumerate(shared))))


@obeys("errors", "measures", "paired")
@pytest.mark.parametrize("position", [0, 1])
def test_error_negative_weights(loss, position):
    points = points_of(loss)
    weights = weights_of(loss, points)
    if position == len(weights):
        pytest.skip("takes one measure's weights")
    weights[position] = weights[position] + torch.tensor([-1.0, 1.0, *[0.0] * (len(weights[position]) - 2)])
    with pytest.raises(ValueError, match=r"`[ab]` must hold no negative weight, got -0"):
        loss(*points, *weights)


@obeys("errors", "paired", "views")
def test_error_unequal_rows(loss):
    x, y = points_of(loss)
    with pytest.raises(ValueError, match=r"`\w+` must hold one row per row of `\w+`, 6, got 5"):
        loss(x, y[:5])


def test_every_loss_is_in_the_contract():
    public = (getattr(otdml.losses, name) for name in otdml.losses.__all__)
    modules = {one for one in public if isinstance(one, type) and issubclass(one, nn.Module)}
    # A learnt cost is an argument of losses, and one loss takes labels with one view or two; see test_named.py.
    made = {type(loss.make()) for loss in LOSSES} - {OfOwnFeatures}
    assert made == modules - {otdml.losses.ScaledCost, otdml.losses.SupCon}


def test_waived_laws_exist_and_say_why():
    for loss in LOSSES:
        assert set(loss.without) <= LAWS
        assert all(loss.without.values())


def test_names_are_unique():
    names = [loss.name for loss in LOSSES]
    assert len(set(names)) == len(names)
