"""Changes on the command line: read as TOML or Python, and refused where they would not reach a run."""

import pytest

from otdml.benchmarks.changes import merged, parsed
from otdml.benchmarks.presets import preset


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("model.freeze_bn=False", ("model", "freeze_bn"), False),
        ("model.freeze_bn=true", ("model", "freeze_bn"), True),
        ("model.clip=None", ("model", "clip"), None),
        ("model.clip=.5", ("model", "clip"), 0.5),
        ("model.clip = 1e-3", ("model", "clip"), 1e-3),
        ("training.ks=(1, 10)", ("training", "ks"), [1, 10]),
        ("training.ks=[1, 10]", ("training", "ks"), [1, 10]),
        ("model.lr={ backbone = 1e-3 }", ("model", "lr"), {"backbone": 1e-3}),
        ("model.backbone=hf/vit", ("model", "backbone"), "hf/vit"),
        ("model.backbone='resnet18'", ("model", "backbone"), "resnet18"),
        ("settings.proxy-anchor+nir.nir_weight=1", ("settings", "proxy-anchor+nir", "nir_weight"), 1),
        ('settings."proxy-anchor+nir".nir_weight=1', ("settings", "proxy-anchor+nir", "nir_weight"), 1),
    ],
)
def test_a_change_is_a_key_and_a_value(text, key, value):
    found = parsed(text)
    assert found == (key, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs=3", "KEY=VALUE, such as training.epochs=3"),
        ("training.epochs", "KEY=VALUE"),
        ("model.=3", "KEY=VALUE"),
        ("model.a b=3", "KEY=VALUE"),
        ("model..dim=3", "KEY=VALUE"),
        ("model.dim=3\nmodel.clip=2", "KEY=VALUE"),
        ("modle.dim=3", "unknown table to --set 'modle'. Did you mean 'model'"),
        ("seeds=3", "--set seeds: it is --seeds that sets this"),
        ("compare=[]", "it is --method that sets this"),
        ("model.widths=[1, 2", "cannot read the value in 'model.widths=[1, 2'"),
        ("model.dim=", "cannot read the value in 'model.dim='"),
    ],
)
def test_what_is_no_change_is_shown(text, said):
    with pytest.raises(ValueError) as error:
        parsed(text)
    assert said in str(error.value)


def test_another_backbone_leaves_the_options_of_the_former():
    assert preset("digits", ["model.backbone=resnet18"]).model.get("backbone_options") is None
    assert preset("digits", ["model.dim=16"]).model["backbone_options"] == {"widths": [64, 128]}
    below = {"backbone": "conv4", "backbone_options": {"widths": [8]}}
    assert merged(below, {"backbone": "conv4", "backbone_options": {"in_channels": 3}}) == {
        "backbone": "conv4",
        "backbone_options": {"widths": [8], "in_channels": 3},
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model.dim=3", "model.dim=4"], "model.dim is given before"),
        (["model.lr=1e-3", "model.lr.head=1e-3"], "model.lr is given before"),
        (["model.freeze_bn=yes"], "--set: `model.freeze_bn` must be true or false, got 'yes'."),
        (["model.clip=none"], "`model.clip` must be a number, got 'none'."),
        (["model.backbone=None"], "`model.backbone` must be text, got None."),
        (["model.loss_options.alpha=64"], 'settings."proxy-anchor".loss_options'),
    ],
)
def test_a_change_that_nothing_takes_is_refused(changes, said):
    with pytest.raises(ValueError) as error:
        preset("digits", changes)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "methods", "said"),
    [
        (
            "digits",
            ["model.lr.proxies=1"],
            ["proxy-anchor+nir"],
            '"proxy-anchor+nir".lr.proxies` comes later',
        ),
        ("digits", ["model.lr=1"], ["proxy-anchor+nir"], '"proxy-anchor+nir".lr.proxies` comes later'),
        ("digits", ["model.warmup_epochs=3"], ["proxy-nca+nir-control"], "does not reach proxy-nca+nir-control"),
        ("digits", ["model.step_epochs=3"], ["proxy-nca"], "model.schedule is cosine"),
        ("digits", ["model.lr.flow=3"], ["proxy-nca"], "no method with a flow is run"),
        ("digits", ["training.select=recall@1"], ["proxy-nca"], "without --hold-out"),
        ("digits", ["training.workers=2"], ["proxy-nca"], "live in memory"),
        ("digits", ["settings.soft-triple.loss_options.tau=1"], ["proxy-nca"], "soft-triple is not run"),
        ("digits", ["training.maps=kept"], ["proxy-nca"], "nothing is kept without training.crops"),
        ("digits", ["model.lr.proxies=1"], ["multi-similarity"], "no method with proxies is run"),
        ("digits", ["model.weight_decay.proxies=1"], ["triplet-margin"], "no method with proxies is run"),
        ("digits", ["model.frozen_epochs=9", "training.epochs=3"], ["proxy-nca"], "training has 3 epochs"),
        ("digits", ["settings.proxy-nca+nir.nir_weight=1"], ["proxy-nca", "proxy-nca+nir-control"], "is not run"),
        ("omniglot-small", ["settings.proxy-anchor+nir.nir_options.cap=1"], ["proxy-anchor+nir"], "objective is nll"),
    ],
)
def test_a_change_that_would_not_reach_its_runs_is_refused_with_what_comes_later(name, changes, methods, said):
    with pytest.raises(ValueError) as error:
        preset(name, changes).check_asked(methods, hold_out=False)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "methods", "where", "value"),
    [
        (["model.lr.proxies=1"], "proxy-anchor", ("lr", "proxies"), 1),
        (["model.lr.proxies=1", "settings.proxy-anchor+nir.lr.proxies=2"], "proxy-anchor+nir", ("lr", "proxies"), 2),
        (["settings.proxy-anchor.loss_options.alpha=64"], "proxy-anchor+nir", ("loss_options", "alpha"), 64),
        (["settings.proxy-anchor+nir.loss_weight=2"], "proxy-anchor+nir-control", ("loss_weight",), 2),
        (["model.schedule=step", "model.step_epochs=3"], "proxy-nca", ("step_epochs",), 3),
        (["model.frozen_epochs=3", "training.epochs=3"], "proxy-nca", ("frozen_epochs",), 3),
        (["model.freeze_bn=True"], "proxy-nca", ("freeze_bn",), True),
    ],
)
def test_a_change_that_is_taken_reaches_its_run(changes, methods, where, value):
    one = preset("digits", changes)
    one.check_asked([methods], hold_out=False)
    found = one.arguments(one.method(methods))
    for part in where:
        found = found[part]
    assert found == value


def test_a_file_on_top_of_others_says_what_comes_later(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "cub"\n[model]\nfrozen_epochs = 0\n')
    with pytest.raises(
        ValueError, match=r"mine.toml: `model.frozen_epochs` does not reach proxy-anchor\+nir: `settings"
    ):
        preset(mine)
    mine.write_text(mine.read_text() + '[settings."proxy-anchor+nir"]\nfrozen_epochs = 1\n')
    assert preset(mine).method("proxy-anchor+nir").frozen_epochs == 1
