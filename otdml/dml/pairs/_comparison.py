"""A batch compared with itself or with a reference: which pairs share a class, and tuples of indices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_integers, check_labels, check_points, has_values
from otdml._distances import distance
from otdml.sphere import unit

__all__ = ["Comparison", "Tuples", "all_pairs", "check_tuples", "compare", "pair_masks", "without_itself"]

Tuples = tuple[Tensor, ...]
"""Indices of an anchor in the batch and others in the reference: triplets ``(anchor, positive, negative)``, or pairs
``(anchor, positive, anchor, negative)``, whose first and last two have lengths of their own."""


@dataclass(frozen=True)
class Comparison:
    """Unit embeddings of a batch and of what it is compared with.

    Attributes:
        z: Unit anchors, shape (n, d).
        reference: Unit points, shape (m, d); those of the batch where there is no other.
        same: Whether two are of one class, shape (n, m).
        itself: Whether anchor i is point i of the reference.
    """

    z: Tensor
    reference: Tensor
    same: Tensor
    itself: bool

    @property
    def positive(self) -> Tensor:
        """Others of the anchor's class, shape (n, m)."""
        if not self.itself:
            return self.same
        return self.same & ~torch.eye(len(self.z), dtype=torch.bool, device=self.z.device)

    @property
    def negative(self) -> Tensor:
        """Points of other classes, shape (n, m)."""
        return ~self.same

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of anchors and of points."""
        return len(self.z), len(self.reference)

    def cosines(self) -> Tensor:
        """Shape (n, m)."""
        return self.z @ self.reference.T

    def distances(self) -> Tensor:
        """Euclidean distances, shape (n, m), exact also where they are small, with gradient zero where they vanish."""
        return distance(self.z, self.reference)


def compare(z: Tensor, labels: Tensor, reference: Tensor | None, reference_labels: Tensor | None) -> Comparison:
    """The comparison of a labelled batch with a labelled reference, or with itself if that is None."""
    if (reference is None) != (reference_labels is None):
        missing = "reference" if reference is None else "reference_labels"
        raise argument_error(missing, "be given with the other of `reference` and `reference_labels`", None)
    labels = _labels("labels", labels, "z", z)
    z = unit(z)
    if reference is None or reference_labels is None:
        return Comparison(z, z, labels[:, None] == labels, itself=True)
    others = _labels("reference_labels", reference_labels, "reference", reference)
    if reference.shape[1] != z.shape[1]:
        raise argument_error("reference", f"have the features of `z`, {z.shape[1]}", reference.shape[1])
    return Comparison(z, unit(reference), labels[:, None] == others, itself=False)


def _labels(name: str, labels: Tensor, points: str, x: Tensor) -> Tensor:
    if check_points(points, x).ndim != 2:
        raise argument_error(points, "have shape (n, d)", tuple(x.shape), "Flatten the batch dimensions.")
    return check_labels(name, labels, len(x)).to(x.device)


def all_pairs(found: Comparison) -> Tuples:
    """All pairs of a comparison, as tuples."""
    return (*found.positive.nonzero(as_tuple=True), *found.negative.nonzero(as_tuple=True))


def pair_masks(found: Comparison, tuples: Tuples | None) -> tuple[Tensor, Tensor]:
    """Masks of the positive and the negative pairs, shape (n, m) each: of all pairs, or of those in ``tuples``."""
    if tuples is None:
        return found.positive, found.negative
    tuples = check_tuples(tuples, found.shape, found.z.device)
    anchor, positive, other, negative = tuples if len(tuples) == 4 else (*tuples[:2], tuples[0], tuples[2])
    masks = torch.zeros((2, *found.same.shape), dtype=torch.bool, device=found.z.device)
    masks[0, anchor, positive] = True
    masks[1, other, negative] = True
    return masks[0], masks[1]


def check_tuples(tuples: Tuples, shape: tuple[int, int], device: torch.device) -> Tuples:
    """``tuples`` as tensors, if they are triplets or pairs of a comparison of this shape, as miners return them."""
    if not isinstance(tuples, (tuple, list)) or len(tuples) not in (3, 4):
        got = len(tuples) if isinstance(tuples, (tuple, list)) else type(tuples).__name__
        raise argument_error("tuples", "hold three or four tensors of indices", got)
    found = tuple(check_integers("tuples", part).to(device) for part in tuples)
    shapes = [tuple(part.shape) for part in found]
    joint = [shapes] if len(found) == 3 else [shapes[:2], shapes[2:]]
    if any(len(one) != 1 for one in shapes) or any(len(set(own)) > 1 for own in joint):
        raise argument_error("tuples", "hold as many anchors as points of each kind, shape (k,)", shapes)
    n, m = shape
    sizes = (n, m, m) if len(found) == 3 else (n, m, n, m)
    wrong = torch.stack([((part < 0) | (part >= size)).any() for part, size in zip(found, sizes, strict=True)]).any()
    if has_values(wrong) and wrong:
        must = f"hold indices of {n} anchors and of {m} points of the reference"
        raise argument_error("tuples", must, "others", "Mine them from the embeddings of this call.")
    return found


def without_itself(tuples: Tuples, rows: Tensor) -> Tuples:
    """The tuples in which no anchor i meets point ``rows[i]`` of the reference."""
    if len(tuples) == 3:
        anchor, positive, negative = tuples
        keep = rows[anchor] != positive
        return anchor[keep], positive[keep], negative[keep]
    anchor, positive, other, negative = tuples
    keep = rows[anchor] != positive
    return anchor[keep], positive[keep], other, negative
