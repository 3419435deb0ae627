"""Validation: what is wrong with a preset or a run is said before anything runs, key by key."""

import copy
import math
import tomllib

import pytest

from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import preset, preset_files
from otdml.benchmarks.runs import Run, check_settings
from otdml.benchmarks.validation import dotted, preset_problems

HEAD = ("settings", "proxy-anchor+nir")
WHOLE = tomllib.loads("""
title = "t"
dataset = "digits"
compare = ["proxy-anchor", "proxy-anchor+nir"]
[model]
dim = 8
[training]
epochs = 1
""")


def changed(key, value):
    content = table = copy.deepcopy(WHOLE)
    for part in key[:-1]:
        table = table.setdefault(part, {})
    table[key[-1]] = value
    return content


def test_what_is_sound_has_no_problems():
    assert preset_problems(WHOLE) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("model", "freeze_bn"), "False", "`model.freeze_bn` must be true or false, got 'False'."),
        (("model", "freeze_bn"), 1, "`model.freeze_bn` must be true or false, got 1."),
        (("model", "dim"), "64", "`model.dim` must be an integer, got '64'."),
        (("model", "dim"), 64.0, "`model.dim` must be an integer, got 64.0."),
        (("model", "dim"), True, "`model.dim` must be an integer, got True."),
        (("model", "dim"), 0, "`model.dim` must be at least 1, got 0."),
        (("model", "clip"), math.nan, "`model.clip` must be finite, got nan."),
        (("model", "clip"), -1.0, "`model.clip` must be above 0, got -1.0."),
        (("model", "step_factor"), True, "`model.step_factor` must be a number, got True."),
        (("model", "pool"), "mean", "`model.pool`: unknown pool 'mean'."),
        (("model", "backbone"), "resnet51", "Did you mean 'resnet50'"),
        (("model", "backbone_options"), {"widht": [8]}, "unknown setting of model.backbone_options 'widht'"),
        (("model", "backbone_options"), {"widths": []}, "`model.backbone_options.widths` must not be empty, got []."),
        (("model", "lr"), {"proxys": 1.0}, "unknown setting of model.lr 'proxys'. Did you mean 'proxies'?"),
        (("model", "lr"), {"proxies": "1e-2"}, "`model.lr.proxies` must be a number, got '1e-2'."),
        (("model", "loss"), "proxy-nca", "`model.loss` is not read: it is the method's: --method"),
        (("model", "loss_options"), {}, 'settings."proxy-anchor".loss_options'),
        (("model", "loss_weight"), 2, 'settings."proxy-anchor".loss_weight'),
        (("model", "nir_weight"), 2, 'settings."proxy-anchor+nir".nir_weight'),
        (("model", "nir_options"), {}, 'settings."proxy-anchor+nir".nir_options'),
        (("model", "dispersion"), "koleo:1", "`model.dispersion` is not read: it is part of the method's name"),
        (("model", "seed"), 3, "`model.seed` is not read: it is the run's: --seed of train"),
        (("training", "seed"), 3, "`training.seed` is not read: it is the run's: --seed of train"),
        (("training", "ks"), [], "`training.ks` must not be empty, got []."),
        (("training", "ks"), [1, 2**70], f"`training.ks[1]` must be at most {2**31 - 1}, got {2**70}."),
        (("training", "ks"), "1,2", "`training.ks` must be a list, got '1,2'."),
        (("training", "select"), "recall@3", "`training.select`: unknown metric to select by 'recall@3'."),
        (("training", "devices"), "all", "`training.devices`: must be an integer from 1 to 1024, or 'auto', got 'all'"),
        (("training", "precision"), "bf16-mixd", "Did you mean 'bf16-mixed'"),
        (("data", "rotation"), True, "unknown setting of data 'rotation'. Did you mean 'rotations'?"),
        (("data", "fold"), 1, "`data.fold` is not read: it belongs to --reality-check"),
        (("augment", "degree"), 3, "Did you mean 'degrees'"),
        (("augment", "degrees"), -3, "`augment.degrees` must be at least 0, got -3."),
        (("seeds",), 0, "`seeds` must be at least 1, got 0."),
        (("compare",), [], "`compare` must not be empty, got []."),
        (("compare",), ["proxy-anchor+kaleo:1"], "unknown dispersion 'kaleo'. Did you mean 'koleo'"),
        (("model",), 3, "`model` must be a table, got 3."),
        (("settings",), 3, "`settings` must be a table, got 3."),
        (("settings", "proxy-ancor"), {}, "unknown method in settings 'proxy-ancor'. Did you mean 'proxy-anchor'?"),
        ((*HEAD, "lr"), 0.1, '`settings."proxy-anchor+nir".lr` must be a table, got 0.1.'),
        ((*HEAD, "nir_weight"), 0.0, "must be above 0, got 0: the arm without a flow is proxy-anchor+nir-control."),
        ((*HEAD, "loss_options"), {"alhpa": 1}, "Did you mean 'alpha'"),
        ((*HEAD, "nir_options"), {"objective": "nnl"}, "unknown objective 'nnl'. Did you mean 'nll'"),
        (("settings", "proxy-anchor", "nir_weight"), 1, 'belongs to a head, settings."proxy-anchor+nir".nir_weight.'),
        (("settings", "proxy-anchor+nir-control"), {"lr": {}}, "is not read: the control arm has all settings of the"),
        (("published",), [{"metric": "recall@1"}], "`published[0].value` must be set."),
        (("weights",), {"what": "x"}, "`weights.address` must be set."),
        (("asked",), [], "unknown key 'asked'"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(key, value, said):
    assert said in "\n".join(preset_problems(changed(key, value)))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"value": 69.7}, "`published[0].value` must be at most 1, got 69.7."),
        ({"value": "0.697"}, "`published[0].value` must be a number, got '0.697'."),
        ({"metric": "recal@1"}, "unknown metric 'recal@1'. Did you mean 'recall@1'"),
        ({"second_hand": "no"}, "`published[0].second_hand` must be true or false, got 'no'."),
    ],
)
def test_a_published_figure_is_looked_at_before_anything_is_trained(entry, said):
    figure = {"method": "proxy-anchor", "metric": "recall@1", "value": 0.697, "source": "its authors"}
    assert said in "\n".join(preset_problems(changed(("published",), [figure | entry])))


def test_all_problems_are_said_at_once():
    content = changed(("model", "dimm"), 8) | {"seeds": 0}
    assert len(preset_problems(content)) == 2


def test_settings_of_each_method_of_a_run_are_looked_at(digits):
    for name in METHODS:
        check_settings(Run.of(digits, digits.method(name), 0))
    wrong = Run.of(digits, digits.method("soft-triple").changed({"loss_options": {"centers": 2}}), 0)
    with pytest.raises(ValueError, match=r"soft-triple: unknown setting of model.loss_options 'centers'. Did you mean"):
        check_settings(wrong)
    rates = Run.of(digits, digits.method("proxy-nca"), 0)
    rates.model["lr"].pop("backbone")
    with pytest.raises(ValueError, match=r"`model.lr.backbone` must be set"):
        check_settings(rates)


@pytest.mark.parametrize("name", preset_files())
def test_every_preset_that_comes_with_the_library_is_sound_for_all_its_methods(name):
    one = preset(name)
    for method in one.compare:
        check_settings(Run.of(one, one.method(method), 0))


def test_keys_are_quoted_where_toml_wants_it():
    assert dotted(["settings", "proxy-anchor+nir", "lr", "flow"]) == 'settings."proxy-anchor+nir".lr.flow'
    assert dotted(["published", 0, "value"]) == "published[0].value"


def test_crops_are_kept_for_a_frozen_part_alone():
    digits = preset("digits", ["training.crops=2"])
    with pytest.raises(ValueError, match=r"`training\.crops` must be 0 for a network that trains as a whole"):
        check_settings(Run.of(digits, digits.method("proxy-nca"), 0))
    frozen = preset("digits", ["training.crops=2", "model.frozen=layers.3"])
    check_settings(Run.of(frozen, frozen.method("proxy-nca"), 0))
