"""Decoding, cropping and normalising photographs, in images per second of one core.

JPEGs as large as those of In-Shop, CUB-200-2011, Stanford Online Products, and a camera, to 224 pixels: random parts
as in training, and the middle as in evaluation. Beside ours, which decodes no more pixels than a crop needs, stand the
same crops after full decoding, and torchvision's transforms of Pillow images where they are installed.
"""

import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from otdml.benchmarks.speed.harness import Case, Measurement, Wanted, every_case, measure
from otdml.data.images import CenterCrop, RandomResizedCrop, as_rgb

__all__ = ["measurements"]

# Sizes as in In-Shop, CUB and SOP, and of a camera.
_SIZES = ((256, 256), (500, 375), (800, 800), (3000, 2000))
_IMAGES = 16

Transform = Callable[[Image.Image], Tensor]


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Our crops, the same after full decoding, and torchvision's where it imports; quality is the mean pixel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in _SIZES[:2] if quick else _SIZES:
            files = [_photograph(*size, seed=seed) for seed in range(_IMAGES)]
            for phase in ("train", "evaluate"):
                case = {"width": size[0], "height": size[1], "phase": phase, "images": _IMAGES}
                if not wanted(case):
                    continue
                yield from _rows(case, files, 2.0 if quick else 10.0)
    finally:
        torch.set_num_threads(threads)


def _rows(case: Case, files: list[bytes], budget: float) -> Iterator[Measurement]:
    contenders = _contenders(case["phase"])
    expected = _mean_pixel(files, contenders["full decoding"])
    for name, transform in contenders.items():
        # Torchvision draws other random parts from the same seed.
        reach = math.inf if (case["phase"], name) == ("train", "torchvision") else 0.02
        run, near = partial(_mean_pixel, files, transform), partial(math.isclose, expected, rel_tol=0, abs_tol=reach)
        found = measure(case, name, run, accept=near, budget=budget)
        yield replace(found, note=found.note or f"{_IMAGES / found.seconds:.0f} images/s")


def _contenders(phase: str) -> dict[str, Transform]:
    ours: Transform = RandomResizedCrop(224) if phase == "train" else CenterCrop(224)
    theirs = _torchvision(phase)
    return {"otdml": ours, "full decoding": lambda image: ours(as_rgb(image))} | (
        {} if theirs is None else {"torchvision": theirs}
    )


def _torchvision(phase: str) -> Transform | None:
    T = _torchvision_transforms()
    if T is None:
        return None
    crop = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()]
    middle = [T.Resize(256), T.CenterCrop(224)]
    end = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    pipeline = T.Compose([*(crop if phase == "train" else middle), *end])
    return lambda image: pipeline(image.convert("RGB"))


def _torchvision_transforms() -> Any:
    """Torchvision's transforms, None where it is not installed.

    Its compiled operators are made for one build of torch, and it fails at import beside another. The transforms are
    Python over Pillow, and work without them.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        return None
    try:
        return import_module("torchvision.transforms")
    except (ImportError, RuntimeError):
        package = ModuleType("torchvision")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torchvision"] = package
        try:
            return import_module("torchvision.transforms")
        finally:
            del sys.modules["torchvision"]


def _mean_pixel(files: list[bytes], transform: Transform) -> float:
    torch.manual_seed(0)
    return float(torch.stack([transform(Image.open(io.BytesIO(file))) for file in files]).mean())


def _photograph(width: int, height: int, seed: int) -> bytes:
    """Smooth shapes with some noise, which compress as photographs do, some two bits per pixel."""
    chance = np.random.default_rng(seed)
    shapes = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
    pixels = np.asarray(shapes) + chance.normal(0, 8, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
