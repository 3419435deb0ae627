"""Presets: each file that comes with the library is sound, and a wrong one says why."""

from pathlib import Path

import pytest

from otdml.benchmarks.experiment import DATASETS
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import preset, preset_files
from otdml.benchmarks.runs import Run
from otdml.data import Distort
from otdml.dml import ProxyDML
from otdml.dml.training import TrainingConfig

MINIMAL = """
title = "t"
dataset = "digits"
compare = ["proxy-anchor"]
[model]
dim = 8
[training]
epochs = 1
"""


@pytest.mark.parametrize("name", preset_files())
def test_presets_that_come_with_the_library(name):
    one = preset(name)
    assert one.name == name
    assert one.dataset in DATASETS
    assert one.seeds >= 1
    assert set(one.compare) <= set(METHODS)
    # A head without its control arm supports no claim.
    heads = [method for method in one.compare if method.endswith("+nir")]
    assert not heads or any(f"{head}-control" in one.compare for head in heads)


@pytest.mark.parametrize("name", preset_files())
def test_every_method_of_a_preset_can_be_built(name):
    one = preset(name)
    Distort(**one.augment)
    for method in one.compare:
        run = Run.of(one, one.method(method), 0)
        TrainingConfig(**run.training)
        module = ProxyDML(num_classes=4, **run.model)
        assert (module.nir is not None) == method.endswith("+nir")


def test_settings_of_a_loss_hold_for_its_head_and_those_of_the_head_for_its_control(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        MINIMAL
        + """
[settings.proxy-anchor]
loss_options = { alpha = 16 }
lr = { proxies = 0.5 }
[settings."proxy-anchor+nir"]
loss_weight = 0.3
nir_weight = 2.0
lr = { flow = 0.1 }
"""
    )
    mine = preset(path)
    assert mine.method("proxy-anchor").arguments()["loss_weight"] == 1
    head, control = mine.method("proxy-anchor+nir"), mine.method("proxy-anchor+nir-control")
    assert head.loss_options == control.loss_options == {"alpha": 16}
    assert head.lr == control.lr == {"proxies": 0.5, "flow": 0.1}
    assert head.loss_weight == control.loss_weight == 0.3
    assert (head.nir_weight, control.nir_weight) == (2.0, 0.0)


def test_published_figures_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        MINIMAL
        + """
[[published]]
method = "proxy-anchor"
metric = "recall@1"
value = 0.697
source = "authors, ResNet-50"
"""
    )
    (figure,) = preset(path).published
    assert (figure.value, figure.second_hand) == (0.697, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("dataset", "data_set"), "Did you mean 'dataset'"),
        (MINIMAL.replace('dataset = "digits"', ""), "set dataset"),
        (MINIMAL.replace("proxy-anchor", "proxy-ancho"), "Did you mean 'proxy-anchor'"),
        ("title = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_says_why(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        preset(path)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown benchmark 'digit'. Did you mean 'digits'\? Known: .*digits"):
        preset("digit")
    with pytest.raises(ValueError, match="unknown method 'nca'"):
        preset("digits").method("nca")
    with pytest.raises(FileNotFoundError):
        preset(Path("absent.toml"))
