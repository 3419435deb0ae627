"""Dispersion as a regulariser of metric learning, written as ``koleo:0.1`` or ``koleo:0.1@proxies``."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from otdml.dml.names import PLACES, DispersionName
from otdml.losses.dispersion import (
    KernelDispersion,
    KoLeo,
    LloydDispersion,
    MaxCosine,
    MaxMinAngle,
    MMDToUniform,
    SlicedDispersion,
)

__all__ = ["PLACES", "REGULARISERS", "Dispersion"]

REGULARISERS: Mapping[str, Callable[[], nn.Module]] = {
    "koleo": KoLeo,
    "max-min-angle": MaxMinAngle,
    "max-cosine": MaxCosine,
    "uniformity": partial(KernelDispersion, log=True),
    "riesz": partial(KernelDispersion, kernel="riesz"),
    "mmd": partial(MMDToUniform, unbiased=True),
    "lloyd": LloydDispersion,
    "sliced": SlicedDispersion,
}


class Dispersion(nn.Module):
    r"""A dispersion loss on the embeddings of a batch or on the proxies, written ``NAME:WEIGHT[@PLACE]``.

    On **embeddings**, the default, it parts the samples of a batch, those of one class as well: it works against the
    pull of the proxy loss, keeps a class from collapsing to a point, and takes a small weight. On **proxies** it parts
    the classes alone, all of them in every step, whichever are in the batch; several centres of a class are parted from
    each other too. The names:

    ``koleo``, ``max-min-angle``, ``max-cosine``
        :class:`~otdml.losses.KoLeo`, :class:`~otdml.losses.MaxMinAngle`, :class:`~otdml.losses.MaxCosine`
    ``uniformity``, ``riesz``
        :class:`~otdml.losses.KernelDispersion`: the logarithm of its Gaussian energy, and its Coulomb energy (s = 1)
    ``mmd``, ``lloyd``, ``sliced``
        :class:`~otdml.losses.MMDToUniform` (unbiased), :class:`~otdml.losses.LloydDispersion`,
        :class:`~otdml.losses.SlicedDispersion`

    Args:
        text: Name, weight and place, such as ``"koleo:0.1"`` or ``"uniformity:1@proxies"``.

    Attributes:
        name, weight, place: Its three parts. ``str()`` of the module writes them as they are read.

    Raises:
        ValueError: If the text has another form, a part is unknown, or the weight is not positive.

    Example:
        >>> import torch
        >>> regulariser = Dispersion("koleo:0.10@proxies")
        >>> str(regulariser), regulariser.weight
        ('koleo:0.1@proxies', 0.1)
        >>> regulariser(torch.ones(1, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # antipodes: -log 2
        tensor(-0.6931)
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        written = DispersionName.parsed(text)
        self.name, self.weight, self.place = written.name, written.weight, written.place
        self.loss = REGULARISERS[self.name]()

    def __str__(self) -> str:
        return str(DispersionName(self.name, self.weight, self.place))

    def extra_repr(self) -> str:
        return str(self)

    def forward(self, z: Tensor, proxies: Tensor) -> Tensor:
        """The loss, without its weight, of embeddings (n, d) or of proxies (..., d)."""
        return self.loss(z if self.place == "embeddings" else proxies.flatten(0, -2))
