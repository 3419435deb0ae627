"""What a device without double precision computes, as those of Apple are: the CPU plays one that refuses it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from otdml import _precision, losses
from otdml._precision import multiplies_in_bfloat16
from otdml.costs import cost_matrix
from otdml.kmeans import kmeans
from otdml.neighbors import nearest_neighbors
from otdml.ot import sinkhorn, sliced
from otdml.sphere import distinct_directions, great_circles, length, unit


class SinglePrecision(TorchDispatchMode):
    """Refuses every tensor of double precision."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_leaves(out)):
            raise TypeError(f"no double precision for {func}")
        return out


def seeded():
    return torch.Generator().manual_seed(3)


def orthonormality(p, q):
    return torch.stack([(u * v).sum(-1) for u, v in ((p, p), (p, q), (q, q))])


X, Y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (20, 15))
FAR = torch.cat([X, X + 1e-2 * X.roll(1, 0)]) + 50
CALLS = {
    "inner products": lambda: nearest_neighbors(X, Y, 2, backend="torch")[1],
    "nearest": lambda: nearest_neighbors(FAR, FAR, 2, metric="l2", backend="torch", exclude=torch.arange(40))[1],
    "copies": lambda: nearest_neighbors(X, Y[[0, 1, 0, 2]], 2, metric="l2", backend="torch")[1],
    "kmeans": lambda: kmeans(X, 3, backend="torch", generator=seeded())[0],
    "unit": lambda: unit(X),
    "length": lambda: length(torch.cat([X, 1e30 * X, 1e-30 * X, 0 * X])),
    "distinct directions": lambda: distinct_directions(torch.cat([X, X[:3], 0 * X[:1]])),
    # Draws are those of another precision: what depends on none of them.
    "sliced": lambda: sliced(X[:, :1], Y[:, :1], generator=seeded()),
    "sliced dispersion": lambda: losses.sliced_dispersion(X[:, :2], n_projections=1, generator=seeded()),
    "great circles": lambda: orthonormality(*great_circles(4, X, generator=seeded())),
    "mmd": lambda: losses.mmd(X, Y),
    "streamed mmd": lambda: losses.mmd(1e3 * X, 1e3 * Y, backend="streamed"),
    "koleo": lambda: losses.koleo(X),
    "dispersion": lambda: losses.kernel_dispersion(X),
    "alignment": lambda: losses.contrastive_alignment(X[:15], Y),
    "sinkhorn": lambda: sinkhorn(X, Y, eps=0.5).value,
    **{c: lambda c=c: cost_matrix(X, Y, c) for c in ("sqeuclidean", "cosine", "inner", "euclidean", "geodesic")},
}


@pytest.mark.parametrize("name", CALLS)
def test_results_without_double_precision_are_those_with_it(name, monkeypatch):
    expected = CALLS[name]()
    monkeypatch.setattr(_precision, "SINGLE_ONLY", ("cpu",))
    with SinglePrecision():
        found = CALLS[name]()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "native"),
    [("fma avx2", False), ("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16", True)],
)
def test_processors_that_multiply_in_bfloat16_are_known_by_their_flags(flags, native, monkeypatch):
    monkeypatch.setattr(_precision, "_processor_flags", lambda: frozenset(flags.split()))
    assert multiplies_in_bfloat16(torch.device("cpu")) == native
    assert not multiplies_in_bfloat16(torch.device("mps"))
