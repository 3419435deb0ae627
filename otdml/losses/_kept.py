"""A value that is cached until the tensors it was computed from change."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from otdml._transforms import transforming

__all__ = ["Kept"]


class Kept:
    """The last value of a function of tensors and options.

    It is computed anew when another tensor is passed, the tensor was written to (other than through ``.data`` or a
    NumPy array that shares its memory, which leave no trace), or an option changed. None is returned where a tensor
    requires a gradient, or is one of inference mode, whose changes are not counted; a value with a derivative, in
    whatever the function has within it, or under a transform, is returned and not kept. Copies and pickles start empty.

    Example:
        >>> import torch
        >>> kept, y = Kept(), torch.ones(2)
        >>> kept(lambda: y.sum(), (y, None), {}), kept(lambda: y.prod(), (y, None), {})  # the same tensor: the sum
        (tensor(2.), tensor(2.))
        >>> y = y.mul_(3)
        >>> kept(lambda: y.sum(), (y, None), {})
        tensor(6.)
    """

    def __init__(self) -> None:
        self._key: list[tuple[weakref.ref[Tensor], int] | None] = []
        self._options: dict[str, Any] = {}
        self._value: Tensor | None = None

    def __call__(
        self, compute: Callable[[], Tensor], tensors: tuple[Tensor | None, ...], options: Mapping[str, Any]
    ) -> Tensor | None:
        if any(t is not None and (t.requires_grad or t.is_inference()) for t in tensors):
            return None
        if self._value is None or self._options != options or not _same(self._key, tensors):
            # Parameters within the function show in a graph only, and what is kept may be used where there is one.
            with torch.inference_mode(False), torch.enable_grad():
                value = compute()
            if value.requires_grad or transforming(value):
                return value
            self._key = [None if t is None else (weakref.ref(t), t._version) for t in tensors]
            self._options, self._value = dict(options), value
        return self._value

    def __getstate__(self) -> dict[str, Any]:
        return {"_key": [], "_options": {}, "_value": None}


def _same(key: list[tuple[weakref.ref[Tensor], int] | None], tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether these are the tensors of the key, not written to since."""
    return len(key) == len(tensors) and all(map(_unchanged, key, tensors))


def _unchanged(known: tuple[weakref.ref[Tensor], int] | None, tensor: Tensor | None) -> bool:
    if known is None or tensor is None:
        return known is None and tensor is None
    return known[0]() is tensor and known[1] == tensor._version
