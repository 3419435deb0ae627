"""Commands that use a trained model: on a data set, or on any images."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from otdml._arguments import check_known
from otdml._text import in_one_line
from otdml.cli.application import (
    arguments,
    check_folder,
    check_writable,
    command,
    console,
    errors,
    notes,
    plain,
    tell_of,
)
from otdml.cli.options import Protocol, Root, SkipCorrupt
from otdml.cli.ranges import between

__all__ = ["embed", "evaluate", "export", "search"]

SPLITS = ("train", "val", "trainval", "test", "query", "gallery")
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="The checkpoint may name a network that loads files or runs code of others, as those of a hub can.",
    ),
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Look at all images, and leave the file of an approximate search alone.")
]
Size = Annotated[
    int | None, typer.Option(help="Pixels per side. Default: those of the run.", callback=between(4, 4096))
]


@command(
    "otdml evaluate runs/digits/proxy-anchor/seed-0/last.ckpt",
    "otdml evaluate runs/cub/proxy-anchor/seed-0 --images photos",
)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Default: that of the run.")] = None,
    protocol: Protocol = None,
    root: Root = None,
    split: Annotated[str | None, typer.Option(help="Default: test; or train, val, trainval, query, gallery.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images instead of a data set; the class of each is its own folder.")
    ] = None,
    size: Size = None,
    skip_corrupt: SkipCorrupt = False,
    trust: Trust = False,
    ks: Annotated[str, typer.Option(help="K of Recall@K, separated by commas.")] = "1,2,4,8",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Retrieval metrics of a checkpoint on a split of a data set, or on images of one's own.

    Beside the checkpoint of a run lies config.json, which says what the run was trained on; elsewhere name the data
    set with --dataset.
    """
    from otdml.benchmarks.presets import named
    from otdml.benchmarks.runs import checkpoint_file
    from otdml.data.registry import without_folder

    with arguments():
        numbers = tuple(_numbers("--ks", ks))
        if split is not None:
            check_known("split", split, SPLITS)
        if protocol and dataset is None:
            raise ValueError("--protocol needs --dataset: without both, the set and protocol of the run are taken.")
        if images and dataset:
            raise ValueError("--images and --dataset: give one of them.")
        if images and (root or split):
            raise ValueError("--images has neither --root nor --split: all images below the folder are taken.")
        if images and not images.exists():
            raise ValueError(f"--images {images}: there is no such folder.")
        if images is None and (size or skip_corrupt):
            raise ValueError("--size and --skip-corrupt need --images: a data set has those of its run.")
        chosen = None if dataset is None else named(dataset, protocol)
        if chosen:
            without_folder(chosen.dataset, root)
    checkpoint_file(checkpoint)
    from otdml.benchmarks.display import metrics_table
    from otdml.benchmarks.models import checkpoint_metrics, folder_metrics

    with notes():
        if images:
            policy = _policy(skip_corrupt)
            found, skipped = folder_metrics(checkpoint, images, numbers, size=size, on_corrupt=policy, trust=trust)
        else:
            found, skipped = checkpoint_metrics(checkpoint, chosen, root, split or "test", numbers, trust=trust)
    tell_of("left out", skipped.items())
    console.print_json(data=found) if as_json else console.print(metrics_table(found))


@command(
    "otdml embed runs/digits/proxy-anchor/seed-0 photos --out photos.index",
    "otdml embed runs/cub/proxy-anchor/seed-0 photos --out photos.index --index IVF1024,PQ32",
)
def embed(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    images: Annotated[list[Path], typer.Argument(help="A folder of images, or image files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the index.")] = Path("embeddings.index"),
    factory: Annotated[
        str | None,
        typer.Option("--index", help="A FAISS index for approximate search, e.g. IVF1024,PQ32. Default: exact."),
    ] = None,
    size: Size = None,
    skip_corrupt: SkipCorrupt = False,
    trust: Trust = False,
) -> None:
    """Embed images, and keep the vectors with the paths of their files as an index to search.

    The index is a folder: index.faiss, which FAISS reads as well, and items.json with the paths. Given again for the
    same images and weights, the command finds them embedded.

    A million images fit: none are kept in memory. With --index they are searched by a FAISS index of that kind,
    approximate.faiss, and the share of the nearest that it finds is measured and shown; how it is searched may follow
    a semicolon: "IVF1024,PQ32;nprobe=8".
    """
    from otdml.benchmarks.runs import checkpoint_file

    check_folder("--out", out)
    checkpoint_file(checkpoint)
    _check_there("image file or folder", images)
    if find_spec("faiss") is None:
        raise ModuleNotFoundError("an index is written by FAISS, which is not installed: pip install 'otdml[cpu]'")
    from otdml.benchmarks.models import embedded

    policy = _policy(skip_corrupt)
    with notes():
        index, skipped = embedded(checkpoint, images, out, size=size, on_corrupt=policy, factory=factory, trust=trust)
    tell_of("left out", skipped.items())
    console.print(f"{len(index)} embeddings: [bold]{plain(str(out))}[/]", soft_wrap=True, highlight=False)
    if index.approximate is not None:
        console.print(plain(str(index.approximate)), soft_wrap=True, highlight=False)


@command(
    "otdml export runs/glyphs/proxy-anchor/seed-0 --out model.onnx",
    "otdml export runs/cub/proxy-anchor/seed-0 --out model.safetensors",
    "otdml export runs/cub/proxy-anchor/seed-0 --out model",
)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="NAME.onnx, NAME.safetensors, or a folder for both files of a hub's model."),
    ],
    size: Size = None,
    trust: Trust = False,
) -> None:
    """Write a trained model in a form that other programs read.

    NAME.onnx is the network from images to unit embeddings, compared with PyTorch by ONNX Runtime. NAME.safetensors
    holds all weights, proxies too. A folder gets config.json and model.safetensors, as ProxyDML.from_pretrained and the
    Hugging Face hub read them.
    """
    from otdml.benchmarks.runs import checkpoint_file

    with arguments():
        if out.suffix not in ("", ".onnx", ".safetensors"):
            raise ValueError(f"--out {out} must end in .onnx or .safetensors, or be a folder.")
        if size and out.suffix != ".onnx":
            raise ValueError("--size is of an ONNX graph: weights fit images of any size.")
        if out.suffix:
            check_writable("--out", out)
        else:
            check_folder("--out", out)
    checkpoint_file(checkpoint)
    from otdml.benchmarks.models import exported

    said = exported(checkpoint, out, size=size, trust=trust)
    console.print(f"{said}: [bold]{plain(str(out))}[/]", soft_wrap=True, highlight=False)


@command("otdml search photos.index query.jpg", "otdml search photos.index new.jpg --html near.html")
def search(
    index: Annotated[Path, typer.Argument(help="An index that `otdml embed` made.")],
    image: Annotated[Path, typer.Argument(help="An image file.")],
    k: Annotated[int, typer.Option("--count", "-k", help="How many to show.", callback=between(1))] = 10,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one that made the index.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows the images.")] = None,
    exact: Exact = False,
    trust: Trust = False,
) -> None:
    """The images of an index that are most similar to an image, with their cosine similarities."""
    from otdml.benchmarks.runs import checkpoint_file

    if html is not None:
        check_writable("--html", html)
    _check_there("index", [index])
    _check_there("image file", [image])
    if checkpoint is not None:
        checkpoint_file(checkpoint)
    from otdml.benchmarks.image_search import nearest_images, write_matches

    matches, approximate = nearest_images(index, image, k, checkpoint, exact=exact, trust=trust)
    for match in matches:
        console.print(f"{match.similarity:.4f}  {plain(in_one_line(match.path))}", soft_wrap=True, highlight=False)
    if approximate is not None:
        errors.print(f"[dim]{plain(str(approximate))}; --exact looks at all[/]", soft_wrap=True, highlight=False)
    if html is not None:
        tell_of("not shown", write_matches(html, image, matches).items())
        console.print(f"\nPage: [bold]{plain(str(html))}[/]", soft_wrap=True, highlight=False)


def _policy(skip_corrupt: bool) -> str:
    return "skip" if skip_corrupt else "raise"


def _check_there(what: str, paths: Iterable[Path]) -> None:
    """Raise for a path at which there is nothing, before anything that takes long."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is no {what}: there is nothing of that name.")


def _numbers(option: str, text: str) -> list[int]:
    """The K of Recall@K."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be integers separated by commas, got {text!r}.") from error
    for number in found:
        if not 1 <= number < 2**31:
            raise ValueError(f"{option} must be integers from 1 to {2**31 - 1}, got {number}.")
    return found
