"""Retrieval metrics against one query at a time in float64, and on rankings known by construction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otdml.dml import retrieval
from otdml.dml.retrieval import retrieval_by_class, retrieval_metrics

BACKENDS = ["faiss", "torch"]


def one_by_one(z, labels, gallery=None, gallery_labels=None, ks=(1, 2, 4, 8), similarity="cosine"):
    """The definitions, on one sorted list per query."""
    alone = gallery is None
    gallery, gallery_labels = (z, labels) if alone else (gallery, gallery_labels)
    z, gallery, labels, gallery_labels = (np.asarray(t) for t in (z.double(), gallery.double(), labels, gallery_labels))
    if similarity == "cosine":
        z, gallery = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (z, gallery))
    rows = {}
    for i in range(len(z)):
        scores = -((z[i] - gallery) ** 2).sum(1) if similarity == "l2" else gallery @ z[i]
        others = [j for j in range(len(gallery)) if not (alone and j == i)]
        ranked = sorted(others, key=lambda j: (-scores[j], j))
        rel = [int(gallery_labels[j] == labels[i]) for j in ranked]
        total = sum(rel)
        if not total:
            continue
        precision = [rel[k] * sum(rel[: k + 1]) / (k + 1) for k in range(len(rel))]
        row = {f"recall@{k}": max(rel[:k]) for k in ks}
        row |= {"r_precision": sum(rel[:total]) / total, "map@r": sum(precision[:total]) / total}
        row["map@1000"] = sum(precision[:1000]) / min(total, 1000)
        row["map@1000_legacy"] = sum(precision[:1000]) / (total + 1)
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in rows.items()} | {"left_out": len(z) - len(rows["map@r"])}


MAPS = ("map@1000", "map@1000_legacy")


def assert_same(found: dict, expected: dict, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=tolerance)


def exact_points(n: int, d: int, spread: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-spread, spread + 1, (n, d), generator=generator).float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", ["inner", "l2"])
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 30),
    d=st.integers(1, 3),
    spread=st.integers(1, 3),
    classes=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_ties_duplicates_and_singletons(backend, similarity, n, d, spread, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    z, labels = exact_points(n, d, spread, generator), torch.randint(classes, (n,), generator=generator)
    if labels.unique().numel() == n:
        labels[0] = labels[1]
    found = retrieval_metrics(z, labels, extra=MAPS, similarity=similarity, backend=backend)
    assert_same(found, one_by_one(z, labels, similarity=similarity))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 20), m=st.integers(1, 30), classes=st.integers(1, 6), seed=st.integers(0, 999))
def test_a_gallery(backend, n, m, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    z, gallery = exact_points(n, 2, 2, generator), exact_points(m, 2, 2, generator)
    labels, gallery_labels = (torch.randint(classes, (size,), generator=generator) for size in (n, m))
    labels[0] = gallery_labels[0]
    found = retrieval_metrics(
        z,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        ks=(1, 10),
        similarity="inner",
        backend=backend,
        own=torch.full((n,), -1),
    )
    expected = one_by_one(z, labels, gallery, gallery_labels, ks=(1, 10), similarity="inner")
    assert_same(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", ["cosine", "inner", "l2"])
def test_random_embeddings_of_uneven_classes(similarity, dtype, generator):
    sizes = torch.tensor([1, 2, 3, 5, 8, 40, 120, 200])
    labels = torch.arange(8).repeat_interleave(sizes)[torch.randperm(379, generator=generator)]
    z = (torch.randn(379, 16, generator=generator) + 0.3 * torch.randn(8, 16, generator=generator)[labels]).to(dtype)
    found = retrieval_metrics(z, labels, ks=(1, 10, 100, 1000), extra=MAPS, similarity=similarity)
    expected = one_by_one(z, labels, ks=(1, 10, 100, 1000), similarity=similarity)
    assert found["left_out"] == 1
    # Rounding to float32 may swap two neighbours.
    assert_same(found, expected, 1e-8 if dtype == torch.float64 else 1e-4)


def test_classes_of_a_known_order():
    # On a line, 0 0 1 0 1 1: from the left end the first class is found at ranks 1 and 3.
    z, labels = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0], [15.0]]), torch.tensor([0, 0, 1, 0, 1, 1])
    task = {"gallery": z[1:], "gallery_labels": labels[1:], "similarity": "l2", "ks": (1, 2)}
    assert retrieval_metrics(z[:1], labels[:1], **task) == {
        "recall@1": 1.0,
        "recall@2": 1.0,
        "r_precision": 1 / 2,
        "map@r": (1 / 1) / 2,
        "left_out": 0.0,
    }
    found = retrieval_metrics(z[:1], labels[:1], **task, extra=MAPS)
    assert found["map@1000"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["map@1000_legacy"] == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_classes_of_thousands_are_ranked_to_their_end(generator):
    # The members of a class come first, but for one that is last: found by ranking all 1,500.
    z = torch.cat([torch.zeros(1499, 1), torch.full((500, 1), 1.0), torch.full((1, 1), 9.0)])
    labels = torch.cat([torch.zeros(1499), torch.ones(500), torch.zeros(1)]).long()
    found = retrieval_metrics(z, labels, similarity="l2", extra=("map@1000",), ks=(1,))
    # Of 1,499 others, the 1,498 at the same place come first; the last one finds 999 of its own behind 500.
    near, far = 1498 / 1499, sum((k - 500) / k for k in range(501, 1500)) / 1499
    assert found["r_precision"] == pytest.approx((1499 * near + 500 + 999 / 1499) / 2000)
    assert found["map@r"] == pytest.approx((1499 * near + 500 + far) / 2000)
    short = sum((k - 500) / k for k in range(501, 1001)) / 1000
    assert found["map@1000"] == pytest.approx((1499 + 500 + short) / 2000)


def test_a_duplicate_of_another_class_is_the_nearest_neighbour():
    # A search that drops the first result instead of the query would call this perfect.
    z = torch.eye(2)[[0, 0, 1, 1]]
    found = retrieval_metrics(z, torch.tensor([0, 1, 0, 1]), ks=(1,))
    assert found["recall@1"] == 0


def test_the_legacy_ceiling():
    # Classes of sizes 2 and 4, perfectly separated: the mean of 1/2 and 3/4 over the images.
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    found = retrieval_metrics(torch.eye(2)[labels], labels, extra=MAPS)
    assert found["map@1000"] == 1
    assert found["map@1000_legacy"] == pytest.approx((2 * 1 / 2 + 4 * 3 / 4) / 6)


@pytest.mark.parametrize("block", [1, 50, 10**9])
def test_blocks_change_nothing(block, monkeypatch, generator):
    z, labels = exact_points(90, 2, 4, generator), torch.randint(9, (90,), generator=generator)
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    assert_same(retrieval_metrics(z, labels, extra=MAPS, similarity="l2"), one_by_one(z, labels, similarity="l2"))


def test_labels_may_be_any_integers(generator):
    z = torch.randn(12, 3, generator=generator)
    labels = torch.arange(12) % 4
    expected = retrieval_metrics(z, labels)
    assert retrieval_metrics(z, 10**12 * labels - 7) == expected
    assert retrieval_metrics(z, labels.to(torch.uint8)) == expected


def test_half_precision_autocast_and_gradients(generator):
    z, labels = torch.randn(40, 8, generator=generator, requires_grad=True), torch.arange(40) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_metrics(z, labels) == retrieval_metrics(z.detach(), labels)
    assert retrieval_metrics(z.half(), labels) == retrieval_metrics(z.half().float(), labels)


def test_clustering_separated_and_shuffled(generator):
    labels = torch.arange(6).repeat_interleave(50)
    z = torch.eye(6)[labels] + 0.01 * torch.randn(300, 6, generator=generator)
    # Some starts give two centres to one class, so perfect agreement is asked of the best seed only.
    runs = [retrieval_metrics(z, labels, extra=("nmi", "f1"), seed=seed) for seed in range(8)]
    assert max(run["nmi"] for run in runs) == pytest.approx(1)
    assert max(run["f1"] for run in runs) == pytest.approx(1)
    shuffled = retrieval_metrics(z, labels[torch.randperm(300, generator=generator)], extra=("nmi",))
    assert shuffled["nmi"] < 0.1
    assert "f1" not in shuffled


def test_agrees_with_pytorch_metric_learning(generator):
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    labels = torch.randint(10, (200,), generator=generator)
    z = torch.nn.functional.normalize(torch.randn(200, 8, generator=generator) + torch.eye(10, 8)[labels], dim=1)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    peer = calculator.AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    # Each among the others, and queries in a gallery that lacks a class of theirs.
    gallery = labels[80:] != 9
    pairs = [
        (retrieval_metrics(z, labels), peer.get_accuracy(z, labels)),
        (
            retrieval_metrics(z[:80], labels[:80], gallery=z[80:][gallery], gallery_labels=labels[80:][gallery]),
            peer.get_accuracy(z[:80], labels[:80], z[80:][gallery], labels[80:][gallery]),
        ),
    ]
    for ours, theirs in pairs:
        expected = [theirs[name] for name in names]
        assert [ours[name] for name in ("recall@1", "r_precision", "map@r")] == pytest.approx(expected, abs=1e-6)
    assert pairs[1][0]["left_out"] == (labels[:80] == 9).sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": torch.tensor([[1.0], [math.nan], [2.0], [math.inf]])}, "`z` must be finite, .* 2 of 4 rows: 1, 3"),
        ({"z": torch.ones(4, 1, 1)}, r"`z` must have shape \(n, d\)"),
        ({"labels": torch.tensor([0, 1])}, r"`labels` must have shape \(4,\)"),
        ({"labels": torch.arange(4)}, "`labels` must hold some class with another item to find, got 4 classes"),
        ({"gallery": torch.ones(2, 1)}, "`gallery_labels` must be given"),
        ({"gallery_labels": torch.tensor([1, 2])}, "`gallery` must be given"),
        ({"ks": (0,)}, "`ks` must be an integer >= 1"),
        ({"extra": ("map@10",)}, "`extra` must be one of 'precision'"),
        ({"similarity": "cos"}, "`similarity` must be one of"),
        ({"gallery": torch.ones(2, 3), "gallery_labels": torch.tensor([0, 1])}, "features"),
        ({"gallery": torch.full((1, 1), math.nan), "gallery_labels": torch.tensor([0])}, "`gallery` must be finite"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{"z": torch.ones(4, 1), "labels": torch.tensor([0, 0, 1, 1])} | arguments)


def test_classes_of_digits(generator):
    sklearn = pytest.importorskip("sklearn.datasets")
    images, labels = sklearn.load_digits(return_X_y=True)
    # Raw pixels are integers, and their inner products exact: the ranking is the same to the last tie.
    z, labels = torch.from_numpy(images).float()[::4], torch.from_numpy(labels)[::4]
    found = retrieval_metrics(z, labels, similarity="inner", extra=MAPS)
    assert_same(found, one_by_one(z, labels, similarity="inner"))


def by_queries(z, labels, gallery, gallery_labels, own, ks):
    """Precision@K and the reciprocal rank of every query with an item to find, on one sorted list each."""
    found = []
    for i in range(len(z)):
        scores = ((z[i] - gallery) ** 2).sum(1)
        ranked = sorted((j for j in range(len(gallery)) if j != own[i]), key=lambda j: (float(scores[j]), j))
        rel = [int(gallery_labels[j] == labels[i]) for j in ranked]
        if sum(rel):
            row = {f"precision@{k}": sum(rel[:k]) / k for k in ks} | {f"recall@{k}": max(rel[:k]) for k in ks}
            found.append((int(labels[i]), row | {"mrr": 1 / (rel.index(1) + 1)}))
    return found


@pytest.mark.parametrize("within", ["each other", "a larger gallery", "partly"])
def test_precision_reciprocal_ranks_and_class_means(within):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    # Rare classes, so that some first hits are far down the list.
    labels = (60 * torch.rand(300, generator=generator) ** 2).long()
    queries = torch.arange(300) if within == "each other" else torch.arange(0, 300, 3)
    own = queries.clone()
    gallery, gallery_labels = z, labels
    if within == "partly":
        gallery, gallery_labels = z[:150], labels[:150]
        own[own >= 150] = -1
    task = {} if within == "each other" else {"gallery": gallery, "gallery_labels": gallery_labels, "own": own}
    options = {"ks": (1, 5, 400), "extra": ("precision", "mrr"), "similarity": "l2", **task}
    expected = by_queries(z[queries], labels[queries], gallery, gallery_labels, own.tolist(), (1, 5, 400))
    assert min(row["mrr"] for _, row in expected) < 1 / 64
    found = retrieval_metrics(z[queries], labels[queries], **options)
    assert found["left_out"] == len(queries) - len(expected)
    classes = sorted({label for label, _ in expected})
    means = retrieval_by_class(z[queries], labels[queries], **options)
    macro = retrieval_metrics(z[queries], labels[queries], average="classes", **options)
    assert means["label"].tolist() == classes
    assert means["queries"].tolist() == [sum(label == c for label, _ in expected) for c in classes]
    for name in expected[0][1]:
        assert found[name] == pytest.approx(np.mean([row[name] for _, row in expected]), abs=1e-12)
        each = [np.mean([row[name] for label, row in expected if label == c]) for c in classes]
        assert means[name].tolist() == pytest.approx(each, abs=1e-12)
        assert macro[name] == pytest.approx(np.mean(each), abs=1e-12)


def test_a_gallery_that_holds_the_queries_is_refused():
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 4
    with pytest.raises(ValueError, match=r"`gallery` must not hold the queries.*Pass `own`"):
        retrieval_metrics(z, labels, gallery=z, gallery_labels=labels)
    with pytest.raises(ValueError, match="`gallery` must not hold the queries"):
        retrieval_metrics(z[:6], labels[:6], gallery=z[3:].clone(), gallery_labels=labels[3:])
    alone = retrieval_metrics(z, labels)
    assert retrieval_metrics(z, labels, gallery=z, gallery_labels=labels, own=torch.arange(20)) == alone
    # Duplicates of a minority, and the same row under another class, are items like others.
    found = retrieval_metrics(z[:7], labels[:7], gallery=z[4:], gallery_labels=labels[4:])
    assert found["recall@1"] >= 3 / 7
    retrieval_metrics(z, labels, gallery=z, gallery_labels=(labels + 1) % 4)
    assert retrieval_metrics(z, labels, gallery=z, gallery_labels=labels, own=[-1] * 20)["recall@1"] == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (torch.arange(3), "`own` must hold 4 rows of the gallery, from 0 to 4, or -1"),
        (torch.tensor([0, 1, 2, 5]), "values 0 to 5"),
        (torch.tensor([0, 1, 2, -2]), "values -2 to 2"),
        (torch.tensor([1, 1, 2, 3]), "`own` must name rows of the queries' classes"),
    ],
)
def test_own_rows_are_checked(own, message):
    z, labels = torch.arange(5.0)[:, None], torch.tensor([0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(z[:4], labels[:4], gallery=z, gallery_labels=labels, own=own, similarity="l2")
    with pytest.raises(ValueError, match="`own` must be None without a gallery"):
        retrieval_metrics(z, labels, own=torch.arange(5))


def test_numpy_labels_and_tiny_embeddings():
    z, labels = torch.tensor([[1e-30, 0.0], [2e-30, 1e-31], [0.0, 1e30], [1e29, 1e30]]), np.array([0, 0, 1, 1])
    assert retrieval_metrics(z, labels, ks=(1,))["recall@1"] == 1
