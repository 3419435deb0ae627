"""The Reality Check protocol: four networks per seed, each selected on another quarter of the training classes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from otdml._checks import argument_error
from otdml._files import folder_lock
from otdml.benchmarks.exhibits import exhibits, save_exhibits, thumbnails
from otdml.benchmarks.experiment import load_split, takes
from otdml.benchmarks.models import load_checkpoint
from otdml.benchmarks.presets import Preset
from otdml.benchmarks.runs import Run, RunFolder
from otdml.data.registry import named_dataset
from otdml.data.split import FOLDS
from otdml.dml.evaluation import metrics_of
from otdml.dml.fingerprint import fingerprint
from otdml.dml.protocols import queries

__all__ = ["DIM", "EACH", "assemble", "concatenated", "fold_runs", "of_four_folds", "protocol_of"]

DIM = 128
# In the configuration of a seed, in place of the number of a fold.
EACH = "each of 4"
NOTE = """\
After Musgrave et al. 2020: the training classes make four disjoint folds; four networks of 128 dimensions are \
trained, each without one fold, on which its epoch is selected by MAP@R; the test classes are looked at once. \
"Separated" is the mean of the four networks, "concatenated" one embedding of 512 dimensions. Network, batches and \
optimiser are those of the preset, the same for all methods."""
# Training settings that make the protocol: epochs are selected by MAP@R, and the test classes are seen at the end.
FIXED = {"select": "map@r", "test_every": 0}
LEADING = ("map@r", "r_precision", "recall@1")


def protocol_of(preset: Preset) -> Preset:
    """A preset under this protocol: 128 dimensions, and no published figures, as those are of another protocol.

    Epochs are selected by MAP@R, and the test classes are not looked at before the end, whatever the preset has.

    Raises:
        ValueError: Its data set has too few training classes for four folds, or a setting was asked for that is not
            the protocol's.
    """
    if ("model", "dim") in preset.asked:
        must = f"be {DIM}, the dimensions of the Reality Check protocol"
        raise argument_error("model.dim", must, preset.model["dim"], "Leave it out.")
    if not takes(preset.dataset, "fold"):
        must = f"have training classes for {FOLDS} folds of two or more"
        remedy = "Of the sets that need no photographs, omniglot has: --dataset omniglot --protocol small."
        raise argument_error("dataset", must, preset.dataset, remedy)
    training = _training(preset)
    kept = {
        key: value
        for key, value in preset.changed.items()
        if training.get(key.removeprefix("training."), value) == value
    }
    title, network = named_dataset(preset.dataset).title, preset.model.get("backbone", "conv4")
    changed = "".join(f", {key} = {value}" for key, value in kept.items() if key != "model.backbone")
    return replace(
        preset,
        name=f"{preset.name}-reality-check",
        title=f"Reality Check protocol: {title}, {network}, four of {DIM} dimensions{changed}",
        model={**preset.model, "dim": DIM},
        training=training,
        published=(),
        changed=kept,
        note=NOTE,
    )


def _training(preset: Preset) -> dict[str, Any]:
    """The training settings of a preset under this protocol; nothing is added to them that has its value anyway."""
    fixed = FIXED | ({} if preset.training.get("val_every", 1) else {"val_every": 1})
    for name, value in fixed.items():
        if ("training", name) in preset.asked and preset.training[name] != value:
            must = f"be {value}, as the Reality Check protocol has it"
            raise argument_error(f"training.{name}", must, preset.training[name], "Leave it out.")
    return {name: fixed.get(name, value) for name, value in preset.training.items()}


def fold_runs(run: Run) -> list[Run]:
    """The four networks of a seed."""
    return [replace(run, data={**run.data, "fold": fold}) for fold in range(FOLDS)]


def of_four_folds(run: Run) -> Run:
    """The seed as a whole, as its folder describes it."""
    return replace(run, data={**run.data, "fold": EACH})


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    r"""Unit embeddings of several networks as one: :math:`(z_1, ..., z_k) / \sqrt k`, each part of norm one.

    Its inner products are the means of the parts' cosine similarities.

    Args:
        parts: Embeddings of the same images, shape (n, d) each, of any norm.

    Returns:
        Shape (n, k d).

    Example:
        >>> concatenated([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])])
        tensor([[0.7071, 0.0000, 0.0000, 0.7071]])
    """
    return F.normalize(torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1), dim=-1)


def assemble(out: Path, runs: Iterable[Run], root: str | None = None) -> None:
    """Make one finished run of the four networks of every seed of which all four are finished.

    Its ``metrics.json`` has the mean of the four as ``last``, and their concatenation as ``best``.

    Args:
        out: Folder of the benchmark.
        runs: One per method and seed, as :func:`fold_runs` took them.
        root: Folder of the data set.
    """
    waiting = [(run, RunFolder(out / run.place)) for run in runs]
    waiting = [(run, folder) for run, folder in waiting if not folder.finished and _folds(folder)]
    if waiting:
        test = load_split(waiting[0][0].dataset, root, "test", waiting[0][0].data)
        images = fingerprint(test)
        for run, folder in waiting:
            with folder_lock(folder.path):
                folder.claim(of_four_folds(run), {"test": images})
                _assemble(folder, tuple(run.training.get("ks", (1, 2, 4, 8))), test)


def _folds(folder: RunFolder) -> list[RunFolder]:
    """The folders of the four networks, none unless all are finished."""
    found = [RunFolder(folder.path / f"fold-{fold}") for fold in range(FOLDS)]
    return found if all(fold.finished for fold in found) else []


def _assemble(folder: RunFolder, ks: tuple[int, ...], test: Any) -> None:
    from otdml.dml.cache import embedding_file, kept_embedding

    folds = _folds(folder)
    selected = [fold.path / "best.ckpt" for fold in folds]
    z = concatenated(
        [kept_embedding(embedding_file(p, "test"), load_checkpoint(p, trust=True), test) for p in selected]
    )
    each = [fold.metrics() for fold in folds]
    shown = exhibits(z, test.labels, test.classes, thumbnails(test), queries(test))
    save_exhibits(folder.path / "exhibits.npz", shown)
    folder.finish(
        {
            "last": _ordered({name: fmean(found["best"][name] for found in each) for name in each[0]["best"]}),
            "best": _ordered(metrics_of(z, test, ks)),
            "best_epoch": None,
            "seconds": sum(found["seconds"] for found in each),
            "raw_pixels": each[0].get("raw_pixels") and _ordered(each[0]["raw_pixels"]),
            # Each fold has all images of the training classes in one part or the other.
            "left_out": each[0].get("left_out"),
        }
    )


def _ordered(metrics: dict[str, float]) -> dict[str, float]:
    """The protocol's metrics first."""
    return {name: metrics[name] for name in (*LEADING, *metrics)}
