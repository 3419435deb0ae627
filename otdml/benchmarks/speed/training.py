"""One training step of proxy-based metric learning: the loss alone, with a NIR head, and the peer's loss.

A step is the network, the embedding, the loss, all gradients and AdamW, on images that are on the device already. On a
GPU that is the field's setting, ResNet-50 on 90 images of 224 pixels (45 classes with two each) into 512 features under
bfloat16; on a CPU, networks and images that a few minutes suffice for. Networks are not trained before, which no time
depends on.
"""

import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from otdml.benchmarks.speed.harness import Case, Measurement, Wanted, every_case, measure
from otdml.dml.backbones import ResNet, resnet50
from otdml.dml.module import ProxyDML
from otdml.dml.optim import optimizer, param_groups

__all__ = ["measurements"]

# Training classes of CUB-200-2011, and the batches of NIR's published runs.
_CLASSES, _BATCH = 100, 90
_ROUNDS = 7
PEER, PEER_MODULE = "pytorch-metric-learning", "pytorch_metric_learning"
CONTENDERS = ("otdml", PEER, "otdml with NIR")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": resnet50,
    "tiny resnet": partial(ResNet, depths=(1, 1, 1, 1), widths=(16, 32, 64, 128), small_images=True),
}

Losses = Callable[[Tensor, Tensor], dict[str, Tensor]]


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Quality is the proxy term before the first step, which all contenders begin with."""
    for case in filter(wanted, _cases(quick)):
        runs = {name: _contender(case, name)[1] for name in CONTENDERS if name != PEER or find_spec(PEER_MODULE)}
        rows = {name: _first_steps(case, name, run) for name, run in runs.items()}
        seconds = _in_turns({name: run for name, run in runs.items() if math.isfinite(rows[name].seconds)})
        expected = rows["otdml"].quality
        # Half precision keeps two to three digits.
        near = 1e-3 if case["precision"] == "fp32" else 2e-2
        for name, row in rows.items():
            note = row.note or f"{_BATCH * case['steps'] / seconds[name]:.0f} images/s"
            if name == "otdml with NIR" and {name, "otdml"} <= seconds.keys():
                note += f", {seconds[name] / seconds['otdml'] - 1:+.1%} over the loss alone"
            good = abs(row.quality - expected) < near * abs(expected)
            yield replace(row, seconds=seconds.get(name, math.nan), correct=good, note=note)


def _first_steps(case: Case, name: str, run: Callable[[], float]) -> Measurement:
    """Memory and quality. What earlier contenders gave back would else be memory that this one need not ask for."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return measure(case, name, run, repeats=0)


def _in_turns(runs: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The fastest of some rounds: a difference of some percent drowns in what a machine does from minute to minute."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def _cases(quick: bool) -> list[Case]:
    if torch.cuda.is_available():
        pixels = (112,) if quick else (112, 224)
        return [_case("resnet50", size, dim=512, precision="bf16", steps=10) for size in pixels]
    small = _case("tiny resnet", 32, dim=128, precision="fp32", steps=1)
    return [small] if quick else [small, _case("resnet50", 96, dim=512, precision="fp32", steps=1)]


def _case(network: str, pixels: int, *, dim: int, precision: str, steps: int) -> Case:
    shape = {"network": network, "pixels": pixels, "batch": _BATCH, "dim": dim}
    return {**shape, "precision": precision, "steps": steps}


def _contender(case: Case, name: str) -> tuple[ProxyDML, Callable[[], float]]:
    """A module, and what takes the steps of a case with it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_BATCH, 3, case["pixels"], case["pixels"], generator=generator).to(device)
    labels = torch.arange(_BATCH, device=device) // 2
    module = _module(case, nir=name.endswith("NIR")).to(device)
    losses = _peer_losses(module) if name == PEER else module.losses
    return module, _steps(module, losses, images, labels, case)


def _module(case: Case, *, nir: bool) -> ProxyDML:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = NETWORKS[case["network"]]()
    module = ProxyDML(
        _CLASSES,
        backbone=network,
        dim=case["dim"],
        nir_weight=0.01 if nir else 0.0,
        nir_options={"objective": "exp_nll"},
        lr={"backbone": 1e-5, "proxies": 1e-2},
        freeze_bn=True,
        seed=0,
    ).train()
    module.on_train_epoch_start()
    return module


def _peer_losses(module: ProxyDML) -> Losses:
    """The loss of pytorch-metric-learning with the same proxies, over the same network."""
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    peer = ProxyAnchorLoss(_CLASSES, module.head.linear.out_features, margin=0.1, alpha=32)
    # Its parameters replace ours, so that the optimiser updates them.
    peer.proxies.data = module.loss.proxies.data
    module.loss = peer

    def losses(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        value = peer(module.head(module.backbone(images)), labels)
        return {"loss": value, "proxy": value}

    return losses


def _steps(module: ProxyDML, losses: Losses, images: Tensor, labels: Tensor, case: Case) -> Callable[[], float]:
    """The steps of a case, as a function that returns the proxy term of the first."""
    parts = {"backbone": module.backbone, "head": module.head, "proxies": module.loss, "flow": module.nir}
    adamw = optimizer("adamw", param_groups(parts, lr=module.lr, weight_decay=module.weight_decay))

    def run() -> float:
        proxy = []
        for _ in range(case["steps"]):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=case["precision"] == "bf16"):
                terms = losses(images, labels)
            proxy.append(terms["proxy"].detach())
            adamw.zero_grad()
            terms["loss"].backward()
            adamw.step()
        return float(proxy[0])

    return run
