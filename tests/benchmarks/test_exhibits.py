"""Exhibits: the neighbours shown are the true ones, and failures are failures."""

import numpy as np
import pytest
import torch

from otdml.benchmarks.exhibits import embedding_map, exhibits, load_exhibits, save_exhibits


@pytest.fixture
def points(generator):
    labels = torch.arange(60) % 6
    z = torch.eye(6)[labels] + 0.5 * torch.randn(60, 6, generator=generator)
    return torch.nn.functional.normalize(z, dim=1), labels


@pytest.fixture
def shown(points):
    z, labels = points
    return exhibits(z, labels, list("abcdef"), lambda i: np.full((2, 2), i, dtype=np.uint8))


def test_neighbours_are_the_nearest_by_brute_force_without_the_query(points, shown):
    z, labels = points
    similarity = (z.double() @ z.double().T).fill_diagonal_(-2)
    for row, query in enumerate(shown["query"][:, 0, 0]):
        expected = similarity[query].argsort(descending=True)[:8]
        images = shown["neighbor"].reshape(len(shown["query"]), 8, 2, 2)[row, :, 0, 0]
        assert images.tolist() == expected.tolist()
        assert shown["neighbor_class"][row].tolist() == labels[expected].tolist()


def test_queries_are_shown_with_their_gallery(points):
    z, labels = points
    is_query = torch.arange(60) % 5 < 2
    found = exhibits(z, labels, list("abcdef"), lambda i: np.full((2, 2), i, dtype=np.uint8), is_query)
    similarity = (z.double() @ z.double().T).masked_fill(is_query, -2)
    images = found["neighbor"].reshape(len(found["query"]), 8, 2, 2)[..., 0, 0]
    for row, query in enumerate(found["query"][:, 0, 0]):
        assert is_query[query]
        assert images[row].tolist() == similarity[query].argsort(descending=True)[:8].tolist()
    assert (found["failure"] <= (found["neighbor_class"][:, 0] != found["query_class"])).all()


def test_failures_have_a_nearest_neighbour_of_another_class(shown):
    failing = shown["failure"]
    assert failing.any()
    assert (shown["neighbor_class"][failing, 0] != shown["query_class"][failing]).all()
    assert len(set(shown["query"][:, 0, 0].tolist())) == len(shown["query"])


def test_random_queries_come_from_different_classes_and_do_not_depend_on_the_embedding(points, shown):
    z, labels = points
    ours = ~shown["failure"]
    assert len(set(shown["query_class"][ours][:6].tolist())) == 6
    other = exhibits(z.flip(0), labels, list("abcdef"), lambda i: np.full((2, 2), i, dtype=np.uint8))
    assert (other["query"][~other["failure"]] == shown["query"][ours]).all()


def test_few_points_are_shown_as_they_are():
    found = exhibits(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 1]), ["a", "b"], lambda i: np.zeros((1, 1), np.uint8))
    assert found["neighbor_class"].shape[1] == 2
    assert len(found["map_class"]) == 3


def test_saving_keeps_everything(tmp_path, shown):
    save_exhibits(tmp_path / "exhibits.npz", shown)
    again = load_exhibits(tmp_path / "exhibits.npz")
    assert again.keys() == shown.keys()
    assert all(np.array_equal(again[key], shown[key]) for key in shown)
    assert [path.name for path in tmp_path.iterdir()] == ["exhibits.npz"]


@pytest.mark.parametrize("n", [4, 40])
def test_map_is_finite_and_the_same_every_time(n, generator):
    z = torch.nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=1).numpy()
    once, again = embedding_map(z), embedding_map(z)
    assert once.shape == (n, 2)
    assert np.isfinite(once).all()
    assert np.array_equal(once, again)


@pytest.mark.parametrize("z", [np.ones((40, 8), np.float32), np.zeros((3, 4), np.float32), np.ones((1, 1), np.float32)])
def test_map_of_a_collapsed_network_is_one_point(z):
    assert np.array_equal(embedding_map(z), np.zeros((len(z), 2)))


def test_map_of_one_coordinate(generator):
    found = embedding_map(torch.randn(12, 1, generator=generator).numpy())
    assert found.shape == (12, 2)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK"])
def test_a_damaged_file_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "exhibits.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"exhibits\.npz .*Delete .*metrics\.json and give the command again"):
        load_exhibits(tmp_path / "exhibits.npz")
    np.savez(tmp_path / "exhibits.npz", query=np.zeros(1))
    with pytest.raises(ValueError, match=r"exhibits\.npz lacks query_class"):
        load_exhibits(tmp_path / "exhibits.npz")
