"""Search by image: one image gets the embedding that the whole set got, from a file or from memory."""

import io

import pytest
import torch
from PIL import Image

from otdml.benchmarks.image_search import ImageSearch, nearest_images
from otdml.benchmarks.models import image_files
from otdml.data.images import open_image, standard_crop
from otdml.dml import EmbeddingIndex, ProxyDML, embed


@pytest.fixture
def searched(published, tmp_path):
    """Photographs of three classes, searched by a network that was not trained."""
    root = published("cars", [1, 2, 3], 8)
    files = image_files([root / "car_data" / "car_data" / "train"], standard_crop("test", 32), "raise")
    model = ProxyDML(3, backbone="resnet18", dim=8, seed=0).eval()
    return ImageSearch(EmbeddingIndex(embed(model, files), files.paths), model, files.transform)


def test_every_image_finds_itself_first(searched):
    for path in searched.index.paths:
        with open_image(path) as image:
            first, second = searched.nearest(image, 2)
        assert (first.path, first.similarity) == (path, pytest.approx(1, abs=1e-5))
        assert second.similarity <= first.similarity


def test_an_image_in_memory_is_embedded_as_its_file(searched):
    path = searched.index.paths[5]
    with open(path, "rb") as file, open_image(io.BytesIO(file.read())) as image:
        torch.testing.assert_close(searched.embedding(image), searched.index.z[5:6])


def test_other_callables_get_a_decoded_image(searched):
    seen = []
    searched.transform = lambda image: seen.append(image) or torch.zeros(3, 32, 32)
    searched.embedding(Image.new("L", (5, 4)))
    assert seen[0].mode == "RGB"


def test_features_must_be_as_many(searched, tmp_path, monkeypatch):
    monkeypatch.setattr("otdml.benchmarks.image_search.load_checkpoint", lambda path, trust: searched.model)
    monkeypatch.setattr("otdml.benchmarks.image_search.image_transform", lambda *_: searched.transform)
    EmbeddingIndex(torch.eye(5)[:2], ["a.png", "b.png"]).save(tmp_path / "index")
    with pytest.raises(ValueError, match="holds 5 features, the checkpoint makes 8"):
        nearest_images(tmp_path / "index", tmp_path / "a.png", 1, tmp_path)
