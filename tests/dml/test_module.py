"""The training module: its loss is the formula, its options do what they say, under any Lightning trainer."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from otdml.data import Digits
from otdml.dml import (
    NIR,
    ClassBalancedBatchSampler,
    ProxyAnchor,
    ProxyDML,
    SoftTriple,
    TrainingConfig,
    backbones,
    evaluate,
    fit,
    reference_flow,
    retrieval_metrics,
)
from otdml.dml.backbones import backbone
from otdml.dml.head import EmbeddingHead
from otdml.dml.losses import LOSSES

SMALL = {"backbone_options": {"widths": (4, 8)}, "dim": 8, "seed": 0}
CONFIG = {"classes_per_batch": 3, "samples_per_class": 6, "batches_per_epoch": 2, "accelerator": "cpu"}


@pytest.fixture
def batch(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3


def trained(folder, epochs: int = 1, **options) -> ProxyDML:
    module = ProxyDML(3, **SMALL | options)
    config = TrainingConfig(epochs=epochs, **CONFIG)
    fit(module, Digits(split="train"), folder=folder, config=config, progress=False)
    return module


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss.has_proxies])
def test_loss_is_the_weighted_sum(batch, loss):
    options = {"nir_weight": 0.1, "nir_options": {"objective": "exp_nll"}}
    # Embeddings that were normalised twice differ by rounding, which potentials of charges that nearly meet multiply
    # by 1e9: too much for single precision.
    module = ProxyDML(3, **SMALL, loss=loss, loss_weight=0.5, **options).double()
    images, labels = batch[0].double(), batch[1]
    terms = module.losses(images, labels)
    z = module(images)
    proxy = module.loss(z, labels)
    nir = module.nir(z, module.loss.class_proxies(z, labels)).mean()
    torch.testing.assert_close(terms["proxy"], proxy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms["nir"], nir)
    torch.testing.assert_close(terms["loss"], 0.5 * terms["proxy"] + 0.1 * nir)


def test_a_loss_without_proxies_has_no_flow(batch):
    module = ProxyDML(3, **SMALL, loss="multi-similarity", loss_options={"epsilon": 0.1})
    terms = module.losses(*batch)
    torch.testing.assert_close(terms["loss"], module.loss(module(batch[0]), batch[1]))
    with pytest.raises(ValueError, match="`nir_weight` must be 0 for a loss without `class_proxies`, got MultiSimil"):
        ProxyDML(3, **SMALL, loss="multi-similarity", nir_weight=0.1)


def test_embeddings_are_pooled_normalised_projected(batch):
    module = ProxyDML(3, **SMALL, head="layernorm", pool="avgmax").eval()
    maps = module.backbone(batch[0])
    pooled = maps.flatten(2).mean(2) + maps.flatten(2).amax(2)
    centred = pooled - pooled.mean(1, keepdim=True)
    features = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    expected = F.normalize(features @ module.head.linear.weight.T + module.head.linear.bias)
    torch.testing.assert_close(module(batch[0]), expected)


def test_features_are_not_pooled():
    assert EmbeddingHead(4, 2)(torch.zeros(3, 4)).shape == (3, 2)


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 4), (3, 5, 4, 4), (4,)])
def test_features_of_another_width_than_the_network_says_are_told(shape):
    with pytest.raises(ValueError, match=r"`backbone` must return features \(n, 4\) or maps .*got a tensor of shape"):
        EmbeddingHead(4, 2)(torch.zeros(shape))


def test_no_flow_without_weight():
    assert ProxyDML(3, **SMALL).nir is None
    assert not any("nir" in name for name in ProxyDML(3, **SMALL).state_dict())


def test_nir_keeps_its_options():
    module = ProxyDML(3, **SMALL, nir_weight=1.0, nir_options={"objective": "exp_nll", "detach_proxies": True})
    assert isinstance(module.nir, NIR)
    assert (module.nir.objective, module.nir.detach_proxies) == ("exp_nll", True)


def test_seed_fixes_the_start_and_nothing_else():
    state = torch.get_rng_state()
    first, again = ProxyDML(3, **SMALL, nir_weight=1.0), ProxyDML(3, **SMALL, nir_weight=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = ProxyDML(3, **SMALL | {"seed": 1})
    assert not torch.equal(other.loss.proxies, first.loss.proxies)


def test_seed_holds_under_another_default_device():
    with torch.device("meta"):
        state = torch.get_rng_state()
        there = ProxyDML(3, **SMALL, nir_weight=1.0)
        assert torch.equal(torch.get_rng_state(), state)
    assert {parameter.device.type for parameter in there.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_seed_gives_the_same_start_on_every_device():
    here = ProxyDML(3, **SMALL, nir_weight=1.0)
    with torch.device("cuda"):
        there = ProxyDML(3, **SMALL, nir_weight=1.0)
    assert all(
        b.is_cuda and torch.equal(a, b.cpu()) for a, b in zip(here.parameters(), there.parameters(), strict=True)
    )


def test_the_flow_does_not_change_the_rest_of_the_start():
    """Arms with and without NIR start from the same network and proxies."""
    plain, flow = ProxyDML(3, **SMALL), ProxyDML(3, **SMALL, nir_weight=1.0)
    assert all(torch.equal(value, flow.state_dict()[name]) for name, value in plain.state_dict().items())


def test_parts_learn_at_their_own_rates(tmp_path):
    module = trained(
        tmp_path, lr={"backbone": 0.0, "head": 1e-2, "proxies": 0.0, "flow": 1e-2}, nir_weight=0.1, schedule="constant"
    )
    start = ProxyDML(3, **SMALL, nir_weight=0.1).state_dict()
    moved = {name.split(".")[0] for name, value in module.named_parameters() if not torch.equal(value, start[name])}
    assert moved == {"head", "nir"}


def test_weight_decay_shrinks_matrices_alone(tmp_path):
    """With no learning signal, AdamW multiplies by 1 - lr × decay."""
    module = trained(tmp_path, loss_weight=0.0, lr=0.1, weight_decay={"head": 0.5}, schedule="constant")
    start = ProxyDML(3, **SMALL).state_dict()
    torch.testing.assert_close(module.head.linear.weight, start["head.linear.weight"] * 0.95**2)
    for name in ("head.linear.bias", "loss.proxies", "backbone.layers.0.weight"):
        torch.testing.assert_close(module.state_dict()[name], start[name])


def test_frozen_backbone_stands_still_and_then_learns(tmp_path):
    start = ProxyDML(3, **SMALL).state_dict()
    frozen = trained(tmp_path / "frozen", frozen_epochs=1, lr=1e-2).state_dict()
    moved = {name for name in start if not torch.equal(start[name], frozen[name])}
    assert moved == {"head.linear.weight", "head.linear.bias", "loss.proxies"}
    later = trained(tmp_path / "later", epochs=2, frozen_epochs=1, lr=1e-2)
    assert not torch.equal(later.state_dict()["backbone.layers.0.weight"], start["backbone.layers.0.weight"])
    assert not torch.equal(
        later.state_dict()["backbone.layers.1.running_mean"], start["backbone.layers.1.running_mean"]
    )


def test_parts_frozen_by_the_caller_stay_frozen(tmp_path):
    network = backbone("conv4", SMALL["backbone_options"])
    network.layers[0].weight.requires_grad_(False)
    module = ProxyDML(3, backbone=network, dim=8, frozen_epochs=1, lr=1e-2, seed=0)
    before = module.backbone.layers[0].weight.clone()
    config = TrainingConfig(epochs=2, **CONFIG)
    fit(module, Digits(split="train"), folder=tmp_path, config=config, progress=False)
    assert torch.equal(module.backbone.layers[0].weight, before)
    assert not module.backbone.layers[0].weight.requires_grad


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_backbone_is_as_before_once_it_is_not_frozen(tmp_path, epochs):
    """What the caller has stopped, also after the module was made, and what not."""
    module = ProxyDML(3, **SMALL, frozen_epochs=1)
    module.backbone.layers[1].eval()
    module.backbone.layers[0].weight.requires_grad_(False)
    modes = [part.training for part in module.modules()]
    learnt = [parameter.requires_grad for parameter in module.parameters()]
    config = TrainingConfig(epochs=epochs, **CONFIG)
    with pytest.warns(UserWarning, match="in eval mode"):
        fit(module, Digits(split="train"), folder=tmp_path, config=config, progress=False)
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == learnt
    seen = [part.num_batches_tracked for part in module.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    assert seen == [0, 2 * (epochs - 1)]


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    module = trained(tmp_path, freeze_bn=True)
    assert module.backbone.layers[1].num_batches_tracked == 0
    assert torch.equal(module.backbone.layers[1].running_var, torch.ones(4))


def test_clipping_bounds_the_step(tmp_path):
    """Plain gradient descent moves by lr times the gradient, whose norm is at most the bound."""
    start = ProxyDML(3, **SMALL)
    network = copy.deepcopy(start)
    network.clip = 1e-3
    network.optimizer_name = "sgd"
    config = TrainingConfig(epochs=1, **CONFIG | {"batches_per_epoch": 1})
    fit(network, Digits(split="train"), folder=tmp_path, config=config, progress=False)
    moved = torch.cat([(a - b).flatten() for a, b in zip(network.parameters(), start.parameters(), strict=True)])
    # Nesterov momentum of .9 makes the first step 1.9 gradients long.
    assert float(moved.detach().norm()) == pytest.approx(1.9 * 1e-3 * 1e-3, rel=1e-2)


def test_warmup_and_cosine_reach_the_optimiser(tmp_path):
    rates = []
    module = ProxyDML(3, **SMALL, lr=1.0, warmup_epochs=1)
    config = TrainingConfig(epochs=3, **CONFIG)
    fit(
        module,
        Digits(split="train"),
        folder=tmp_path,
        config=config,
        progress=False,
        on_epoch=lambda _, row: rates.append(row["lr"]),
    )
    # Two steps of warm-up, then four of the cosine; seen after each epoch of two steps.
    assert rates == pytest.approx([1.0, 0.5, 0.0])


def test_steps_fall_by_epoch(tmp_path):
    rates = []
    module = ProxyDML(3, **SMALL, lr=1.0, schedule="step", step_epochs=2, step_factor=0.1, warmup_epochs=1)
    fit(
        module,
        Digits(split="train"),
        folder=tmp_path,
        config=TrainingConfig(epochs=4, **CONFIG),
        progress=False,
        on_epoch=lambda _, row: rates.append(row["lr"]),
    )
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def three_batches(**options) -> DataLoader:
    images, labels = Digits(split="train").batch(range(27))
    return DataLoader(TensorDataset(images.float() / 255, labels), 9, **options)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize(
    ("ends", "rates"),
    [
        ({"max_epochs": 3}, [1 / 3, 2 / 3, 1, 1, 1, 1, 0.5, 0.5, 0.5]),
        ({"max_steps": 9}, [1 / 3, 2 / 3, 1, 1, 1, 1, 0.5, 0.5, 0.5]),
        ({"max_epochs": 9, "max_steps": 7}, [1 / 3, 2 / 3, 1, 1, 1, 1, 0.5]),
        ({"max_steps": 6, "accumulate_grad_batches": 2}, [0.5, 1, 1, 1, 0.5, 0.5]),
    ],
)
def test_epochs_of_a_schedule_are_those_of_the_data(tmp_path, ends, rates):
    """Also under a trainer that ends after so many steps, by which an epoch is not known."""
    seen = Rates()
    module = ProxyDML(3, **SMALL, lr=1.0, schedule="step", step_epochs=1, warmup_epochs=1)
    plain_trainer(tmp_path, callbacks=[seen], **ends).fit(module, three_batches())
    assert seen.seen == pytest.approx(rates)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_schedule_needs_an_end(tmp_path):
    endless = plain_trainer(tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match=r"`schedule` must be 'constant' for a run without end.*`max_steps`"):
        endless.fit(ProxyDML(3, **SMALL), three_batches())

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Digits(split="train"))

    with pytest.raises(ValueError, match=r"`warmup_epochs` must be 0.*cannot be counted.*`limit_train_batches`"):
        plain_trainer(tmp_path, max_steps=2).fit(ProxyDML(3, **SMALL, warmup_epochs=1), DataLoader(Stream(), 9))


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("own", "given", "bound"),
    [
        (None, {"gradient_clip_val": 1e-3}, 1e-3),
        (1e-3, {"gradient_clip_val": 5.0}, 1e-3),
        (1e-3, {"gradient_clip_algorithm": "value"}, 1e-3),
    ],
)
def test_gradients_are_clipped_by_the_module_or_else_the_trainer(tmp_path, precision, own, given, bound):
    """Plain gradient descent with Nesterov's momentum moves by 1.9 times lr and the gradient in its first step."""
    start = ProxyDML(3, **SMALL, optimizer="sgd", clip=own, schedule="constant", lr=1.0)
    module = copy.deepcopy(start)
    plain_trainer(tmp_path, max_steps=1, precision=precision, **given).fit(module, three_batches())
    moved = torch.cat([(a - b).flatten() for a, b in zip(module.parameters(), start.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1.9 * bound, rel=1e-3)


def test_any_module_and_loss_are_accepted(tmp_path, batch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    network.num_features = 16
    module = ProxyDML(3, backbone=network, dim=8, loss=SoftTriple(3, 8, centres=3), seed=0)
    config = TrainingConfig(epochs=1, **CONFIG)
    fit(module, Digits(split="train"), folder=tmp_path, config=config, progress=False)
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    fresh.num_features = 16
    loaded = ProxyDML.load_from_checkpoint(
        tmp_path / "last.ckpt", backbone=fresh, loss=SoftTriple(3, 8, centres=3), weights_only=True
    )
    assert torch.equal(loaded(batch[0]), module(batch[0]))


def test_hyper_parameters_are_plain():
    module = ProxyDML(3, **SMALL, lr={"backbone": 1e-3}, loss=ProxyAnchor(3, 8))
    assert "loss" not in module.hparams
    assert module.hparams["backbone_options"] == {"widths": [4, 8]}
    assert module.hparams["lr"] == {"backbone": 1e-3}


def test_checkpoints_hold_plain_types_whatever_the_arguments(tmp_path, batch):
    """Numbers of NumPy and generators would need an unsafe load; a flow is passed again."""
    flow = {"flow": reference_flow(8, blocks=1, layers=2, width=4)}
    numbers = {"lr": np.float64(1e-3), "nir_weight": np.float64(0.1), "step_factor": np.float64(0.1)}
    options = numbers | {"schedule": "step", "loss_options": {"generator": torch.Generator()}}
    module = trained(tmp_path, **options, nir_options=flow)
    assert type(module.hparams["lr"]) is float
    assert (module.hparams["nir_options"], module.hparams["loss_options"]) == ({}, {})
    again = {"flow": reference_flow(8, blocks=1, layers=2, width=4)}
    loaded = ProxyDML.load_from_checkpoint(tmp_path / "last.ckpt", nir_options=again, weights_only=True)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("widths", [np.array([4, 8]), torch.tensor([4, 8]), range(4, 9, 4)])
def test_checkpoints_hold_lists_whatever_sequence_is_given(tmp_path, widths):
    """An array in a checkpoint would make it one that no safe load reads, and no run goes on from."""
    module = trained(tmp_path, backbone_options={"widths": widths})
    assert module.hparams["backbone_options"] == {"widths": [4, 8]}
    assert ProxyDML.load_from_checkpoint(tmp_path / "last.ckpt").hparams == module.hparams
    again = trained(tmp_path, backbone_options={"widths": widths})
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())


def test_checkpoints_do_not_ask_for_the_weights_they_started_from(tmp_path):
    options = {"in_channels": 1, "small_images": True}
    file = tmp_path / "published.pth"
    torch.save(backbone("resnet18", options).state_dict(), file)
    module = ProxyDML(3, backbone="resnet18", backbone_options=options | {"weights": Path(file)}, dim=8)
    assert torch.equal(module.backbone.conv1.weight, torch.load(file)["conv1.weight"])
    assert module.hparams["backbone_options"] == options
    file.unlink()
    torch.save({"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}, tmp_path / "some.ckpt")
    content = torch.load(tmp_path / "some.ckpt", weights_only=True)
    again = ProxyDML(**content["hyper_parameters"])
    again.load_state_dict(content["state_dict"])
    assert torch.equal(again.backbone.conv1.weight, module.backbone.conv1.weight)


def test_checkpoints_do_not_ask_other_libraries_for_their_weights(monkeypatch):
    asked = []

    def library(name, *, pretrained=True, width=4):
        asked.append((name, pretrained))
        return backbone("conv4", {"widths": (width,)})

    monkeypatch.setitem(backbones.LIBRARIES, "timm", library)
    first = ProxyDML(3, backbone="timm/net", backbone_options={"width": 8}, dim=8, seed=0)
    assert ProxyDML(**first.hparams).backbone.num_features == 8
    assert asked == [("net", True), ("net", False)]
    assert first.start == {"pretrained": True}
    assert ProxyDML(3, backbone="timm/net", backbone_options={"pretrained": False}).start == {"pretrained": False}


def test_half_precision_training_is_finite(tmp_path):
    module = ProxyDML(3, **SMALL, nir_weight=0.01, nir_options={"objective": "exp_nll"})
    config = TrainingConfig(epochs=1, precision="bf16-mixed", **CONFIG)
    fit(module, Digits(split="train"), folder=tmp_path, config=config, progress=False)
    assert all(parameter.isfinite().all() and parameter.dtype == torch.float32 for parameter in module.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.rand(2, 1, 8, 8)).dtype == torch.float32


def plain_trainer(folder, **options):
    """A trainer that writes and says nothing."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**quiet, enable_checkpointing=False, accelerator="cpu", default_root_dir=folder, **options)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_any_trainer_validates_with_retrieval_metrics(tmp_path):
    module = ProxyDML(3, **SMALL)
    trainer = plain_trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    val = Digits(split="val")
    trainer.fit(module, DataLoader(Digits(split="train"), 30), DataLoader(val, 100))
    with torch.no_grad():
        expected = retrieval_metrics(module.eval()(val.images.float() / 255), val.labels)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert found == pytest.approx({f"val/{name}": value for name, value in expected.items()}, abs=1e-6)


class Searched(Digits):
    """Digits of which every fifth searches the others."""

    def __init__(self) -> None:
        super().__init__(split="val")
        self.is_query = torch.arange(len(self)) % 5 == 0


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_any_trainer_validates_as_a_run_in_a_folder_does(tmp_path):
    """Also for a set with queries, which the values of its samples do not tell."""
    module, val = ProxyDML(3, **SMALL), Searched()
    trainer = plain_trainer(tmp_path)
    (found,) = trainer.validate(module, DataLoader(val, 100), verbose=False)
    expected = evaluate(module, val)
    assert found == pytest.approx({f"val/{name}": value for name, value in expected.items()}, abs=1e-6)
    assert expected != evaluate(module, Digits(split="val"))
    with pytest.raises(ValueError, match=r"val_dataloaders.*in its order"):
        trainer.validate(module, DataLoader(val, 100, shuffle=True), verbose=False)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_any_trainer_turns_the_epochs_of_the_sampler(tmp_path):
    data, seen = Digits(split="train"), []

    class Watched(ProxyDML):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    sampler = ClassBalancedBatchSampler(data.labels, 3, 2, batches=1)
    trainer = plain_trainer(tmp_path, max_epochs=2)
    trainer.fit(Watched(3, **SMALL), DataLoader(data, batch_sampler=sampler))
    for epoch, images in enumerate(seen):
        sampler.set_epoch(epoch)
        assert torch.equal(images, torch.stack([data[i][0] for i in next(iter(sampler))]))
    assert not torch.equal(*seen)


def test_bad_arguments_are_named():
    for name, value in {"backbone": "conv5", "loss": "triplet", "optimizer": "lion", "schedule": "linear"}.items():
        with pytest.raises(ValueError, match=value):
            ProxyDML(3, **{name: value})
    for name, value in {
        "num_classes": 1,
        "dim": 0,
        "loss_weight": -1.0,
        "nir_weight": -1.0,
        "clip": 0.0,
        "lr": -1.0,
    }.items():
        with pytest.raises(ValueError, match=name):
            ProxyDML(**{"num_classes": 3} | {name: value})
    for name in ("head", "pool"):
        with pytest.raises(ValueError, match="cubic"):
            ProxyDML(3, **{name: "cubic"})
    with pytest.raises(ValueError, match="`loss_options` must be empty"):
        ProxyDML(3, loss=ProxyAnchor(3, 64), loss_options={"alpha": 16.0})


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_validation_that_was_broken_off_is_forgotten():
    class Failing(torch.utils.data.Dataset):
        def __init__(self, digits, at):
            self.digits, self.at = digits, at

        def __len__(self):
            return len(self.digits)

        def __getitem__(self, index):
            if index == self.at:
                raise ZeroDivisionError
            return self.digits[index]

    module, digits = ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, seed=0), Digits(split="val")
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ZeroDivisionError):
        trainer.validate(module, DataLoader(Failing(digits, 60), batch_size=20), verbose=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.neg_()
    (found,) = trainer.validate(module, DataLoader(Failing(digits, -1), batch_size=20), verbose=False)
    (again,) = trainer.validate(module, DataLoader(Failing(digits, -1), batch_size=20), verbose=False)
    assert found == again
