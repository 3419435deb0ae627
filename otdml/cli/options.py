"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

from otdml.cli.ranges import between
from otdml.data.registry import DATASETS

__all__ = [
    "SPREAD",
    "AllowPartial",
    "AnyDataset",
    "Change",
    "Dataset",
    "Devices",
    "Epochs",
    "HoldOut",
    "Jobs",
    "Listed",
    "Methods",
    "Protocol",
    "RealityCheck",
    "Recipe",
    "Root",
    "RunsFolder",
    "Seeds",
    "SkipCorrupt",
    "Spreads",
    "StartFrom",
    "Threads",
]

EMBEDDED = [name for name, known in DATASETS.items() if known.library]
SETS = f"Data set: {', '.join(DATASETS)}."
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help=SETS)]
AnyDataset = Annotated[str | None, typer.Option("--dataset", "-d", help=f"{SETS} Default: glyphs.")]
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="A method; repeat for more. Default: the preset's.")
]
Seeds = Annotated[int | None, typer.Option(help="Seeds 0, 1, ... of each method.", callback=between(1, 10_000))]
RunsFolder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the runs. Default: runs/NAME.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", help="Runs side by side.", callback=between(1, 1024))]
# More threads than processors bring nothing.
Threads = Annotated[
    int, typer.Option("--threads", "-t", help="Threads of each.", callback=between(1, os.cpu_count() or 1))
]
Listed = Annotated[bool, typer.Option("--list", help="Show the benchmarks and methods there are.")]
Protocol = Annotated[
    str | None, typer.Option("--protocol", "-p", help="Its protocol, e.g. small, r50-128; see --list of benchmark.")
]
Root = Annotated[
    str | None, typer.Option("--root", help=f"Folder of the data set; {' and '.join(EMBEDDED)} need none.")
]
Recipe = Annotated[Path | None, typer.Option("--preset", help="A TOML file of your own instead of a data set.")]
SPREAD = "A dispersion loss and its weight, such as koleo:0.1, or koleo:0.1@proxies."
Spreads = Annotated[
    list[str] | None, typer.Option(help=f"{SPREAD} Every method is run without and with it; repeat for more.")
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the preset, e.g. model.dim=128; repeat for more."),
]
StartFrom = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Pretrained weights of the backbone, or none to start from random ones."),
]
Devices = Annotated[
    int | None,
    typer.Option("--devices", help="GPUs, or processes, that share every batch of a run.", callback=between(1, 1024)),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs, in place of the preset's.", callback=between(1, 10**6))]
HoldOut = Annotated[
    bool, typer.Option("--hold-out", help="Train without the validation classes, and report the best epoch on them.")
]
RealityCheck = Annotated[
    bool,
    typer.Option(
        "--reality-check",
        help="Four networks of 128 dimensions per seed, each selected on another quarter of the training classes; "
        "their mean and their concatenation, with 95% confidence intervals.",
    ),
]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be read.")]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Accept a copy that lacks published images.")]
