"""Methods: arms derive from their loss, and settings merge."""

import json
from dataclasses import replace

import pytest

from otdml.benchmarks.methods import ARMS, METHODS, Method, method
from otdml.dml.losses import LOSSES


def test_every_loss_with_proxies_has_every_arm_under_its_own_name():
    assert list(METHODS) == [loss + arm for loss in LOSSES for arm in (ARMS if LOSSES[loss].has_proxies else [""])]
    assert all(method.name == name for name, method in METHODS.items())


def test_control_arm_differs_from_the_head_in_the_flow_alone():
    head = Method(
        "proxy-nca", "+nir", loss_weight=0.3, nir_weight=1.0, nir_options={"objective": "nll"}, warmup_epochs=1
    )
    ours, control = head.arguments(), head.control.arguments()
    assert {name for name in ours if ours[name] != control[name]} == {"nir_weight", "nir_options"}
    assert control["nir_weight"] == 0
    assert control["nir_options"] == {}


def test_changed_merges_mappings_and_replaces_numbers():
    method = Method("proxy-anchor", loss_options={"alpha": 32, "delta": 0.1})
    changed = method.changed({"loss_options": {"alpha": 16}, "warmup_epochs": 2})
    assert changed.loss_options == {"alpha": 16, "delta": 0.1}
    assert changed.warmup_epochs == 2
    assert method.loss_options == {"alpha": 32, "delta": 0.1}


def test_unknown_setting_is_named_with_the_closest_known_one():
    with pytest.raises(ValueError, match=r"unknown setting 'loss_option'\. Did you mean 'loss_options'\?"):
        METHODS["proxy-anchor"].changed({"loss_option": {}})


def test_arguments_are_plain_types():
    arguments = METHODS["soft-triple+nir"].arguments()
    assert json.loads(json.dumps(arguments)) == arguments
    assert "arm" not in arguments


def test_a_dispersion_loss_is_the_end_of_a_name():
    found = method("proxy-nca+nir+koleo:0.10@proxies")
    assert found.name == "proxy-nca+nir+koleo:0.1@proxies"
    assert found.dispersion == "koleo:0.1@proxies"
    assert replace(found, dispersion=None) == METHODS["proxy-nca+nir"]
    assert found.arguments() == METHODS["proxy-nca+nir"].arguments() | {"dispersion": "koleo:0.1@proxies"}
    assert "dispersion" not in METHODS["proxy-nca"].arguments()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("proxy-anchor+koleo", "unknown method 'proxy-anchor.koleo'"),
        ("proxy-anchor+kaleo:1", "unknown dispersion 'kaleo'. Did you mean 'koleo'"),
        ("proxy-ancor+koleo:1", "unknown method 'proxy-ancor'. Did you mean 'proxy-anchor'"),
    ],
)
def test_names_that_are_no_methods(name, message):
    with pytest.raises(ValueError, match=message):
        method(name)
