"""Classification by the nearest of learnt directions, one per class, which a regulariser can spread."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import (
    argument_error,
    check_fields,
    check_finite,
    check_generator,
    check_images,
    check_integer,
    check_labels,
    check_nonnegative,
    check_optional_function,
    check_pixels,
    check_points,
    check_positive,
    device_of_draws,
)
from otdml._start import started, to_default_device
from otdml._training import drawn_rows, evaluating, inputs_of, learnt, minimised
from otdml.dml.backbones import ConvNet
from otdml.sphere import uniform_points

__all__ = ["PrototypeClassifier", "Training", "training"]


class PrototypeClassifier(nn.Module):
    """A network to few coordinates, and one learnt direction there per class: its prototype.

    A picture, or a row of features of one, belongs to the class whose prototype has the largest cosine with its
    embedding :cite:p:`mettes:19`. Cosines times a learnt scale are the logits.

    Args:
        classes: Number of classes.
        dim: Coordinates.
        seed: Of the weights and prototypes; the global generator is left as it was.
        size: Height and width of the pictures.
        widths: Channels of each convolution of the network.
        features: How many features a row has; the network is a linear map of them then. None for pictures.
        scale: First value of the scale.

    Example:
        >>> import torch
        >>> classifier = PrototypeClassifier(5, 3, seed=0, size=8, widths=(4, 4))
        >>> logits = classifier(torch.rand(2, 1, 8, 8))
        >>> logits.shape, bool(logits.abs().max() <= 8)
        (torch.Size([2, 5]), True)
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        *,
        seed: int,
        size: int = 20,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        features: int | None = None,
        scale: float = 8.0,
    ) -> None:
        super().__init__()
        classes, dim = check_integer("classes", classes), check_integer("dim", dim)
        seed, size = check_integer("seed", seed, least=None), check_integer("size", size)
        scale, self.size = check_positive("scale", scale), size
        features = features if features is None else check_integer("features", features)
        least = 2 ** (len(widths) - 1)
        if features is None and size < least:
            raise argument_error("size", f"be {least} or more, as every width but the first halves it", size)
        with started(seed):
            self.network = ConvNet(widths) if features is None else nn.Identity()
            features = widths[-1] * (size >> (len(widths) - 1)) ** 2 if features is None else features
            # Coordinates are centred: otherwise all embeddings start in nearly one direction.
            self.project = nn.Sequential(nn.Linear(features, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
            self.prototypes = nn.Parameter(uniform_points(classes, dim))
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        to_default_device(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (n, classes); images in [0, 1], shape (n, 1, h, w), or features, shape (n, features)."""
        inputs = self.network(self._of_its_shape(images)).flatten(1)
        z = F.normalize(self.project(inputs), dim=-1)
        return self.log_scale.exp() * z @ F.normalize(self.prototypes, dim=-1).mT

    def _of_its_shape(self, images: Tensor, *, stored: bool = False) -> Tensor:
        """``images``, if they have the shape of those that this classifier is for; bytes only where ``stored``."""
        if not isinstance(self.network, nn.Identity):
            return check_images("images", images, channels=1, sides=(self.size, self.size), stored=stored)
        features = self.project[0].in_features
        if check_points("images", images).ndim != 2 or images.shape[1] != features:
            raise argument_error("images", f"have shape (n, {features}), a row of features each", tuple(images.shape))
        return images

    def _checked(self, images: Tensor, labels: Tensor) -> Tensor:
        """The labels, if they are classes of this classifier, one for each of the images or rows."""
        check = check_finite if isinstance(self.network, nn.Identity) else check_pixels
        check("images", self._of_its_shape(images, stored=True))
        return check_labels("labels", labels, len(images), len(self.prototypes))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of pictures, as bytes, or rows of features that belong to their class; some at a time."""
        labels = self._checked(images, labels)
        with evaluating(self):
            found = torch.cat([self(inputs_of(self, part)).argmax(1) for part in images.split(500)])
        return float((found == labels).float().mean())


@dataclass(frozen=True)
class Training:
    """How a classifier is trained.

    Attributes:
        regulariser: A loss of points that parts them; none if None. Its parameters are trained, too.
        weight: Of the regulariser beside the cross-entropy.
        rows: Prototypes that it sees in a step, drawn anew each time; all of them if None.
        decay: Weight decay of AdamW, of all parameters but the scale.
        steps: Number of batches.
        batch: Pictures in each.
        rate: The first learning rate; it falls to zero like a cosine.
        faster: Ratio of the learning rate of the prototypes to it. Each is seldom the one of a picture's class.
        distort: Changes the pictures of a batch, see :class:`~otdml.data.Distort`; nothing does if None.
    """

    regulariser: Callable[[Tensor], Tensor] | None = None
    weight: float = 1.0
    rows: int | None = None
    decay: float = 0.0
    steps: int = 1500
    batch: int = 128
    rate: float = 1e-2
    faster: float = 30.0
    distort: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        check_fields(self, weight=check_nonnegative, decay=check_nonnegative)
        check_fields(self, rate=check_positive, faster=check_positive, steps=check_integer)
        # Coordinates are centred over a batch.
        check_fields(self, batch=partial(check_integer, least=2))
        check_fields(self, regulariser=check_optional_function, distort=check_optional_function)
        if self.rows is not None:
            check_fields(self, rows=check_integer)


def training(
    model: PrototypeClassifier, images: Tensor, labels: Tensor, how: Training, generator: torch.Generator
) -> Iterator[int]:
    """Train a classifier; the number of steps so far after each of them.

    Args:
        model: Changed in place.
        images: Bytes, shape (n, 1, h, w), or features, shape (n, f).
        labels: Their classes, shape (n,).
        how: Regulariser and schedule.
        generator: Of batches and distortions. Rows have draws of their own, so that regularisers are compared on the
            same pictures.
    """
    check_generator(generator, needed=True)
    labels = model._checked(images, labels)
    model.train()
    drawing = torch.Generator().manual_seed(generator.initial_seed())

    def loss() -> Tensor:
        index = torch.randint(len(images), (how.batch,), generator=generator, device=device_of_draws(generator))
        batch = inputs_of(model, images[index.to(images.device)])
        batch = batch if how.distort is None else how.distort(batch, generator)
        value = F.cross_entropy(model(batch), labels[index.to(labels.device)].to(batch.device))
        if how.regulariser is None:
            return value
        return value + how.weight * how.regulariser(drawn_rows(model.prototypes, how.rows, drawing))

    return minimised(loss, torch.optim.AdamW(_groups(model, how), lr=how.rate), how.steps)


def _groups(model: PrototypeClassifier, how: Training) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay."""
    special = {"prototypes": (how.faster * how.rate, how.decay), "log_scale": (how.rate, 0.0)}
    groups = []
    for name, parameter in model.named_parameters():
        rate, decay = special.get(name, (how.rate, how.decay))
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return [*groups, {"params": learnt(how.regulariser), "lr": how.rate, "weight_decay": 0.0}]
