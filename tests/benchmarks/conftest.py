"""A benchmark whose runs were not trained but written down, with numbers that are easy to check."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from otdml.benchmarks.exhibits import exhibits, save_exhibits
from otdml.benchmarks.presets import Preset, preset
from otdml.benchmarks.runs import Run, RunFolder, plan

# Recall@1 by method and seed: the head adds 2, 3 and 4 points, and half a point, none and minus one to its control.
RECALLS = {
    "proxy-anchor": (0.70, 0.71, 0.72),
    "proxy-anchor+nir": (0.72, 0.74, 0.76),
    "proxy-anchor+nir-control": (0.715, 0.74, 0.77),
    "soft-triple": (0.60, 0.60, 0.60),
}


@pytest.fixture
def digits() -> Preset:
    return preset("digits")


@pytest.fixture
def write_run(digits: Preset) -> Callable[..., RunFolder]:
    """A function that writes a finished run into a benchmark's folder."""

    def write(out: Path, method: str, seed: int, recall: float, best: float | None = None) -> RunFolder:
        run = Run.of(digits, digits.method(method), seed)
        (path,) = plan(out, [run])
        folder = RunFolder(path)
        folder.claim(run)
        rows = [f"{epoch},{epoch * 9},{epoch},{4 / epoch},{3 / epoch},,{recall - 0.1 / epoch}" for epoch in (1, 2, 3)]
        (path / "curve.csv").write_text("\n".join(["epoch,step,seconds,loss,proxy,nir,test/recall@1", *rows]))
        save_exhibits(path / "exhibits.npz", _exhibits())
        last = {"recall@1": recall, "map@r": recall - 0.2}
        selected = None if best is None else {"recall@1": best, "map@r": best - 0.2}
        folder.finish({"last": last, "best": selected, "best_epoch": 2 if best else None, "seconds": 10.0 + seed})
        return folder

    return write


@pytest.fixture
def finished(tmp_path: Path, write_run: Callable[..., RunFolder]) -> Path:
    """The folder of a benchmark of four methods and three seeds."""
    out = tmp_path / "finished"
    for method, recalls in RECALLS.items():
        for seed, recall in enumerate(recalls):
            write_run(out, method, seed, recall)
    return out


def _exhibits() -> dict:
    labels = torch.arange(30) % 3
    chance = torch.Generator().manual_seed(0)
    z = torch.eye(3)[labels] + 0.4 * torch.randn(30, 3, generator=chance)
    z = torch.nn.functional.normalize(z, dim=1)
    image = torch.zeros(8, 8, dtype=torch.uint8)
    return exhibits(z, labels, ["<Alpha>", "Beta", "Gamma"], lambda i: (image + 8 * i).numpy())
