"""The budget of a training run, and how a machine spends it."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from otdml._arguments import check_boolean, check_fields, check_integer, check_known, check_several

__all__ = ["TrainingConfig"]

# Settings that may change when a run is resumed.
MEANS = frozenset({"workers", "devices", "num_nodes", "strategy", "tensorboard", "maps"})


@dataclass(frozen=True)
class TrainingConfig:
    """How long and in which batches a run trains, and when it is evaluated; with the module it determines the numbers.

    Attributes:
        epochs: Passes through ``batches_per_epoch`` batches.
        classes_per_batch: Classes in a batch; 32, or all where there are fewer, if None.
        samples_per_class: Images of each.
        batches_per_epoch: About as many as it takes to see every image once if None.
        seed: Of the batches, the augmentation and everything drawn in training, but for ``crops``: of them it draws
            with which one each image begins.
        ks: The K of Recall@K.
        select: Validation metric whose best epoch is kept as ``best.ckpt``.
        val_every: Epochs between two validations; the last epoch is always validated.
        test_every: Epochs between two looks at the test classes for the learning curve; none before the end at 0.
        eval_batch_size: Images embedded at a time.
        workers: Processes that load and transform images of sets that do not live in memory, for each device.
        precision: Lightning's, e.g. ``"bf16-mixed"``.
        accelerator: Lightning's, e.g. ``"cpu"``.
        devices: Processes of a machine that share every batch, each on a device; ``"auto"`` for all GPUs. Under
            ``torchrun`` its number counts.
        num_nodes: Machines, likewise.
        strategy: Lightning's; ``"auto"`` is ``"ddp"`` where there are several processes.
        compile: Whether ``torch.compile`` runs the backbone.
        crops: Of a module whose lower part is frozen: random crops of each training image that this part is computed
            for, once, and kept; an image goes through its crops in turn, one each epoch. At 0 it is computed in every
            step.
        maps: Folder where they are kept, for all runs that share images and frozen part; ``otdml/maps`` in the user's
            cache if None.
        tensorboard: Whether the curve is written for TensorBoard as well, into the run's folder ``tensorboard``.

    Raises:
        ValueError: If a number is out of range, or ``select`` is none of the metrics.

    Example:
        >>> TrainingConfig(epochs=2, ks=(1, 10)).select
        'map@r'
    """

    epochs: int = 30
    classes_per_batch: int | None = None
    samples_per_class: int = 4
    batches_per_epoch: int | None = None
    seed: int = 0
    ks: tuple[int, ...] = (1, 2, 4, 8)
    select: str = "map@r"
    val_every: int = 1
    test_every: int = 0
    eval_batch_size: int = 512
    workers: int = 0
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    crops: int = 0
    maps: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        whole, given, either = check_integer, partial(check_integer, least=0), _integer_or_none
        check_fields(self, epochs=whole, samples_per_class=whole, eval_batch_size=whole, num_nodes=whole)
        check_fields(self, seed=given, val_every=given, test_every=given, workers=given, crops=given)
        check_fields(self, classes_per_batch=either, batches_per_epoch=either)
        if self.devices != "auto":
            check_fields(self, devices=whole)
        for name in ("compile", "tensorboard"):
            check_boolean(name, getattr(self, name))
        # Checked here, as the first evaluation comes after an epoch of training.
        check_fields(self, ks=partial(check_several, check=check_integer))
        check_known("metric to select by", self.select, ["map@r", "r_precision", *(f"recall@{k}" for k in self.ks)])

    def numbers(self) -> dict[str, Any]:
        """The fields that determine a run's numbers, as plain types; the others say how a machine gets there."""
        kept = {name: value for name, value in asdict(self).items() if name not in MEANS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def _integer_or_none(name: str, value: int | None) -> int | None:
    return value if value is None else check_integer(name, value)
