"""Training in two processes and in one; run by test_distributed_training.py.

Called as ``distributed_run.py FOLDER``. Everything is imported once, and the processes are forks with the environment
that torchrun would give them, so that nothing but the run itself takes time.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from otdml.data import Digits
from otdml.dml import ProxyDML, TrainingConfig, fit
from otdml.dml.backbones import conv4

# A script's folder is not on the path where PYTHONSAFEPATH is set, nor where doctests are looked for.
sys.path.insert(0, str(Path(__file__).parent))
from killed_run import Killer

BATCHES = 3


class Exact(nn.Module):
    """A network in float64, so that the order of sums shows in no digit that is compared."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = conv4(widths=(8, 16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.double())


class Items:
    """The digits item by item, with a transform that draws from the global generator."""

    def __init__(self, split: str) -> None:
        self.digits = Digits(split=split, transform=lambda image: image + 0.1 * torch.rand(()))
        self.labels, self.classes = self.digits.labels, self.digits.classes

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.digits[index]


def model(kind: str) -> ProxyDML:
    options = {"nir_weight": 0.1, "nir_options": {"objective": "nll"}, "clip": 1.0, "dispersion": "koleo:0.1"}
    options |= {"dim": 8, "lr": 1e-2, "freeze_bn": True, "seed": 0}
    if kind == "maps":
        # Files hold maps in half or single precision.
        return ProxyDML(3, backbone_options={"widths": (8, 16)}, frozen="layers.3", **options)
    return ProxyDML(3, backbone=Exact(), frozen_epochs=1, **options).double()


class Searched(Digits):
    """An odd number of digits, every third of which searches the others."""

    def __init__(self) -> None:
        super().__init__(split="val")
        self.images, self.labels = self.images[:301], self.labels[:301]
        self.is_query = torch.arange(301) % 3 == 0


def validate(folder: Path, count: int) -> None:
    """Any trainer's validation, beside the values of one process."""
    torch.set_num_threads(1)
    module = ProxyDML(3, backbone=Exact(), dim=8, seed=0).double()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(devices=count, strategy="ddp" if count > 1 else "auto", enable_checkpointing=False, **options)
    found = [
        {name: float(value) for name, value in trainer.validate(module, DataLoader(data, 64), verbose=False)[0].items()}
        for data in (Searched(), Digits(split="val"))
    ]
    rank = os.environ.get("RANK", "0")
    (folder.parent / f"{folder.name}-{rank}.json").write_text(json.dumps(found))


def train(folder: Path, kind: str, step: int) -> None:
    torch.set_num_threads(1)
    rank, epochs = int(os.environ.get("RANK", "0")), []
    module = model(kind)
    kept = {"crops": 2, "maps": str(folder.parent / f"{folder.name}-maps")} if kind == "maps" else {}
    found = fit(
        module,
        Items("train") if kind == "items" else Digits(split="train"),
        val=Digits(split="val"),
        test=Digits(split="test"),
        folder=folder,
        config=TrainingConfig(
            epochs=3, classes_per_batch=3, samples_per_class=6, batches_per_epoch=BATCHES, accelerator="cpu", **kept
        ),
        augment=Killer(step) if kind == "killed" else None,
        progress=False,
        on_epoch=lambda epoch, row: epochs.append(row),
    )
    torch.save(module.state_dict(), folder.parent / f"{folder.name}-{rank}.pt")
    (folder.parent / f"{folder.name}-{rank}.json").write_text(json.dumps([epochs, found.last, found.best]))


def forked(folder: Path, kind: str, count: int, step: int = -1) -> list[int]:
    """How each of the processes ended: 0, the signal that killed it, or -1 after an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if count > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            os.environ.update({name: str(value) for name, value in ranks.items()})
        try:
            # The last process alone is killed: the other one has to notice.
            validate(folder, count) if kind == "any" else train(folder, kind, step if rank == count - 1 else -1)
        except BaseException as error:
            print(f"{folder.name} {rank}: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
        os._exit(0)
    ends = [os.waitpid(child, 0)[1] for child in children]
    return [os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status) for status in ends]


def main() -> None:
    home = Path(sys.argv[1])
    ends = {
        f"{kind}{count}": forked(home / f"{kind}{count}", kind, count)
        for kind in ("plain", "items", "maps", "any")
        for count in (1, 2)
    }
    ends["alone"] = forked(home / "alone", "killed", 2)
    ends["killed"] = forked(home / "killed", "killed", 2, step=BATCHES + 1)
    ends["resumed"] = forked(home / "killed", "killed", 2)
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
