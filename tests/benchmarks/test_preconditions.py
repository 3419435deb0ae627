"""Preconditions: what this machine cannot do, or a network not take, is said before anything is trained."""

from dataclasses import replace

import pytest
import torch

from otdml.benchmarks.experiment import check_data
from otdml.benchmarks.preconditions import check_network, check_trainer
from otdml.benchmarks.presets import preset
from otdml.benchmarks.runs import Run
from otdml.dml.backbones import backbone


def run_of(name, *changes):
    one = preset(name, changes)
    return Run.of(one, one.method(one.compare[0]), 0)


@pytest.mark.parametrize("name", ["digits", "glyphs", "omniglot-small", "cub"])
def test_networks_of_the_library_take_the_images_of_their_sets(name):
    check_network(run_of(name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model.backbone=resnet18"], "`model.backbone` resnet18 does not take the images of digits, 1 × 8 × 8"),
        (["model.backbone_options.widths=[1, 2, 3, 4, 5]"], "conv4 does not take the images of digits, 1 × 8 × 8"),
        (["model.backbone_options.in_channels=3"], "Change `model.backbone_options`: in_channels for another"),
    ],
)
def test_a_network_that_does_not_take_the_images_is_named_with_what_to_set(changes, said):
    with pytest.raises(ValueError) as error:
        check_network(run_of("digits", *changes))
    assert said in str(error.value)
    check_network(run_of("digits", "model.backbone=resnet18", "model.backbone_options.in_channels=1"))


@pytest.mark.parametrize("content", [b"<!doctype html>", b"", b"PK\x03\x04", b"\x80\x02}"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, content):
    page = tmp_path / "page.html"
    page.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.html") as error:
        check_network(run_of("cub", f"model.backbone_options.weights={page}"))
    assert "--weights FILE" in str(error.value)


def test_weights_of_another_network_are_named_and_those_of_this_one_taken(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(backbone("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        check_network(run_of("cub", f"model.backbone_options.weights={path}"))
    check_network(run_of("cub", "model.backbone=resnet18", f"model.backbone_options.weights={path}"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.accelerator=gpus", "training.accelerator = gpus"),
        ("training.strategy=dpp", "training.strategy = dpp"),
        ("training.devices=7", "`devices` must share a batch of 80 images evenly, got 7"),
        ("training.devices=80", "`devices` must be at most"),
    ],
)
def test_a_trainer_that_this_machine_has_not_is_named(change, said):
    with pytest.raises(ValueError) as error:
        check_trainer(run_of("digits", change))
    assert said in str(error.value)


def test_devices_of_the_command_line_count():
    check_trainer(run_of("digits"), devices=2)
    with pytest.raises(ValueError, match="share a batch of 80 images evenly, got 3"):
        check_trainer(run_of("digits"), devices=3)


def test_processes_share_the_batch_that_the_classes_make(digits):
    """All of them where they are fewer than 32 and none are asked for."""
    training = {name: value for name, value in digits.training.items() if name != "classes_per_batch"}
    run = Run.of(replace(digits, training=training, data={}), digits.method("proxy-nca"), 0)
    each = training["samples_per_class"]
    check_trainer(run, devices=2)
    with pytest.raises(ValueError, match=f"`devices` must share a batch of {5 * each} images evenly, got 3"):
        check_data(run, None, 3)
    check_data(run, None, 5)


def test_a_run_of_a_python_program_is_looked_at_as_well(digits):
    run = Run.of(replace(digits, model={"backbone_options": {"widths": [4] * 5}}), digits.method("proxy-nca"), 0)
    with pytest.raises(ValueError, match="fewer layers for fewer pixels"):
        check_network(run)
