"""Parameter groups and learning-rate schedules of metric learning."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from otdml._checks import argument_error, check_integer, check_known, check_nonnegative, check_positive
from otdml.dml.names import PART_NAMES

__all__ = ["OPTIMIZERS", "SCHEDULES", "by_group", "optimizer", "param_groups", "run_schedule", "schedule"]

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("cosine", "step", "constant")


def by_group(name: str, value: float | Mapping[str, float], default: float | None = None) -> dict[str, float]:
    """One number per part of the model: ``value`` for all of them, or its entries and ``default`` for the others.

    Example:
        >>> by_group("weight_decay", {"backbone": 0.1}, default=0.0)
        {'backbone': 0.1, 'head': 0.0, 'proxies': 0.0, 'flow': 0.0}
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(PART_NAMES, float(check_nonnegative(name, value)))
    for part in value:
        check_known(f"part in `{name}`", part, PART_NAMES)
    # Plain floats, also of NumPy's: the optimiser keeps them in its state, and a checkpoint that state.
    given = {part: float(check_nonnegative(f"{name}[{part!r}]", number)) for part, number in value.items()}
    default = given.get("backbone") if default is None else default
    if default is None:
        # With a default of zero, parts that are not named would silently not be trained.
        raise argument_error(name, "name 'backbone', whose value the parts that are not named have", sorted(given))
    return {part: given.get(part, default) for part in PART_NAMES}


def param_groups(
    parts: Mapping[str, nn.Module | None], *, lr: Mapping[str, float], weight_decay: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups of an optimiser, each part of a model with its own learning rate and weight decay.

    Proxies get gradients through few samples each, and published runs give them 100 to 4000 times the backbone's
    rate. Biases, and the scales of normalisation layers, are never decayed: pulling them to zero regularises nothing.

    Args:
        parts: The model's parts by name; None for one it does not have.
        lr: Learning rate by part.
        weight_decay: Decay by part.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name``; a part's undecayed parameters are a group of
        their own, named ``part/undecayed``. Empty groups are left out.

    Example:
        >>> from torch import nn
        >>> groups = param_groups({"head": nn.Linear(4, 2)}, lr={"head": 0.1}, weight_decay={"head": 0.01})
        >>> [(group["name"], group["weight_decay"]) for group in groups]
        [('head', 0.01), ('head/undecayed', 0.0)]
    """
    groups = []
    for name, part in parts.items():
        if part is None:
            continue
        for option, numbers in (("lr", lr), ("weight_decay", weight_decay)):
            if not isinstance(numbers, Mapping) or name not in numbers:
                raise argument_error(option, f"have an entry for {name!r}", numbers, kind=TypeError)
        rate, decay = check_nonnegative("lr", lr[name]), check_nonnegative("weight_decay", weight_decay[name])
        plain = _undecayed(part) if name in ("backbone", "head", "flow") else set()
        decayed = [parameter for parameter in part.parameters() if parameter not in plain]
        undecayed = [parameter for parameter in part.parameters() if parameter in plain]
        groups.append({"params": decayed, "lr": rate, "weight_decay": decay, "name": name})
        groups.append({"params": undecayed, "lr": rate, "weight_decay": 0.0, "name": f"{name}/undecayed"})
    return [group for group in groups if group["params"]]


def _undecayed(part: nn.Module) -> set[nn.Parameter]:
    """Biases and normalisation scales: what is no matrix, whatever its layer is called."""
    return {parameter for parameter in part.parameters() if parameter.ndim < 2}


def optimizer(name: str, groups: Iterable[Mapping[str, Any]], *, fused: bool = True) -> Optimizer:
    """Optimiser by name over parameter groups; SGD has Nesterov momentum .9.

    Args:
        name: ``"adamw"``, ``"adam"`` or ``"sgd"``.
        groups: As :func:`param_groups` makes them.
        fused: Whether one kernel updates all parameters; gradient scaling and clipping together do not allow it.

    Returns:
        The optimiser.

    Raises:
        ValueError: If there is no such optimiser.

    Example:
        >>> from torch import nn
        >>> optimizer("sgd", [{"params": nn.Linear(2, 1).parameters(), "lr": 0.1}]).defaults["momentum"]
        0.9
    """
    kind = OPTIMIZERS[check_known("optimizer", name, OPTIMIZERS)]
    options: dict[str, Any] = {"fused": fused}
    if name == "sgd":
        options |= {"momentum": 0.9, "nesterov": True}
    return kind([dict(group) for group in groups], **options)


def schedule(
    name: str, steps: int, *, warmup: int = 0, final: float = 0.0, every: int | None = None, factor: float = 0.5
) -> Callable[[int], float]:
    r"""Factor of the learning rate by optimisation step.

    After a linear warm-up, with t the share of the remaining steps that has passed: ``"constant"`` is 1, ``"cosine"``
    is :math:`f + (1 - f) (1 + \cos \pi t) / 2`, and ``"step"`` multiplies by ``factor`` every ``every`` steps.

    Args:
        name: ``"cosine"``, ``"step"`` or ``"constant"``.
        steps: All optimisation steps.
        warmup: Steps of linear warm-up, from 1 / warmup at the first.
        final: Where the cosine ends, f.
        every: Steps between two drops of ``"step"``; a third of the remaining ones if None.
        factor: What each drop multiplies by.

    Returns:
        The factor of step 0, 1, ...

    Raises:
        ValueError: If there is no such schedule.

    Example:
        >>> cosine = schedule("cosine", 12, warmup=2)
        >>> [round(cosine(step), 2) for step in (0, 1, 2, 7, 12)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    check_known("schedule", name, SCHEDULES)
    warmup = check_integer("warmup", warmup, least=0)
    rest = max(1, steps - warmup)
    every = max(1, rest // 3) if every is None else check_integer("every", every)
    factor = check_positive("factor", factor)
    if warmup > steps:
        raise argument_error("warmup", f"be at most the number of steps, {steps}", warmup)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if name == "step":
            return factor ** ((step - warmup) // every)
        passed = min(1.0, (step - warmup) / rest) if name == "cosine" else 0.0
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * passed))

    return rate


def run_schedule(
    trainer: Any, name: str, *, warmup_epochs: int = 0, step_epochs: int | None = None, factor: float = 0.5
) -> Callable[[int], float]:
    """The :func:`schedule` of a run of Lightning, whose epochs are counted in optimisation steps.

    Args:
        trainer: It knows its module and data; whether it ends after so many epochs or so many steps.
        name: As for :func:`schedule`.
        warmup_epochs: Epochs of linear warm-up.
        step_epochs: Epochs between two drops of ``"step"``; a third of those after the warm-up if None.
        factor: As for :func:`schedule`.

    Raises:
        ValueError: If the schedule depends on the end of a run that has none, or on the length of endless epochs.
    """
    steps = trainer.estimated_stepping_batches
    if trainer.train_dataloader is None:
        # A trainer that counts steps alone has not asked for the batches.
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if (warmup_epochs or step_epochs) and math.isinf(batches):
        must = "be 0, and `step_epochs` None, where batches cannot be counted"
        raise argument_error("warmup_epochs", must, warmup_epochs, "Or set the trainer's `limit_train_batches`.")
    endless = math.isinf(steps) or steps < 0
    if endless and not (name == "constant" or (name == "step" and step_epochs)):
        raise argument_error(
            "schedule", "be 'constant' for a run without end", name, "Or set the trainer's `max_steps`."
        )
    per_epoch = 0 if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
    warmup = per_epoch * warmup_epochs
    every = per_epoch * step_epochs if step_epochs else None
    steps = warmup if endless else int(steps)
    return schedule(name, steps, warmup=min(steps, warmup), every=every, factor=factor)
