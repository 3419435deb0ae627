"""A training run that kills itself at a given moment; run by test_training.py in processes of its own.

Called as ``killed_run.py FOLDER ITEMS MOMENT...``: for each moment, one process runs until it is killed there, another
goes on, and both leave their state in ``FOLDER/MOMENT``. Everything is imported once, and the processes are forks.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from otdml.data import Digits, Distort
from otdml.dml import ProxyDML, TrainingConfig, fit

EPOCHS, BATCHES = 3, 4


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(Distort):
    """An augmentation that kills its process when it is called for the n-th time."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def __repr__(self) -> str:
        return "Killer()"

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.left == 0:
            kill()
        self.left -= 1
        return super().__call__(images, generator)


def noisy(image: torch.Tensor) -> torch.Tensor:
    """A transform that draws from every global generator."""
    return image + 0.01 * torch.rand(()) + 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002


class Items:
    """The digits item by item, so that they go through a data loader."""

    def __init__(self, split: str) -> None:
        self.digits = Digits(split=split, transform=noisy)
        self.labels, self.classes = self.digits.labels, self.digits.classes

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.digits[index]


def kill_when_writing(name: str, *, before: bool) -> None:
    """Kill the process as the second version of a file takes the place of the first, or has just taken it."""
    replace, seen = os.replace, []

    def watched(source: object, target: object) -> None:
        seen.append(Path(str(target)).name)
        last = seen.count(name) == 2 and seen[-1] == name
        if last and before:
            kill()
        replace(source, target)  # type: ignore[arg-type]
        if last:
            kill()

    os.replace = watched  # type: ignore[assignment]


def train(folder: Path, moment: str, items: bool) -> None:
    torch.set_num_threads(1)
    kind, _, value = moment.partition(":")
    if kind in ("before", "after"):
        kill_when_writing(value, before=kind == "before")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
    network.num_features = 16  # type: ignore[assignment]
    # Dropout draws from the global generator; so do the first weights, which a resumed run must not depend on.
    options = {} if items else {"backbone_options": {"widths": (8, 16)}}
    options |= {"nir_weight": 0.01, "nir_options": {"objective": "exp_nll"}, "warmup_epochs": 1, "seed": 0}
    module = ProxyDML(
        3, backbone=network if items else "conv4", dim=8, lr={"backbone": 1e-2, "proxies": 0.1}, **options
    )
    if items:
        fixed = torch.Generator().manual_seed(1)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2, generator=fixed)
    splits = {split: Items(split) if items else Digits(split=split) for split in ("train", "val", "test")}
    found = fit(
        module,
        splits["train"],
        val=splits["val"],
        test=splits["test"],
        folder=folder,
        config=TrainingConfig(
            epochs=EPOCHS, classes_per_batch=3, samples_per_class=6, batches_per_epoch=BATCHES, accelerator="cpu"
        ),
        augment=Killer(int(value) if kind == "step" else -1),
        progress=False,
    )
    torch.save(module.state_dict(), folder / "weights.pt")
    (folder / "found.json").write_text(json.dumps([found.last, found.best, found.best_epoch]))


def forked(folder: Path, moment: str, items: bool) -> int:
    """Signal that ended the run, 0 if it came to its end."""
    child = os.fork()
    if not child:
        train(folder, moment, items)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main() -> None:
    folder, items = Path(sys.argv[1]), sys.argv[2] == "items"
    signals = []
    for moment in sys.argv[3:]:
        path = folder / moment
        signals.append([forked(path, moment, items), forked(path, "never", items)])
    print(json.dumps(signals))


if __name__ == "__main__":
    main()
