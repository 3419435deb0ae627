"""k-means on problems whose clusters are known, and beside FAISS."""

import numpy as np
import pytest
import torch

from otdml import _precision
from otdml.kmeans import kmeans
from otdml.neighbors import nearest_center


def test_separated_clusters_are_found(generator):
    true = torch.arange(5).repeat_interleave(40)
    corners = 100 * torch.eye(5)
    x = corners[true] + torch.randn(200, 5, generator=generator)
    # From random points some starts put two centres into one cluster: the best of ten does not.
    runs = [kmeans(x, 5, generator=generator) for _ in range(10)]
    centers, cells = min(runs, key=lambda run: float((x - run[0][run[1]]).square().sum()))
    assert (true[:, None] == true).eq(cells[:, None] == cells).all()
    expected = torch.stack([x[cells == j].mean(0) for j in range(5)])
    torch.testing.assert_close(centers, expected)


def test_as_good_as_faiss(generator):
    faiss = pytest.importorskip("faiss")
    x = torch.randn(2000, 8, generator=generator)
    peer = faiss.Kmeans(8, 50, niter=20, seed=1, min_points_per_centroid=1, max_points_per_centroid=2000)
    peer.train(x.numpy())
    theirs = nearest_center(x, torch.from_numpy(peer.centroids))[0].sum()
    ours = nearest_center(x, kmeans(x, 50, generator=generator)[0])[0].sum()
    assert ours < 1.02 * theirs


def test_the_same_seed_gives_the_same_clusters(generator):
    x = torch.randn(300, 4, generator=generator)
    first, second = (kmeans(x, 10, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[1], kmeans(x, 10, generator=torch.Generator().manual_seed(3), backend="torch")[1])


def test_as_many_clusters_as_points_puts_a_center_on_each(generator):
    x = torch.randn(20, 3, generator=generator)
    centers, cells = kmeans(x, 20, generator=generator)
    assert cells.unique().numel() == 20
    torch.testing.assert_close(centers[cells], x)


def test_a_center_that_lost_its_points_moves_to_the_farthest():
    # Two centres on the duplicates: the second one is empty at once, and takes the outlier.
    x = torch.cat([torch.zeros(98, 1), torch.ones(1, 1), torch.full((1, 1), 50.0)])
    for seed in range(10):
        centers, _ = kmeans(x, 2, generator=torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(centers.sort(dim=0).values.flatten(), [1 / 99, 50], rtol=1e-6)


def test_dtype_and_errors(generator):
    assert kmeans(torch.randn(9, 2, generator=generator).double(), 3)[0].dtype == torch.float64
    assert kmeans(torch.randn(9, 2, generator=generator).half(), 3)[0].dtype == torch.float32
    with pytest.raises(ValueError, match="`k` must be at most the number of points, 3, got 4"):
        kmeans(torch.ones(3, 2), 4)


def test_the_centre_of_a_large_cluster_is_its_mean(generator):
    # A running sum of single precision stops to grow by values of the size of its rounding.
    x = 255 - torch.rand(500_000, 1, generator=generator)
    center = kmeans(x, 1)[0]
    torch.testing.assert_close(center.double(), x.double().mean(0, keepdim=True), rtol=0, atol=2e-5)


def test_clusters_far_from_the_origin_are_those_at_it(generator):
    x = torch.randn(200_000, 1, generator=generator)
    centers, cells = kmeans(x + 1000, 2, max_iter=100, generator=torch.Generator().manual_seed(0))
    # The halves of a Gaussian, with means of sqrt(2 / pi).
    assert (cells.bincount() - 100_000).abs().max() < 1500
    wanted = torch.tensor([[1000 - 0.79788], [1000 + 0.79788]])
    torch.testing.assert_close(centers.sort(dim=0).values, wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("kinds", [("mps",), ("mps", "cpu")])
def test_means_with_and_without_double_precision(kinds, generator, monkeypatch):
    monkeypatch.setattr(_precision, "SINGLE_ONLY", kinds)
    x = 1e4 + torch.rand(400_000, 2, generator=generator)
    center = kmeans(x, 1, generator=generator)[0]
    # To the last digit of single precision at 10,000.
    torch.testing.assert_close(center.double(), x.double().mean(0, keepdim=True), rtol=0, atol=1e-3)
