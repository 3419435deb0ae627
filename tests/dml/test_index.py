"""An index on disk: what is found, what FAISS reads, and what happens to damaged files."""

import json
import math
import os
import pathlib
import resource
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from otdml.dml import ProxyDML
from otdml.dml.evaluation import embeddings
from otdml.dml.index import EmbeddingIndex

NAMES = [f"images/{i:02d} é.jpg" for i in range(30)]


@pytest.fixture
def index(generator) -> EmbeddingIndex:
    return EmbeddingIndex(3 * torch.randn(30, 8, generator=generator), NAMES, {"checkpoint": "last.ckpt", "size": 224})


def test_what_is_saved_is_loaded(index, tmp_path):
    index.save(tmp_path / "new" / "index")
    found = EmbeddingIndex.load(tmp_path / "new" / "index")
    assert torch.equal(found.z, index.z)
    assert found.paths == NAMES
    assert found.about == {"checkpoint": "last.ckpt", "size": 224}
    assert len(found) == 30


@pytest.mark.parametrize(
    ("value", "kind", "got"),
    [(pathlib.Path("last.ckpt"), TypeError, "Object of type PosixPath"), (math.nan, ValueError, "Out of range float")],
)
def test_what_json_does_not_hold_is_refused_before_images_are_embedded(value, kind, got, tmp_path):
    def batches():
        raise AssertionError("asked for")
        yield

    with pytest.raises(kind, match=rf"`about` must hold what JSON can, got {got}.* Pass paths as text"):
        EmbeddingIndex.write(tmp_path / "index", batches(), NAMES, {"checkpoint": value})
    assert not (tmp_path / "index").exists()


def test_the_most_similar_come_first(index, generator):
    query = torch.randn(4, 8, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(query[:, None], index.z[None], dim=-1)
    values, order = cosine.sort(dim=1, descending=True)
    found = index.search(query, k=5)
    assert [[match.path for match in row] for row in found] == [[NAMES[i] for i in row[:5]] for row in order.tolist()]
    assert [match.similarity for match in found[0]] == pytest.approx(values[0, :5].tolist(), abs=1e-6)
    assert [match.path for match in index.search(100 * query[:1], k=5)[0]] == [match.path for match in found[0]]
    assert len(index.search(query, k=99)[0]) == 30


def test_faiss_reads_it(index, tmp_path):
    faiss = pytest.importorskip("faiss")
    index.save(tmp_path)
    values, rows = faiss.read_index(str(tmp_path / "index.faiss")).search(index.z[:3].numpy(), 1)
    assert rows[:, 0].tolist() == [0, 1, 2]
    assert values[:, 0] == pytest.approx(1, abs=1e-6)


def test_it_is_read_where_another_library_made_faiss_return_tensors(index, tmp_path):
    pytest.importorskip("faiss.contrib.torch_utils")
    index.save(tmp_path)
    assert torch.equal(EmbeddingIndex.load(tmp_path).z, index.z)


def test_files_of_different_times_are_refused(index, tmp_path):
    index.save(tmp_path)
    items = (tmp_path / "items.json").read_text()
    EmbeddingIndex(index.z.flip(0), NAMES).save(tmp_path)
    (tmp_path / "items.json").write_text(items)
    with pytest.raises(ValueError, match=r"index\.faiss and items\.json .* are of different times"):
        EmbeddingIndex.load(tmp_path)


@pytest.mark.parametrize("name", ["index.faiss", "items.json"])
def test_damaged_and_missing_files_are_named(name, index, tmp_path):
    index.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name):
        EmbeddingIndex.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"it holds no {name}"):
        EmbeddingIndex.load(tmp_path)


def test_a_full_disk_loses_no_earlier_index(index, tmp_path):
    index.save(tmp_path)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Files may have the bytes of a header, and some vectors.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="What was there before is unchanged"):
            EmbeddingIndex(torch.ones(9000, 2), ["a.jpg"] * 9000).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(tmp_path)) == ["index.faiss", "items.json"]
    assert EmbeddingIndex.load(tmp_path).paths == NAMES
    assert json.loads((tmp_path / "items.json").read_text())["paths"] == NAMES


def test_errors(index, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`paths` must hold one path per embedding, 2, got 1"):
        EmbeddingIndex(torch.ones(2, 3), ["a.jpg"])
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 2 rows: 1"):
        EmbeddingIndex(torch.tensor([[1.0], [torch.nan]]), ["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match="features"):
        index.search(torch.ones(1, 5))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"Install otdml\[cpu\]"):
        index.save(tmp_path)


def test_a_kill_between_any_two_steps_leaves_one_of_the_indices(index, tmp_path, monkeypatch):
    """Each replacement in turn is the last thing that happens."""
    other = EmbeddingIndex(index.z.flip(0), [f"other/{name}" for name in NAMES])
    seen = []
    for step in range(5):
        folder = tmp_path / str(step)
        index.save(folder)
        left = [step]

        def counted(old, new, left=left, replace=os.replace):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(old, new)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", counted)
            other.save(folder)
        found = EmbeddingIndex.load(folder)
        seen.append(found.paths == other.paths)
        assert torch.equal(found.z, (other if seen[-1] else index).z)
        assert found.paths in (index.paths, other.paths)
        other.save(folder)
        assert sorted(os.listdir(folder)) == ["index.faiss", "items.json"]
    assert seen == [False, False, False, True, True]


def test_names_that_are_no_utf8_are_kept(tmp_path):
    name = os.fsdecode(b"b\xff.png")
    EmbeddingIndex(torch.eye(2), [name, "a.png"]).save(tmp_path)
    assert EmbeddingIndex.load(tmp_path).paths == [name, "a.png"]


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"embeddings": 1, "about": [], "paths": 2}', "[" * 100_000])
def test_items_that_are_none_are_named(text, index, tmp_path):
    index.save(tmp_path)
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(ValueError, match=r"items\.json is damaged.*Make the index again"):
        EmbeddingIndex.load(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"checkpoint": 5}, {"size": "big"}, {"size": 0}, {"given": ["one"]}, {"given": 3}, {"given": [1] * 50}]
)
def test_what_is_known_of_an_index_is_of_its_kind(wrong, index, tmp_path):
    EmbeddingIndex(index.z, index.paths, wrong).save(tmp_path)
    with pytest.raises(
        ValueError, match=rf"items\.json is damaged: its {next(iter(wrong))} is none\. Make the index again"
    ):
        EmbeddingIndex.load(tmp_path)


def test_a_header_that_asks_for_more_than_the_file_has_is_refused(index, tmp_path):
    index.save(tmp_path)
    content = bytearray((tmp_path / "index.faiss").read_bytes())
    content[8:16] = (2**40).to_bytes(8, "little")
    (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.faiss is no flat FAISS index, or is damaged"):
        EmbeddingIndex.load(tmp_path)


def test_batches_are_written_as_one_index(index, tmp_path):
    whole = EmbeddingIndex.write(tmp_path / "parts", (3 * part for part in index.z.split(7)), NAMES, index.about)
    torch.testing.assert_close(whole.z, index.z)
    assert (whole.paths, whole.about) == (NAMES, index.about)
    with pytest.raises(ValueError, match="`paths` must hold one path per embedding, 30, got 2"):
        EmbeddingIndex.write(tmp_path / "other", iter([index.z]), NAMES[:2])
    with pytest.raises(ValueError, match="NaN or infinity"):
        EmbeddingIndex.write(tmp_path / "other", iter([index.z, torch.full((1, 8), torch.nan)]), NAMES)
    assert not (tmp_path / "other").exists()


def test_a_loaded_index_is_mapped_and_its_vectors_are_its_own(index, tmp_path):
    index.save(tmp_path)
    found = EmbeddingIndex.load(tmp_path)
    before = (tmp_path / "index.faiss").read_bytes()
    found.z[0] = 0
    assert (tmp_path / "index.faiss").read_bytes() == before
    other = EmbeddingIndex.load(tmp_path)
    other.save(tmp_path)
    assert (tmp_path / "index.faiss").read_bytes() == before
    EmbeddingIndex(index.z.flip(0), NAMES).save(tmp_path)
    assert torch.equal(other.z, index.z)


MEMORY = """
import sys, torch
from otdml.dml import ProxyDML
from otdml.dml.evaluation import embeddings
from otdml.dml.index import EmbeddingIndex

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])

def batches(n):
    generator = torch.Generator().manual_seed(0)
    for _ in range(n // 500):
        yield torch.randn(500, 2048, generator=generator)

n, folder = int(sys.argv[1]), sys.argv[2]
EmbeddingIndex.write(folder, batches(500), ["a.jpg"] * 500)
before = peak()
EmbeddingIndex.write(folder, batches(n), [f"photos/{i:09d}.jpg" for i in range(n)])
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured by /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Twenty thousand embeddings are 164 MB; 40 MB remain of blocks and names, also for four times as many."""
    script = tmp_path / "script.py"
    script.write_text(MEMORY)
    words = [sys.executable, script, "20000", str(tmp_path / "index")]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) * 1024 < 82e6


def test_images_are_embedded_as_their_vectors_are_taken():
    """Of images that come in batches two are loaded before the second part is taken, not all."""
    loaded = []

    class Images(torch.utils.data.Dataset):
        labels, classes = torch.zeros(40, dtype=torch.long), ["image"]

        def __len__(self):
            return 40

        def batch(self, indices):
            loaded.append(len(indices))
            return torch.zeros(len(indices), 1, 8, 8, dtype=torch.uint8), self.labels[indices]

    parts = embeddings(ProxyDML(2, dim=3, seed=0), Images(), batch_size=4)
    assert next(parts).shape == (4, 3)
    assert loaded == [4]
    assert sum(len(part) for part in parts) == 36


def test_batches_have_one_width_and_lose_no_earlier_index(index, tmp_path):
    index.save(tmp_path / "index")
    for widths in ((1, 2), (2, 1)):
        with pytest.raises(ValueError, match=r"`batches` must have \d features each"):
            EmbeddingIndex.write(tmp_path / "index", (torch.ones(1, width) for width in widths), ["a", "b"])
    torch.testing.assert_close(EmbeddingIndex.load(tmp_path / "index").z, index.z)


def test_vectors_of_double_precision_have_directions():
    z = torch.tensor([[1e300, 1e300], [0.0, 1e-300]], dtype=torch.float64)
    found = EmbeddingIndex(z, ["a", "b"]).z
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_one_image_is_searched_exactly():
    with pytest.raises(ValueError, match="`factory` must be None for an index of one image"):
        EmbeddingIndex(torch.ones(1, 2), ["a"]).approximated("Flat")
