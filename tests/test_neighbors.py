"""Nearest neighbours against sorting every score."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from otdml import _faiss, neighbors
from otdml.neighbors import Gallery, nearest_center, nearest_neighbors

BACKENDS = ["faiss", "torch"]


def every(x: Tensor, y: Tensor, k: int, metric: str, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All scores in float64, sorted; equal ones in order of index."""
    x, y = x.double(), y.double()
    # Copies of an item have one score: a product may round them differently, in float64 too.
    distinct, which = y.unique(dim=0, return_inverse=True)
    scores = x @ distinct.T if metric == "inner" else -(x[:, None] - distinct).square().sum(-1)
    scores = scores[:, which]
    if exclude is not None:
        scores[torch.arange(len(x)), exclude] = -torch.inf
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    return (values if metric == "inner" else -values)[:, :k], indices[:, :k]


def integers(n: int, d: int, low: int, high: int, seed: int = 0) -> Tensor:
    """Points whose scores are exact in float32, with many ties."""
    return torch.randint(low, high, (n, d), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["inner", "l2"])
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(2, 60), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.data())
def test_ties_go_to_the_lower_index(backend, metric, n, m, d, spread, seed, data):
    x, y = integers(n, d, -spread, spread + 1, seed), integers(m, d, -spread, spread + 1, seed + 1)
    exclude = torch.randint(m, (n,)) if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, m - (exclude is not None)))
    values, indices = nearest_neighbors(x, y, k, metric=metric, exclude=exclude, backend=backend)
    expected_values, expected = every(x, y, k, metric, exclude)
    assert torch.equal(values.double(), expected_values)
    assert torch.equal(indices, expected)


@pytest.mark.parametrize("metric", ["inner", "l2"])
@pytest.mark.parametrize("k", [1, 20, 150, 499])
def test_both_ways_agree_on_random_points(metric, k, generator):
    x = torch.randn(500, 16, generator=generator)
    own = torch.arange(500)
    expected, order = every(x, x, k, metric, own)
    for backend in BACKENDS:
        values, indices = nearest_neighbors(x, x, k, metric=metric, exclude=own, backend=backend)
        torch.testing.assert_close(values.double(), expected, atol=2e-5, rtol=1e-5)
        assert (indices == order).double().mean() > 0.999  # Rounding may swap two neighbours.
        assert (indices != own[:, None]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_oneself_is_left_out_even_among_many_duplicates(backend):
    # With more duplicates than results, a search returns some rows without the query itself.
    x = torch.ones(300, 4)
    values, indices = nearest_neighbors(x, x, 5, exclude=torch.arange(300), backend=backend)
    assert torch.equal(values, torch.full((300, 5), 4.0))
    assert torch.equal(indices[0], torch.arange(1, 6))
    assert torch.equal(indices[3], torch.tensor([0, 1, 2, 4, 5]))
    assert torch.equal(indices[299], torch.arange(5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_distance_of_copies_is_zero_without_a_sign(backend):
    distances, _ = nearest_neighbors(torch.ones(3, 2), torch.ones(2, 2), 1, metric="l2", backend=backend)
    assert distances.equal(torch.zeros(3, 1))
    assert not distances.signbit().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_of_an_item_tie_whatever_the_rounding(backend, generator):
    # Without care, a fiftieth of these neighbours come in another order: copies differ in the last digit.
    distinct = torch.randn(1500, 128, generator=generator)
    y = distinct[torch.randint(1500, (3001,), generator=generator)]
    own = torch.arange(1000)
    _, indices = nearest_neighbors(y[:1000], y, 12, exclude=own, backend=backend)
    assert torch.equal(indices, every(y[:1000], y, 12, "inner", own)[1])


def test_rows_are_copies_only_if_all_their_coordinates_agree(generator):
    y = torch.randn(60, 20, generator=generator)
    y[:, :8] = y[0, :8]
    y[40:] = y[:20]
    y[41, 19] += 1
    first = torch.arange(60)
    first[40:] = torch.arange(20)
    first[41] = 41
    assert torch.equal(neighbors._first_copies(y), first)
    assert torch.equal(neighbors._first_copies(y[:40]), torch.arange(40))
    # Zero has a sign, and equals its negative.
    signs = torch.tensor([[0.0, 1.0], [0.0, -1.0], [-0.0, 1.0], [1.0, 0.0]])
    for dtype in (torch.float32, torch.float64):
        assert neighbors._first_copies(signs.to(dtype)).tolist() == [0, 1, 0, 3]


def test_rows_of_one_key_need_not_be_copies(monkeypatch):
    monkeypatch.setattr(neighbors, "_keys", lambda y: torch.zeros(len(y)))
    assert neighbors._first_copies(torch.tensor([[2.0], [1.0], [2.0]])).tolist() == [0, 1, 0]


@pytest.mark.parametrize("metric", ["inner", "l2"])
@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_faiss_refuses_points_whose_squares_are_no_numbers(metric, size, generator):
    pytest.importorskip("faiss")
    x, y = (size * torch.randn(n, 4, generator=generator) for n in (5, 6))
    expected = nearest_neighbors(x / size, y / size, 2, metric=metric)[1]
    for k in (2, 6):
        with pytest.raises(
            ValueError, match=r"`x` must have a largest coordinate.*Rescale both, or pass backend='torch'"
        ):
            nearest_neighbors(x, y, k, metric=metric, backend="faiss")
    for backend in ("torch", "auto"):
        assert torch.equal(nearest_neighbors(x, y, 2, metric=metric, backend=backend)[1], expected)


def test_no_precision_has_the_squares_of_the_largest_numbers(generator):
    x = 1e200 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"between 1e-150 and 1e\+150.*Rescale both\.$"):
        nearest_neighbors(x, x, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_do_not_change_the_answer(backend, monkeypatch):
    x = integers(200, 3, -2, 3)
    whole = nearest_neighbors(x, x, 7, exclude=torch.arange(200), backend=backend)
    monkeypatch.setattr(neighbors, "_BLOCK", 7 * 33)
    blocks = nearest_neighbors(x, x, 7, exclude=torch.arange(200), backend=backend)
    assert torch.equal(whole[0], blocks[0])
    assert torch.equal(whole[1], blocks[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_far_from_the_origin_keep_their_digits(backend, generator):
    x = torch.randn(100, 8, generator=generator)
    near = nearest_neighbors(x, x, 3, metric="l2", exclude=torch.arange(100), backend=backend)
    far = nearest_neighbors(x + 1024, x + 1024, 3, metric="l2", exclude=torch.arange(100), backend=backend)
    torch.testing.assert_close(near[0], far[0], atol=5e-3, rtol=0)  # Without the shift the error is near one.
    assert (near[1] == far[1]).double().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_searched_in_float32(dtype, generator):
    x = torch.randn(50, 8, generator=generator).to(dtype)
    values, indices = nearest_neighbors(x, x, 4)
    expected = nearest_neighbors(x.float(), x.float(), 4)
    assert values.dtype == torch.float32
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])


def test_float64_is_searched_in_float64():
    # In float32 the three items are equal.
    y = torch.tensor([[1.0], [1.0 + 1e-12], [1.0 + 2e-12]], dtype=torch.float64)
    values, indices = nearest_neighbors(torch.ones(1, 1, dtype=torch.float64), y, 2)
    assert values.dtype == torch.float64
    assert indices.tolist() == [[2, 1]]


def test_autocast_and_fast_matrix_products_change_nothing(generator):
    x = torch.randn(40, 32, generator=generator)
    expected = nearest_neighbors(x, x, 5, backend="torch")
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest_neighbors(x, x, 5, backend="torch")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])


def test_no_gradient_passes_and_none_is_needed(generator):
    x = torch.randn(6, 2, generator=generator, requires_grad=True)
    for backend in BACKENDS:
        assert not nearest_neighbors(x, x, 2, backend=backend)[0].requires_grad


def test_a_query_or_an_item_alone(generator):
    one, many = torch.randn(1, 3, generator=generator), torch.randn(9, 3, generator=generator)
    for backend in BACKENDS:
        assert nearest_neighbors(many, one, 1, backend=backend)[1].flatten().tolist() == [0] * 9
        assert nearest_neighbors(one, many, 9, backend=backend)[1].sort().values.tolist() == [list(range(9))]


def test_nearest_center_is_the_voronoi_cell():
    x, centers = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    distances, cells = nearest_center(x, centers)
    assert cells.tolist() == [0, 1, 0]  # The third point is as near to both.
    assert distances.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 5}, "`k` must be at most 4, the items there are for a query, got 5"),
        ({"k": 4, "exclude": torch.arange(3)}, "`k` must be at most 3"),
        ({"k": 0}, "`k` must be an integer >= 1"),
        ({"y": torch.ones(4, 3)}, "`y` must have the features of `x`, 2, got 3"),
        ({"y": torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])}, "NaN or infinity in 1 of 2 rows: 1"),
        ({"x": torch.ones(2, 2, 2)}, r"`x` must have shape \(n, d\)"),
        ({"metric": "cosine"}, "`metric` must be one of 'inner', 'l2'"),
        ({"exclude": torch.tensor([0, 1, 4])}, r"`exclude` must lie in \[0, 4\)"),
        ({"backend": "annoy"}, "`backend` must be one of"),
        ({"backend": "faiss", "x": torch.ones(3, 2).double()}, "float32 on the CPU for FAISS"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(**{"x": torch.ones(3, 2), "y": torch.ones(4, 2), "k": 1} | arguments)


def test_without_faiss_torch_searches(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    x = integers(9, 2, -2, 3)
    expected = every(x, x, 3, "inner")
    assert torch.equal(nearest_neighbors(x, x, 3)[1], expected[1])
    with pytest.raises(ImportError, match=r"Install otdml\[cpu\]"):
        nearest_neighbors(x, x, 3, backend="faiss")


def test_faiss_is_imported_by_the_first_search_only():
    script = "import sys, otdml.neighbors; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_faiss_takes_the_threads_of_torch_and_gives_its_own_back(threads, monkeypatch, generator):
    faiss = pytest.importorskip("faiss")
    x = torch.randn(64, 8, generator=generator)
    seen, knn = [], faiss.knn

    def spy(*args, **kwargs):
        seen.append(faiss.omp_get_max_threads())
        return knn(*args, **kwargs)

    monkeypatch.setattr(faiss, "knn", spy)
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        torch.set_num_threads(threads)
        nearest_neighbors(x, x, 3, backend="faiss")
    finally:
        torch.set_num_threads(before[0])
    assert seen == [threads]
    assert faiss.omp_get_max_threads() == before[1]


def test_faiss_between_torch_operations_disturbs_neither(generator):
    # Each brings its own OpenMP threads; both work on every one of these matrices in turn.
    x = torch.randn(600, 64, generator=generator)
    product, found = x @ x.T, nearest_neighbors(x, x, 9, backend="faiss")
    for _ in range(20):
        assert torch.equal(x @ x.T, product)
        assert torch.equal(nearest_neighbors(x, x, 9, backend="faiss")[0], found[0])


class Searching(Dataset):
    """An item is the outcome of a search."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        return nearest_neighbors(self.x, self.x, 2, exclude=torch.arange(len(self.x)), backend="faiss")[1]


def test_a_search_works_in_a_forked_worker_after_one_in_its_parent(generator):
    threads = torch.get_num_threads()
    try:
        # A parent that used several threads of FAISS's OpenMP, a child that has one.
        torch.set_num_threads(2)
        data = Searching(torch.randn(2000, 32, generator=generator))
        expected = data[0]
    finally:
        torch.set_num_threads(threads)
    for batch in DataLoader(data, num_workers=1, multiprocessing_context="fork", timeout=60):
        assert torch.equal(batch[0], expected)


def test_cuda_points_are_searched_where_they_are(generator):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = integers(50, 3, -2, 3).cuda()
    # Points that single precision does not tell apart are searched once more, without their own.
    far = x + torch.tensor([1e5, 0.0, 0.0], device=x.device) * (torch.arange(50, device=x.device) % 2)[:, None]
    expected = nearest_neighbors(far.cpu(), far.cpu(), 4, metric="l2", exclude=torch.arange(50))[1]
    assert torch.equal(nearest_neighbors(far, far, 4, metric="l2", exclude=torch.arange(50))[1].cpu(), expected)
    values, indices = nearest_neighbors(x, x, 4, exclude=torch.arange(50))
    assert values.device == indices.device == x.device
    assert torch.equal(indices.cpu(), every(x.cpu(), x.cpu(), 4, "inner", torch.arange(50))[1])
    assert not _faiss.runs_on_faiss("auto", x)


@pytest.mark.parametrize("metric", ["inner", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_of_extreme_length_have_the_neighbours_of_others(metric, scale, generator):
    x = torch.randn(40, 5, generator=generator)
    own = torch.arange(40)
    _, expected = nearest_neighbors(x, x, 3, metric=metric, exclude=own)
    _, found = nearest_neighbors(x * scale, x * scale, 3, metric=metric, exclude=own)
    assert torch.equal(found, expected)


def test_excluded_items_in_a_list():
    y = torch.tensor([[0.0], [1.0], [3.0]])
    assert nearest_neighbors(y, y, 1, metric="l2", exclude=[0, 1, 2])[1].tolist() == [[1], [0], [1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["inner", "l2"])
def test_a_gallery_finds_what_a_single_search_finds(metric, backend, generator):
    y = torch.randn(500, 8, generator=generator)
    y[400:] = y[:100]
    gallery = Gallery(y, metric=metric, backend=backend)
    for rows in (torch.arange(1), torch.arange(7, 40), torch.arange(500)):
        for exclude in (None, rows):
            found = gallery.search(y[rows], 9, exclude=exclude)
            single = nearest_neighbors(y[rows], y, 9, metric=metric, exclude=exclude, backend=backend)
            assert torch.equal(found[1], single[1])
            torch.testing.assert_close(found[0], single[0])
    with pytest.raises(ValueError, match="`k` must be at most 500"):
        gallery.search(y[:1], 501)


def test_a_gallery_looks_at_its_items_once(monkeypatch, generator):
    """What made a query take nine times as long as the search itself."""
    looks = []
    first_copies = neighbors._first_copies
    monkeypatch.setattr(neighbors, "_first_copies", lambda y: looks.append(len(y)) or first_copies(y))
    monkeypatch.setattr(neighbors, "check_matrix", lambda name, x: looks.append(name) or x)
    gallery = Gallery(torch.randn(50, 4, generator=generator))
    for _ in range(3):
        gallery.search(torch.randn(1, 4, generator=generator), 5)
    assert looks == ["y", "x", 50, "x", "x"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_whose_negation_is_due(backend, generator):
    x = torch.randn(20, 3, generator=generator)
    view = torch.complex(x, -x).conj().imag
    for found, expected in zip(
        nearest_neighbors(view, view, 3, backend=backend), nearest_neighbors(x, x, 3), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_queries_and_items_of_two_precisions(generator):
    y = torch.randn(20, 4, generator=generator)
    gallery = Gallery(y)
    values, indices = gallery.search(y[:3].double(), 2)
    assert values.dtype == torch.float64
    assert torch.equal(indices, gallery.search(y[:3], 2)[1])
    # Squares that no float32 holds: the gallery is searched in double precision, and afterwards in single again.
    huge = gallery.search(1e20 * y[:3], 2)[1]
    assert torch.equal(huge, indices)
    assert torch.equal(gallery.search(y[:3], 2)[1], indices)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(("n", "d"), [(100, 16), (1000, 64)])
def test_neighbours_within_clusters_far_apart_are_found(backend, n, d):
    """Squares of a hundred leave no digit of squared distances of 1e-8."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n, d, generator=generator) * 1e-3
    centres[n // 2 :] += 10
    y = centres.repeat_interleave(2, 0) + 1e-5 * torch.randn(2 * n, d, generator=generator)
    found, indices = nearest_neighbors(y, y, 2, metric="l2", exclude=torch.arange(2 * n), backend=backend)
    assert torch.equal(indices[:, 0], torch.arange(2 * n) ^ 1)
    expected = (y.double()[:, None] - y.double()[indices]).square().sum(-1).float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    # Queries that are items, which are their own neighbours.
    found, indices = nearest_neighbors(y, y, 1, metric="l2", backend=backend)
    assert torch.equal(indices[:, 0], torch.arange(2 * n))
    assert found.abs().max() < 1e-11


@pytest.mark.parametrize("metric", ["inner", "l2"])
def test_within_a_transform_torch_searches(metric, generator):
    """NumPy, and so FAISS, reads none of its tensors."""
    x = torch.randn(5, 3, generator=generator)
    expected = nearest_neighbors(x, x, 2, metric=metric)[1]

    def nearest(x: Tensor, backend: str) -> Tensor:
        return x[nearest_neighbors(x, x, 2, metric=metric, backend=backend)[1]].sum()

    slopes = expected.flatten().bincount(minlength=5)[:, None].expand(5, 3).float()
    torch.testing.assert_close(torch.func.grad(nearest)(x, "auto"), slopes)
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"got a tensor within a transform of torch.func. Pass backend='torch'"):
        torch.func.grad(nearest)(x, "faiss")
