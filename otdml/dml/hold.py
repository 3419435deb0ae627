"""A network that is frozen for some time, and is afterwards as it was before."""

from torch import nn

__all__ = ["Hold"]


class Hold:
    """Freezes a network, statistics included, until it is released: what was frozen before stays so.

    Example:
        >>> network, hold = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval()), Hold()
        >>> hold.freeze(network)
        >>> [part.training for part in network], network[0].weight.requires_grad
        ([False, False], False)
        >>> hold.release()
        >>> [part.training for part in network], network[0].weight.requires_grad
        ([True, False], True)
    """

    def __init__(self) -> None:
        self.modes: list[tuple[nn.Module, bool]] = []
        self.learnt: list[tuple[nn.Parameter, bool]] = []

    def freeze(self, network: nn.Module) -> None:
        """Stop all of a network; without effect on what is remembered of one that is frozen already."""
        if not self.modes:
            self.modes = [(part, part.training) for part in network.modules()]
            self.learnt = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        network.eval().requires_grad_(False)

    def release(self) -> None:
        """Give the network back as it was."""
        for part, mode in self.modes:
            part.training = mode
        for parameter, learnt in self.learnt:
            parameter.requires_grad_(learnt)
        self.modes, self.learnt = [], []
