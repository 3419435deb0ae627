"""Functions that the proxy losses share: the check of a batch, initial proxies, and proxies of the samples' classes."""

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_integer, check_labels, check_points, device_of_draws
from otdml._precision import full_precision
from otdml.sphere import unit

__all__ = ["check_batch", "check_no_tuples", "nearest_centres", "normal_proxies", "sizes", "unit_proxies"]


def check_batch(z: Tensor, proxies: Tensor, labels: Tensor, shape: str) -> Tensor:
    """The labels as 64-bit integers on the device of ``z``, if batch and proxies, of this shape, fit each other."""
    check_points("z", z)
    check_points("proxies", proxies)
    if z.ndim != 2:
        raise argument_error("z", "have shape (n, d)", tuple(z.shape), "Flatten the batch dimensions.")
    if proxies.ndim != shape.count(",") + 1:
        raise argument_error("proxies", f"have shape {shape}", tuple(proxies.shape))
    if z.shape[-1] != proxies.shape[-1]:
        raise argument_error("z", f"have the features of the proxies, {proxies.shape[-1]}", z.shape[-1])
    found = check_labels("labels", labels, len(z), len(proxies))
    if not isinstance(labels, Tensor):
        found = found.to(z.device)
    if not z.device == proxies.device == found.device:
        devices = f"{z.device}, {proxies.device} and {found.device}"
        raise argument_error("z", "be on one device with proxies and labels", devices, "Move the loss with `.to`.")
    return found


def check_no_tuples(tuples: object) -> None:
    """Raise for the mined tuples of a trainer of pytorch-metric-learning, which passes None without a miner."""
    if tuples is not None:
        remedy = "Leave out the miner, or take a pair loss."
        raise argument_error(
            "tuples", "be None: samples are compared with proxies, not with each other", "some", remedy
        )


@full_precision
def unit_proxies(z: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
    """The unit proxy of every sample's class, shape (n, d)."""
    labels = check_batch(z, proxies, labels, "(num_classes, d)")
    return unit(proxies[labels])


@full_precision
def nearest_centres(z: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
    """The unit centre nearest to every sample among those of its class, shape (n, d)."""
    labels = check_batch(z, proxies, labels, "(num_classes, centres, d)")
    centres = unit(proxies[labels])
    nearest = (centres @ z[:, :, None]).squeeze(-1).argmax(dim=-1)
    return centres[torch.arange(len(z), device=z.device), nearest]


def normal_proxies(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> nn.Parameter:
    """Proxies of shape (num_classes, ..., dim), normal with this standard deviation."""
    shape = check_integer("num_classes", shape[0]), *shape[1:-1], check_integer("dim", shape[-1])
    initial = torch.randn(shape, generator=generator, device=device_of_draws(generator))
    # The generator may be on another device than the default one, where parameters are made.
    return nn.Parameter(std * initial.to(torch.empty(0).device))


def sizes(proxies: Tensor) -> str:
    """How a loss shows the sizes of its proxies."""
    return f"num_classes={len(proxies)}, dim={proxies.shape[-1]}"
