"""Approximate search: what it finds, what it says of itself, and files that are damaged."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from otdml.dml.approximate import ApproximateSearch, check_factory
from otdml.dml.index import EmbeddingIndex

faiss = pytest.importorskip("faiss")
N, D = 3000, 16


@pytest.fixture(scope="module")
def z():
    """Unit vectors about fifty centres, the last ones copies of the first."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, D, generator=generator)
    z = normalize(centres[torch.arange(N) % 50] + 0.5 * torch.randn(N, D, generator=generator))
    z[-20:] = z[:20]
    return z


@pytest.fixture
def index(z):
    return EmbeddingIndex(z, [f"{i:04d}.jpg" for i in range(N)])


def share_found(index, z):
    """Recall by comparing names: what the index says of itself, worked out another way."""
    exact, found = (index.search(z, 11, exact=exact) for exact in (True, False))
    return np.mean([len({m.path for m in a[1:]} & {m.path for m in b}) / 10 for a, b in zip(exact, found, strict=True)])


@pytest.mark.parametrize(
    ("factory", "least"), [("Flat", 1.0), ("HNSW16", 0.95), ("IVF32,Flat", 0.95), ("PCA8,IVF16,SQ8", 0.7)]
)
def test_recall_is_measured_against_the_exact_search(factory, least, index):
    found = index.approximated(factory)
    assert least <= found.approximate.recall <= 1
    assert found.approximate.queries == 500
    assert share_found(found, index.z[100:600]) == pytest.approx(found.approximate.recall, abs=0.05)
    assert str(found.approximate).endswith("% of the ten nearest (500 queries)")


def test_similarities_are_exact_and_of_what_was_found(index):
    found = index.approximated("IVF32,PQ4x4")
    for row in found.search(index.z[:5], 7):
        assert len(row) == 7
        assert [m.similarity for m in row] == sorted((m.similarity for m in row), reverse=True)
    (row,) = found.search(index.z[3:4], 7)
    for match in row:
        expected = index.z[3] @ index.z[int(match.path.removesuffix(".jpg"))]
        assert match.similarity == pytest.approx(float(expected), abs=1e-6)
    # A copy is as near as the image itself, and comes in order.
    assert [m.path for m in row[:2]] == ["0003.jpg", f"{N - 17:04d}.jpg"]


def test_lists_are_searched_until_enough_is_found(index):
    few, many = (index.approximated(f"IVF64,Flat;nprobe={probes}").approximate for probes in (1, 64))
    chosen = index.approximated("IVF64,Flat").approximate
    assert few.recall < 0.95 <= chosen.recall
    assert many.recall == 1
    assert chosen.parameters.startswith("nprobe=")
    assert 1 < int(chosen.parameters.removeprefix("nprobe=")) <= 64


def test_it_is_kept_with_the_index_and_faiss_reads_it(index, tmp_path):
    made = index.approximated("IVF32,PQ4x4")
    made.save(tmp_path)
    found = EmbeddingIndex.load(tmp_path)
    assert found.approximate.said() == made.approximate.said()
    assert found.search(index.z[:9], 5) == made.search(index.z[:9], 5)
    assert faiss.read_index(str(tmp_path / "approximate.faiss")).ntotal == N
    assert EmbeddingIndex.load(tmp_path, exact=True).approximate is None
    found.approximated(None).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.faiss", "items.json"]


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("Foo", "could not parse index string Foo"),
        ("IVF32,PQ5", "multiple of the number of subquantizers"),
        ("IVF32,Flat;depth=3", "could not set parameter depth"),
        ("IVF4000,Flat", "have at most 3000 lists"),
        ("PQ4x12", "Number of training points"),
        ("IDMap,Flat", "use add_with_ids"),
        ("", "could not parse"),
    ],
)
def test_what_faiss_does_not_make_is_named(factory, said, index):
    with pytest.raises(ValueError, match=f"`index` must .*{said}"):
        index.approximated(factory)


def test_a_kind_is_checked_before_anything_is_embedded():
    assert check_factory("IVF32,Flat", D, 32).d == D
    with pytest.raises(ValueError, match="at most 31 lists, as many as there are images, got IVF32,Flat"):
        check_factory("IVF32,Flat", D, 31)


def test_queries_of_other_features_are_refused(index):
    with pytest.raises(ValueError, match="`z` must have the features of the index, 16, got 3"):
        index.approximated("Flat").search(torch.ones(1, 3))


def test_fewer_may_be_found_than_asked_for(index):
    one_list = index.approximated("IVF64,Flat;nprobe=1")
    counts = [len(row) for row in one_list.search(index.z[:50], 200)]
    assert max(counts) < 200
    assert min(counts) > 0


def test_damaged_files_are_named_and_the_exact_search_remains(index, tmp_path):
    index.approximated("IVF32,Flat").save(tmp_path)
    file, items = tmp_path / "approximate.faiss", tmp_path / "items.json"
    content, text = file.read_bytes(), items.read_text()
    for damaged in (content[:-10], content[:100], b"", content[:-1] + b"x"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"approximate\.faiss is of another time than the index, or damaged"):
            EmbeddingIndex.load(tmp_path)
    assert len(EmbeddingIndex.load(tmp_path, exact=True).search(index.z[:1], 3)[0]) == 3
    file.unlink()
    with pytest.raises(ValueError, match=r"approximate\.faiss is missing"):
        EmbeddingIndex.load(tmp_path)
    for wrong in ({}, 3, {"asked": "Flat"}, {**json.loads(text)["approximate"], "recall": "all"}):
        items.write_text(json.dumps({**json.loads(text), "approximate": wrong}))
        with pytest.raises(ValueError, match=r"items\.json is damaged: its approximate search is none"):
            EmbeddingIndex.load(tmp_path)


def test_a_file_that_asks_for_more_memory_than_it_has_is_refused(z, tmp_path):
    """Its check sum is right, as that of a file from a stranger would be."""
    made = ApproximateSearch.of("SQ8", z.numpy())
    made.write(tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    size = (N * D).to_bytes(8, "little")
    place = content.index(size)
    content[place : place + 8] = (2**39).to_bytes(8, "little")
    (tmp_path / "file").write_bytes(content)
    from zlib import crc32

    with pytest.raises(ValueError, match="cannot be read by FAISS"):
        ApproximateSearch.read(tmp_path / "file", {**made.said(), "sign": crc32(content)})
