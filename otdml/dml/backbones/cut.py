"""A network cut in two at one of its layers."""

from typing import NamedTuple

from torch import Tensor, fx, nn

from otdml._checks import argument_error, check_known
from otdml._training import evaluating

__all__ = ["Halves", "cut", "stopped"]


class Halves(NamedTuple):
    """The two halves of a network, which share its modules.

    Attributes:
        lower: Maps images to the output of the layer.
        upper: Maps that to the output of the network, in training mode and in evaluation as the network does.
        below: Names of the network's modules that the lower half calls, the layer among them.
    """

    lower: fx.GraphModule
    upper: nn.Module
    below: list[str]


def cut(network: nn.Module, layer: str) -> Halves:
    r"""The part of a network up to one of its layers, that included, and the part above.

    Of any network whose output depends on its images through that layer alone, as is so for every stage of a residual
    network, and for no layer beside a shortcut. Only the ``forward`` of modules that contain the layer is traced.

    Args:
        network: Maps images to features or maps.
        layer: Dotted name of a module in it, as ``network.named_modules()`` has it.

    Returns:
        The two halves; both see later changes of the network's weights, but not its move to another device where a
        module above the layer has buffers of its own.

    Raises:
        ValueError: If there is no such layer, it is passed by, the network cannot be traced down to it, or the part up
            to the layer is another one in training mode.

    Example:
        >>> import torch
        >>> from otdml.dml.backbones import conv4
        >>> network, images = conv4(widths=(4, 8)).eval(), torch.rand(2, 1, 8, 8)
        >>> lower, upper, _ = cut(network, "layers.2")
        >>> lower(images).shape, torch.equal(upper(lower(images)), network(images))
        (torch.Size([2, 4, 8, 8]), True)
    """
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        # Inner modules are left out of the message, as there are hundreds.
        check_known("frozen layer", layer, [name for name in names if name.count(".") < 2])
    # Python's branches on `training`, as before a functional dropout, are those of the mode while it is traced.
    with evaluating(network):
        judging = _halved(network, layer)
    with evaluating(network):
        network.train()
        learning = _halved(network, layer)
    if judging.lower.code != learning.lower.code:
        must = "name a layer up to which the network is the same in training and in evaluation"
        raise argument_error("frozen", must, layer, "Write its dropout as modules.")
    same = judging.upper.code == learning.upper.code
    return judging if same else judging._replace(upper=_ByMode(learning.upper, judging.upper))


class _ByMode(nn.Module):
    """One graph in training mode, and another in evaluation."""

    def __init__(self, learning: nn.Module, judging: nn.Module) -> None:
        super().__init__()
        self.learning, self.judging = learning, judging

    def forward(self, maps: Tensor) -> Tensor:
        return (self.learning if self.training else self.judging)(maps)


def _halved(network: nn.Module, layer: str) -> Halves:
    graph = _traced(network, layer)
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1:
        raise argument_error(
            "frozen", "name a layer that the network calls once", f"{layer}, called {len(calls)} times"
        )
    lower, upper = fx.Graph(), fx.Graph()
    lower.output(_copied(calls[0], lower, {}, layer))
    (result,) = (node.args[0] for node in graph.nodes if node.op == "output")
    if not isinstance(result, fx.Node):
        raise argument_error("frozen", "be of a network that returns one tensor", type(network).__name__)
    upper.output(_copied(result, upper, {calls[0]: upper.placeholder("maps")}, layer))
    halves = fx.GraphModule(network, lower), fx.GraphModule(network, upper)
    return Halves(*halves, [str(node.target) for node in lower.nodes if node.op == "call_module"])


class _Tracer(fx.Tracer):
    """Traces the modules that contain the layer, and no others."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.layer.startswith(f"{module_qualified_name}.")


def _traced(network: nn.Module, layer: str) -> fx.Graph:
    try:
        return _Tracer(layer).trace(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NameError, AttributeError, ValueError) as error:
        remedy = "Choose a layer that fewer modules contain, or freeze parts of the network yourself."
        raise ValueError(f"{type(network).__name__} cannot be cut at {layer}: {error}. {remedy}") from error


def _copied(node: fx.Node, graph: fx.Graph, known: dict[fx.Node, fx.Node], layer: str) -> fx.Node:
    """The node and all that it depends on, in another graph; ``known`` holds what is there already."""
    if node.op == "placeholder" and node not in known:
        if any(new.op == "placeholder" for new in known.values()):
            must = "name a layer through which all of the output depends on the images"
            raise argument_error("frozen", must, f"{layer}, which they pass by")
        known[node] = graph.placeholder(node.name)
    if node not in known:
        for before in node.all_input_nodes:
            _copied(before, graph, known, layer)
        known[node] = graph.node_copy(node, lambda before: known[before])
    return known[node]


def stopped(network: nn.Module, layer: str) -> list[nn.Module]:
    """Freeze a network up to a layer, and return the modules of that part."""
    halves = cut(network, layer)
    halves.lower.requires_grad_(False)
    return [network.get_submodule(name) for name in halves.below]
