"""From the features or maps of a network to an embedding."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from otdml._checks import argument_error, check_choice, check_integer, check_known

__all__ = ["POOLS", "EmbeddingHead"]

POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda maps: maps.mean((-2, -1)),
    "max": lambda maps: maps.amax((-2, -1)),
    "avgmax": lambda maps: maps.mean((-2, -1)) + maps.amax((-2, -1)),
}


class EmbeddingHead(nn.Module):
    """Embedding of features: pooling of maps, normalisation if asked for, and a linear layer.

    Args:
        num_features: Features, or channels of maps.
        dim: Features of the embedding.
        kind: ``"linear"``, or ``"layernorm"``, which normalises the pooled features first, without parameters.
        pool: ``"avg"``, ``"max"`` or their sum ``"avgmax"``, over the places of a map; features are not pooled.

    Raises:
        ValueError: In the call, if it is given anything but features (n, num_features), or maps of as many channels.

    Example:
        >>> import torch
        >>> EmbeddingHead(8, 4, pool="avgmax")(torch.zeros(2, 8, 3, 3)).shape
        torch.Size([2, 4])
    """

    def __init__(self, num_features: int, dim: int, *, kind: str = "linear", pool: str = "avg") -> None:
        super().__init__()
        check_choice("head", kind, ("linear", "layernorm"))
        self.pool = check_known("pool", pool, POOLS)
        self.num_features = check_integer("num_features", num_features)
        self.norm = nn.LayerNorm(self.num_features, elementwise_affine=False) if kind == "layernorm" else nn.Identity()
        self.linear = nn.Linear(self.num_features, check_integer("dim", dim))

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim not in (2, 4) or features.shape[1] != self.num_features:
            must = f"return features (n, {self.num_features}) or maps of as many channels, as `num_features` says"
            raise argument_error("backbone", must, f"a tensor of shape {tuple(features.shape)}")
        return self.linear(self.norm(POOLS[self.pool](features) if features.ndim == 4 else features))
