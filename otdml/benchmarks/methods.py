"""The methods of a benchmark: losses, those with proxies also with a NIR head, and its control arm."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from otdml._arguments import check_known
from otdml.dml.losses import LOSSES
from otdml.dml.names import DispersionName

__all__ = ["ARMS", "METHODS", "Method", "method", "parts"]

ARMS = {
    "": "the loss alone",
    "+nir": "the proxy loss and the NIR head",
    "+nir-control": "all settings of +nir, its scaling, learning rates and warm-up, but no flow",
}


@dataclass(frozen=True)
class Method:
    """A loss, perhaps a NIR head, and the settings that belong to them.

    Everything that is not here (network, batches, budget) belongs to the :class:`Preset` and is the same for all
    methods of a benchmark. The fields after ``arm`` are arguments of :class:`~otdml.dml.ProxyDML`.

    Attributes:
        loss: A key of :data:`otdml.dml.losses.LOSSES`.
        arm: ``""``, ``"+nir"`` or ``"+nir-control"``.
        loss_options: Hyper-parameters of the loss.
        loss_weight: Scale of the loss, beside that of NIR.
        nir_weight: Scale of the NIR term; no flow is built at zero.
        nir_options: Objective and architecture of the NIR head.
        lr: Learning rates by parameter group; groups not named keep the preset's.
        weight_decay: Likewise.
        warmup_epochs: Epochs of linear learning-rate warm-up; None for the preset's.
        frozen_epochs: Epochs in which the backbone stands still; None for the preset's.
        dispersion: A dispersion loss on top, such as ``"koleo:0.1"``; see :class:`~otdml.dml.Dispersion`.

    Example:
        >>> METHODS["proxy-anchor+nir"].control.name
        'proxy-anchor+nir-control'
    """

    loss: str
    arm: str = ""
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    loss_weight: float = 1.0
    nir_weight: float = 0.0
    nir_options: Mapping[str, Any] = field(default_factory=dict)
    lr: Mapping[str, float] = field(default_factory=dict)
    weight_decay: Mapping[str, float] = field(default_factory=dict)
    warmup_epochs: int | None = None
    frozen_epochs: int | None = None
    dispersion: str | None = None

    @property
    def name(self) -> str:
        return self.loss + self.arm + (f"+{self.dispersion}" if self.dispersion else "")

    @property
    def control(self) -> "Method":
        """The arm that differs in the flow alone."""
        return replace(self, arm="+nir-control", nir_weight=0.0, nir_options={})

    def changed(self, settings: Mapping[str, Any]) -> "Method":
        """This method with ``settings`` in place of its own; mappings are merged."""
        for name in settings:
            check_known("setting", name, SETTINGS)
        merged: dict[str, Any] = {
            name: {**getattr(self, name), **value} if isinstance(value, Mapping) else value
            for name, value in settings.items()
        }
        return replace(self, **merged)

    def arguments(self) -> dict[str, Any]:
        """Arguments of :class:`~otdml.dml.ProxyDML`, as plain types."""
        return {name: value for name, value in asdict(self).items() if name != "arm" and value is not None}


SETTINGS = tuple(f.name for f in fields(Method) if f.name not in ("loss", "arm", "dispersion"))


def _arms(loss: str) -> list[Method]:
    if not LOSSES[loss].has_proxies:
        return [Method(loss)]
    head = Method(loss, "+nir", nir_weight=0.01, nir_options={"objective": "exp_nll"})
    return [Method(loss), head, head.control]


METHODS: dict[str, Method] = {method.name: method for loss in LOSSES for method in _arms(loss)}


def parts(name: str) -> tuple[str, str, str]:
    """Loss, arm and dispersion of a method's name, the last two perhaps empty.

    Example:
        >>> parts("proxy-anchor+nir+koleo:0.1")
        ('proxy-anchor', '+nir', 'koleo:0.1')
    """
    rest, plus, dispersion = name.rpartition("+")
    if ":" not in dispersion:
        rest, dispersion = name, ""
    loss, plus, arm = rest.partition("+")
    return loss, plus + arm, dispersion


def method(name: str) -> Method:
    """The method of that name: one of :data:`METHODS`, with a dispersion loss if ``+NAME:WEIGHT[@PLACE]`` follows.

    Raises:
        ValueError: There is no such method; the message lists those there are.

    Example:
        >>> method("proxy-nca+koleo:0.10").name
        'proxy-nca+koleo:0.1'
    """
    loss, arm, dispersion = parts(name)
    found = METHODS[check_known("method", loss + arm, METHODS)]
    return replace(found, dispersion=str(DispersionName.parsed(dispersion))) if dispersion else found
