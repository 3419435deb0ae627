"""The training module: network, embedding head, proxy loss and NIR, and how they are optimised."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otdml._arguments import check_boolean
from otdml._checks import argument_error, check_integer, check_known, check_nonnegative, check_positive
from otdml._start import started, to_default_device
from otdml.distributed import gather, total
from otdml.dml.backbones import backbone as make_backbone
from otdml.dml.backbones import num_features
from otdml.dml.backbones.cut import cut, stopped
from otdml.dml.checkpoint import checkpoint
from otdml.dml.dispersion import Dispersion
from otdml.dml.evaluation import protocol_metrics
from otdml.dml.export import load_pretrained, save_pretrained
from otdml.dml.head import EmbeddingHead
from otdml.dml.hold import Hold
from otdml.dml.hyperparameters import plain, without_start
from otdml.dml.loading import loaded_places, loaded_queries
from otdml.dml.losses import named_loss
from otdml.dml.optim import OPTIMIZERS, SCHEDULES, by_group, optimizer, param_groups, run_schedule
from otdml.dml.trust import check_modules, check_names
from otdml.sphere import unit

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities import GradClipAlgorithmType
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("ProxyDML is built on Lightning: pip install 'otdml[train]'") from error

__all__ = ["ProxyDML"]


class ProxyDML(LightningModule):
    r"""Proxy-based metric learning, from images to unit embeddings.

    Trained on ``loss_weight * proxy_loss + nir_weight * mean(nir)``, plus a weighted dispersion loss where one is asked
    for. The module trains under any Lightning trainer;
    :func:`otdml.dml.fit` runs it in a folder that a killed run can go on from. Its checkpoints hold network, head,
    proxies, flow and hyper-parameters, all as plain types: ``torch.load(path, weights_only=True)`` reads them, and
    ``ProxyDML.load_from_checkpoint(path)`` rebuilds the module (pass ``backbone``, ``loss`` or ``nir_options`` again
    where they were modules, or contained one).

    Args:
        num_classes: Training classes.
        backbone: A name as :func:`otdml.dml.backbones.backbone` takes it, or a module.
        backbone_options: Arguments of the named backbone.
        dim: Features of the embedding.
        head: ``"linear"`` or ``"layernorm"``, see :class:`EmbeddingHead`.
        pool: ``"avg"``, ``"max"`` or ``"avgmax"``.
        loss: A key of :data:`otdml.dml.losses.LOSSES` such as ``"proxy-anchor"``, or a module that maps embeddings and
            labels to a scalar; NIR asks it for ``class_proxies(z, labels)``.
        loss_options: Arguments of the named loss.
        loss_weight: Scale of the proxy term.
        nir_weight: Scale of the NIR term; at zero no flow is built.
        nir_options: Arguments of :class:`otdml.dml.NIR` such as ``{"objective": "nll"}``.
        dispersion: A dispersion loss with its weight, as :class:`otdml.dml.Dispersion` reads it: ``"koleo:0.1"`` on the
            embeddings of a batch, ``"koleo:0.1@proxies"`` on the ``proxies`` of the loss. None for none.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``.
        lr: Learning rate, of all parts or of each of ``"backbone"``, ``"head"``, ``"proxies"``, ``"flow"``; a part
            that is not named learns at the backbone's rate.
        weight_decay: Likewise; a part that is not named does not decay, and biases and norms never do.
        schedule: ``"cosine"`` to zero, ``"step"`` or ``"constant"``, by optimisation step.
        step_epochs: Epochs between two drops of ``"step"``; a third of those after the warm-up if None.
        step_factor: What each drop multiplies the learning rates by.
        warmup_epochs: Epochs over which the learning rates rise linearly.
        frozen_epochs: First epochs, in which the backbone is frozen, its statistics included.
        clip: Largest norm of the gradient. None for no clipping.
        freeze_bn: Whether batch norms of the backbone keep their statistics, as with pretrained networks.
        frozen: Name of a layer, such as ``"layer3"``; it and all layers below it are frozen, their statistics included.
            Its maps can be computed once and stored, see ``crops`` of :class:`~otdml.dml.TrainingConfig`. None to train
            all of it.
        seed: Of the initial values. PyTorch's default generator if None.

    Attributes:
        backbone, head, loss, nir, dispersion: The parts; ``nir`` and ``dispersion`` are None where there is none.
        start: What the network started from, which no checkpoint asks for again: a file of weights, or whether those of
            its library.

    Raises:
        ValueError: If a name or a number is out of range; the message lists what there is.

    Example:
        >>> import torch
        >>> module = ProxyDML(num_classes=5, dim=8, seed=0)
        >>> z = module(torch.zeros(2, 1, 8, 8))
        >>> z.shape, z.norm(dim=-1).round(decimals=4)
        (torch.Size([2, 8]), tensor([1., 1.], grad_fn=<RoundBackward1>))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str | nn.Module = "conv4",
        backbone_options: Mapping[str, Any] | None = None,
        dim: int = 64,
        head: str = "linear",
        pool: str = "avg",
        loss: str | nn.Module = "proxy-anchor",
        loss_options: Mapping[str, Any] | None = None,
        loss_weight: float = 1.0,
        nir_weight: float = 0.0,
        nir_options: Mapping[str, Any] | None = None,
        dispersion: str | None = None,
        optimizer: str = "adamw",
        lr: float | Mapping[str, float] = 1e-3,
        weight_decay: float | Mapping[str, float] = 0.0,
        schedule: str = "cosine",
        step_epochs: int | None = None,
        step_factor: float = 0.5,
        warmup_epochs: int = 0,
        frozen_epochs: int = 0,
        clip: float | None = None,
        freeze_bn: bool = False,
        frozen: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, least=2)
        self._remember(locals())
        self.lr, self.weight_decay = by_group("lr", lr), by_group("weight_decay", weight_decay, default=0.0)
        self.optimizer_name = check_known("optimizer", optimizer, OPTIMIZERS)
        self.schedule_name = check_known("schedule", schedule, SCHEDULES)
        self.step_epochs = None if step_epochs is None else check_integer("step_epochs", step_epochs)
        self.step_factor = float(check_positive("step_factor", step_factor))
        self.warmup_epochs = check_integer("warmup_epochs", warmup_epochs, least=0)
        self.frozen_epochs = check_integer("frozen_epochs", frozen_epochs, least=0)
        self.clip = None if clip is None else check_positive("clip", clip)
        self.loss_weight = check_nonnegative("loss_weight", loss_weight)
        self.nir_weight = check_nonnegative("nir_weight", nir_weight)
        with started(seed):
            self.backbone = make_backbone(backbone, backbone_options)
            self.head = EmbeddingHead(num_features(self.backbone), dim, kind=head, pool=pool)
            self.loss: Any = _loss(loss, num_classes, dim, loss_options)
            self.nir = _nir(dim, nir_options, self.loss) if nir_weight else None
        self.dispersion = _dispersion(dispersion, self.loss)
        to_default_device(self, seed)
        self._stop(frozen, freeze_bn)
        self._unseen: list[tuple[Tensor, Tensor]] = []

    def _stop(self, frozen: str | None, freeze_bn: bool) -> None:
        """Freeze the backbone up to a layer, and the statistics of its batch norms if that is asked for."""
        self.freeze_bn = check_boolean("freeze_bn", freeze_bn)
        self.frozen, self._still = frozen, [] if frozen is None else stopped(self.backbone, frozen)
        # In a tuple, so that its modules are not registered a second time.
        self._upper: tuple[nn.Module, ...] = ()
        self._hold = Hold()

    def _remember(self, arguments: Mapping[str, Any]) -> None:
        """Keep the hyper-parameters that a checkpoint can hold as plain types."""
        names = [name for name in inspect.signature(ProxyDML.__init__).parameters if name != "self"]
        kept = {name: plain(arguments[name]) for name in names if not isinstance(arguments[name], nn.Module)}
        # A module counts by what it shows of itself.
        shown = {name: repr(arguments[name]) for name in names if isinstance(arguments[name], nn.Module)}
        self.start = without_start(kept) | shown
        self.save_hyperparameters(kept)

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings (n, dim), in float32 whatever the autocast."""
        return unit(self.head(self.network(images)).float())

    @property
    def network(self) -> nn.Module:
        """The network from inputs to features: the backbone, or within :meth:`on_maps` its part above ``frozen``."""
        return self._upper[0] if self._upper else self.backbone

    @contextmanager
    def on_maps(self) -> Iterator[None]:
        """Within it the module takes maps of the layer ``frozen`` where it takes images otherwise."""
        if self.frozen is None:
            raise argument_error("frozen", "name a layer of a module that takes its maps", None)
        self._upper = (cut(self.backbone, self.frozen).upper,)
        try:
            yield
        finally:
            self._upper = ()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, the two files of a model on the Hugging Face hub.

        They hold the hyper-parameters and all weights, proxies and flow included, and no code. ``huggingface_hub``'s
        mixin reads them, and :meth:`from_pretrained`.

        Args:
            folder: Where to; made if missing.
        """
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, trust: bool = False, **changes: Any
    ) -> "ProxyDML":
        """The module that :meth:`save_pretrained` wrote, in evaluation.

        Args:
            name: A folder; or ``OWNER/NAME`` of a repository on the hub, where huggingface_hub is installed.
            revision: Branch, tag or commit of the repository.
            trust: Whether it may name networks that load files or run code of others.
            changes: Arguments of the module in place of those kept: ``backbone`` and ``loss`` where they were modules.

        Raises:
            FileNotFoundError: If there is no such folder, and the name is none of a repository.
            ValueError: If its settings name such a network, and ``trust`` is not given.
        """
        check_boolean("trust", trust)
        settings, state = load_pretrained(name, revision)
        if not trust and "backbone" not in changes:
            check_names(settings, name)
        check_modules(settings, changes)
        module = cls(**{**settings, **changes})
        module.load_state_dict(state)
        return module.eval()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust: bool = False, **kwargs: Any) -> "ProxyDML":
        """The module of a checkpoint, as Lightning loads it; ``trust`` as in :meth:`from_pretrained`."""
        given = check_boolean("trust", trust) or "backbone" in kwargs
        if isinstance(checkpoint_path, str | os.PathLike):
            settings = checkpoint(Path(checkpoint_path)).get("hyper_parameters") or {}
            if not given:
                check_names(settings, str(checkpoint_path))
            check_modules(settings, kwargs)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The ``loss`` and its unweighted terms: ``proxy`` and, where asked for, ``nir`` and ``dispersion``.

        Under distributed training every process passes its share, and the values are those of the whole batch.
        """
        # Not normalised: every loss normalises.
        z = self.head(self.network(images))
        everyone, theirs = gather(z), gather(labels)
        terms = {"proxy": self.loss(everyone, theirs)}
        loss = self.loss_weight * terms["proxy"]
        if self.nir is not None:
            # A mean over samples can be split over processes: each evaluates the flow, the largest cost, on its share.
            terms["nir"] = total(self.nir(z, self.loss.class_proxies(z, labels)).sum()) / len(theirs)
            loss = loss + self.nir_weight * terms["nir"]
        if self.dispersion is not None:
            parted = self.loss.proxies if self.dispersion.place == "proxies" else everyone
            terms["dispersion"] = self.dispersion(everyone, parted)
            loss = loss + self.dispersion.weight * terms["dispersion"]
        return {"loss": loss, **terms}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        terms = self.losses(*batch)
        return {name: value if name == "loss" else value.detach() for name, value in terms.items()}

    def on_train_epoch_start(self) -> None:
        """Freeze the parts that are not trained in this epoch."""
        if self.current_epoch < self.frozen_epochs:
            self._hold.freeze(self.backbone)
        else:
            self._hold.release()
        if self.freeze_bn:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        for module in self._still:
            module.eval()

    def on_train_end(self) -> None:
        """Leave a backbone that was frozen to the end as it was before."""
        self._hold.release()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self._unseen.append((self(images), labels))

    def on_validation_epoch_start(self) -> None:
        """Forget what a validation that was broken off has left."""
        self._unseen.clear()

    def on_validation_epoch_end(self) -> None:
        """Log retrieval metrics of the validation classes, under ``val/``: those of :func:`otdml.dml.evaluate`."""
        z, labels = (gather(torch.cat(parts)) for parts in zip(*self._unseen, strict=True))
        count = sum(len(own) for _, own in self._unseen)
        self._unseen.clear()
        if self.trainer.sanity_checking:
            # The few batches of a sanity check may hold no item that a query should find.
            return
        index = loaded_places(self.trainer.val_dataloaders, count)
        index = None if index is None else gather(index.to(z.device))
        asked = loaded_queries(self.trainer.val_dataloaders, index)
        found = protocol_metrics(
            z,
            labels,
            is_query=asked,
            index=index,
            share=True,
        )
        # All processes have the same values; the largest of them is that value to the bit.
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True, reduce_fx="max")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parts = {"backbone": self.backbone, "head": self.head, "proxies": self.loss, "flow": self.nir}
        groups = param_groups(parts, lr=self.lr, weight_decay=self.weight_decay)
        # Lightning refuses to clip gradients that a fused optimiser unscales by itself.
        found = optimizer(self.optimizer_name, groups, fused=not (self.clip or self.trainer.gradient_clip_val))
        rate = run_schedule(
            self.trainer,
            self.schedule_name,
            warmup_epochs=self.warmup_epochs,
            step_epochs=self.step_epochs,
            factor=self.step_factor,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(found, rate)
        return {"optimizer": found, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The own `clip`, of the norm, has precedence over the trainer's; `clip_gradients` refuses to have both.
        value, kind = gradient_clip_val or 0.0, gradient_clip_algorithm or "norm"
        if self.clip:
            value, kind = self.clip, "norm"
        self.trainer.precision_plugin.clip_gradients(optimizer, value, GradClipAlgorithmType(kind))


def _loss(loss: str | nn.Module, num_classes: int, dim: int, options: Mapping[str, Any] | None) -> nn.Module:
    if isinstance(loss, nn.Module):
        if options:
            raise argument_error("loss_options", "be empty where the loss is a module", dict(options))
        return loss
    return named_loss(loss, num_classes, dim, options)


def _nir(dim: int, options: Mapping[str, Any] | None, loss: nn.Module) -> nn.Module:
    if not hasattr(loss, "class_proxies"):
        raise argument_error("nir_weight", "be 0 for a loss without `class_proxies`", f"{type(loss).__name__}")
    from otdml.dml.nir import NIR

    return NIR(dim, **dict(options or {}))


def _dispersion(text: str | None, loss: nn.Module) -> Dispersion | None:
    if text is None:
        return None
    found = Dispersion(text)
    if found.place == "proxies" and not isinstance(getattr(loss, "proxies", None), Tensor):
        raise argument_error("dispersion", "be on embeddings for a loss without `proxies`", repr(text))
    return found
