"""The registry: one entry makes a data set known to presets, commands and checks."""

import inspect

import pytest

import otdml.data
from otdml.benchmarks import settings
from otdml.benchmarks.experiment import load_split
from otdml.cli.options import SETS
from otdml.data import registry
from otdml.data.inventory import check
from otdml.data.protocol import ProtocolImages
from otdml.data.registry import DATASETS, NamedDataset, without_folder


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_says_what_its_class_is(name):
    known = DATASETS[name]
    assert getattr(otdml.data, known.name) is known.kind
    assert known.name in otdml.data.__all__
    assert list(inspect.signature(known.kind).parameters)[:3] == ["root", "split", "transform"]
    assert known.listed == issubclass(known.kind, ProtocolImages)
    assert name in SETS


@pytest.mark.parametrize("name", [name for name, known in DATASETS.items() if known.ink])
def test_drawings_have_one_channel_and_the_pixels_of_their_entry(name, request):
    root = None if DATASETS[name].library else request.getfixturevalue("real_data")
    images = load_split(name, root, "test", {})
    assert images.images.shape[1:] == (1, DATASETS[name].ink, DATASETS[name].ink)


def test_a_set_without_a_table_has_the_options_of_its_signature(monkeypatch):
    monkeypatch.setitem(registry.DATASETS, "added", NamedDataset("An added set", "digits:Digits", library="a test"))
    table = settings.data_options_of("added")
    assert set(table.model_fields) == {"rotations"}
    table.model_validate({"rotations": True})
    with pytest.raises(ValueError, match="valid boolean"):
        table.model_validate({"rotations": "True"})
    assert str(check("added")).splitlines()[0] == "added in a test: complete"


def test_a_set_of_a_library_has_no_folder():
    assert without_folder("digits", None)
    assert not without_folder("cub", "DATA")
    with pytest.raises(ValueError, match="--root DATA: digits come with scikit-learn, and are in no folder"):
        without_folder("digits", "DATA")
    with pytest.raises(ValueError, match=r"unknown data set 'cubs'\. Did you mean 'cub'"):
        without_folder("cubs", None)
