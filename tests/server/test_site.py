"""An index and its network: what can be searched, what is kept, and what is said where something is gone."""

import json
import os
import shutil
import threading

import pytest
import torch

from otdml.dml import EmbeddingIndex
from otdml.server import site as sites
from otdml.server.site import Site


def test_an_upload_is_nearest_to_the_image_that_it_is(site, content):
    query = site.query(site.upload("mine.png", content))
    (found, similarity), *_ = site.nearest(query, 3)
    assert site.collection.name(found) == "cat 2.png"
    assert similarity == pytest.approx(1, abs=1e-5)
    assert query.name == "mine.png"
    assert query.picture == site.collection.picture(found)


def test_uploads_are_forgotten_one_by_one_and_their_names_cannot_be_guessed(index, content, monkeypatch):
    monkeypatch.setattr(sites, "KEPT", 3)
    own = Site(index)
    tokens = [own.upload(f"{i}.png", content) for i in range(5)]
    assert [own.query(token) is None for token in tokens] == [True, True, False, False, False]
    assert len(set(tokens)) == 5
    assert min(map(len, tokens)) >= 16
    assert own.query("x") is None


def test_names_of_uploads_are_short_and_show_their_marks(site, content):
    assert site.query(site.upload("\u202e" + "x" * 999, content)).name == r"\u202e" + "x" * 194
    assert site.query(site.upload("", content)).name == "the image"


def test_an_index_that_does_not_say_its_checkpoint_can_be_looked_at(tmp_path, content, network):
    EmbeddingIndex(torch.eye(8)[:3], ["/p/1.png", "/p/2.png", "/p/3.png"]).save(tmp_path / "own")
    own = Site(tmp_path / "own")
    assert own.closed == "The index does not say which checkpoint made it."
    assert len(own.neighbors(0, 5)) == 2
    with pytest.raises(ValueError, match="does not say which checkpoint"):
        own.upload("mine.png", content)
    assert not Site(tmp_path / "own", network).closed


def test_an_index_whose_checkpoint_is_gone_can_be_looked_at(index, network, tmp_path):
    moved = tmp_path / "moved.ckpt"
    shutil.copy(network, moved)
    found = EmbeddingIndex.load(index)
    found.about["checkpoint"] = str(tmp_path / "gone.ckpt")
    found.save(index)
    own = Site(index)
    assert "gone.ckpt" in own.closed
    assert len(own.neighbors(0, 5)) == 5
    assert not Site(index, moved).closed
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        Site(index, tmp_path / "gone.ckpt")


def test_a_name_that_is_no_utf8_is_shown(index):
    items = json.loads((index / "items.json").read_text())
    items["about"]["checkpoint"] = "/gone/\udcff.ckpt"
    (index / "items.json").write_text(json.dumps(items))
    assert r"/gone/\udcff.ckpt" in Site(index).closed


def test_the_file_of_an_approximate_search_is_left_alone_where_that_is_asked(index):
    EmbeddingIndex.load(index).approximated("HNSW4").save(index)
    assert Site(index).collection.index.approximate is not None
    (index / "approximate.faiss").write_bytes(b"damaged")
    assert Site(index, exact=True).collection.index.approximate is None
    with pytest.raises(ValueError, match="approximate"):
        Site(index)


def test_an_index_of_other_weights_is_refused(index, network, tmp_path):
    content = torch.load(network, weights_only=True)
    content["state_dict"]["head.linear.bias"] += 0.1
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other weights or images made it\. Make it again with `otdml embed`"):
        Site(index, tmp_path / "other.ckpt")


def test_a_folder_that_is_no_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no index: .* Make one with `otdml embed`"):
        Site(tmp_path)


def test_an_index_that_is_made_again_or_removed_meanwhile_is_told(index):
    own = Site(index)
    assert not own.replaced
    os.utime(index / "items.json", (1, 1))
    assert own.replaced
    shutil.rmtree(index)
    assert own.replaced
    assert len(own.neighbors(0, 3)) == 3


def test_searches_of_several_threads_are_each_their_own(site):
    expected = [site.neighbors(number, 4) for number in range(12)]
    found = [[] for _ in expected]

    def search(number):
        found[number] = [site.neighbors(number, 4) for _ in range(5)]

    threads = [threading.Thread(target=search, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[one] * 5 for one in expected]
