"""The losses that :class:`~otdml.dml.ProxyDML` and the benchmarks know by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from otdml._arguments import check_known

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LOSSES", "NamedLoss", "named_loss"]


@dataclass(frozen=True)
class NamedLoss:
    """An entry of :data:`LOSSES`.

    Attributes:
        title: What tables and charts call it.
        home: Package and name of its class, which is imported where it is used: names are known without torch.
        has_proxies: Whether the loss learns a proxy of every class, which a NIR head needs.
    """

    title: str
    home: str
    has_proxies: bool = True

    @property
    def kind(self) -> "type[nn.Module]":
        """Its class. A loss with proxies takes ``(num_classes, dim, **options)``, any other ``(**options)``."""
        package, name = self.home.split(":")
        return getattr(import_module(f"otdml.dml.{package}"), name)


LOSSES: Mapping[str, NamedLoss] = {
    "proxy-anchor": NamedLoss("ProxyAnchor", "proxies:ProxyAnchor"),
    "proxy-nca": NamedLoss("ProxyNCA++", "proxies:ProxyNCA"),
    "soft-triple": NamedLoss("SoftTriple", "proxies:SoftTriple"),
    "potential-field": NamedLoss("PFML", "proxies:PotentialField"),
    "multi-similarity": NamedLoss("MultiSimilarity", "pairs:MultiSimilarity", has_proxies=False),
    "triplet-margin": NamedLoss("TripletMargin", "pairs:TripletMargin", has_proxies=False),
}


def named_loss(name: str, num_classes: int, dim: int, options: Mapping[str, Any] | None = None) -> "nn.Module":
    """The loss of that name.

    Args:
        name: A key of :data:`LOSSES`.
        num_classes: Training classes.
        dim: Features of the embedding.
        options: Hyper-parameters of the loss.

    Raises:
        ValueError: There is no such loss; the message lists those there are.

    Example:
        >>> named_loss("proxy-nca", 5, 8, {"temperature": 0.5})
        ProxyNCA(num_classes=5, dim=8, temperature=0.5)
    """
    known = LOSSES[check_known("loss", name, LOSSES)]
    sizes = (num_classes, dim) if known.has_proxies else ()
    return known.kind(*sizes, **dict(options or {}))
