"""A causal transformer whose tokens have one vector each, for input and output."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import (
    argument_error,
    check_fields,
    check_generator,
    check_integer,
    check_integers,
    check_labels,
    check_nonnegative,
    check_optional_function,
    check_positive,
    device_of_draws,
)
from otdml._start import started, to_default_device
from otdml._training import drawn_rows, evaluating, learnt, minimised

__all__ = ["TiedLanguageModel", "Training", "training"]


class TiedLanguageModel(nn.Module):
    """A language model with one table of vectors, which tokens enter by and are predicted by :cite:p:`press:17`.

    The vectors have fewer coordinates than the layers, so that tokens have to share them. A token's logit is the scalar
    product of its vector with what the layers say, plus a bias of the token, which learns how frequent it is.

    Args:
        vocabulary: Number of tokens.
        dim: Coordinates of a token's vector.
        seed: Of the weights; the global generator is left as it was.
        width: Of the layers.
        layers: Number of them.
        heads: Of the attention of each.
        context: Longest sequence.

    Attributes:
        table: The vectors, shape (vocabulary, dim).

    Example:
        >>> import torch
        >>> model = TiedLanguageModel(7, 4, seed=0, width=8, layers=1, heads=2, context=5)
        >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 7])
    """

    def __init__(
        self, vocabulary: int, dim: int, *, seed: int, width: int = 128, layers: int = 2, heads: int = 4,
        context: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = {"vocabulary": vocabulary, "dim": dim, "width": width, "layers": layers, "heads": heads}
        vocabulary, dim, width, layers, heads = (check_integer(name, size) for name, size in sizes.items())
        context, seed = check_integer("context", context), check_integer("seed", seed, least=None)
        if width % heads:
            raise argument_error("heads", f"divide `width`, {width}", heads)
        with started(seed):
            # Short vectors turn faster under Adam, whose steps have one length.
            self.table = nn.Parameter(0.3 * torch.randn(vocabulary, dim))
            self.place = nn.Parameter(0.02 * torch.randn(context, width))
            self.enter = nn.Linear(dim, width)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(layers)
            )
            self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        to_default_device(self, seed)

    @property
    def context(self) -> int:
        """Longest sequence."""
        return len(self.place)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each, shape (n, length, vocabulary); tokens of shape (n, length)."""
        tokens = self._sequences(tokens, 1, self.context)
        length = tokens.shape[1]
        hidden = self.enter(self.table[tokens]) + self.place[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        # Logits keep their scale whatever the number of coordinates.
        return self.leave(hidden) @ self.table.mT / math.sqrt(self.table.shape[1]) + self.bias

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean negative log-likelihood of all tokens but the first ones, in nats; shape (n, length)."""
        tokens = self._sequences(tokens, 2, self.context + 1)
        logits = self(tokens[:, :-1]).flatten(0, 1)
        # Half precision has two or three digits of a perplexity.
        return F.cross_entropy(logits if logits.dtype.itemsize >= 4 else logits.float(), tokens[:, 1:].flatten())

    def _sequences(self, tokens: Tensor, shortest: int, longest: int) -> Tensor:
        """Sequences on the device of the weights, if they are of this vocabulary and of such a length."""
        tokens = check_integers("tokens", tokens)
        if tokens.ndim != 2 or not len(tokens) or not shortest <= tokens.shape[1] <= longest:
            must = f"have shape (n, length) with n >= 1 and a length of {shortest} to {longest}"
            raise argument_error("tokens", must, tuple(tokens.shape))
        check_labels("tokens", tokens.flatten(), tokens.numel(), len(self.table))
        return tokens.to(self.table.device)

    def _checked(self, tokens: Tensor) -> Tensor:
        """A text, if it is one of this vocabulary, and a sequence long."""
        tokens = check_integers("tokens", tokens)
        if tokens.ndim != 1 or len(tokens) <= self.context:
            must = f"be a text of more than {self.context} tokens, shape (n,)"
            raise argument_error("tokens", must, tuple(tokens.shape))
        return check_labels("tokens", tokens, len(tokens), len(self.table))

    @torch.no_grad()
    def perplexity(self, tokens: Tensor) -> float:
        """The exponential of the loss on a text, shape (n,), cut into sequences; the rest of its end is not used.

        It is infinite where it is no number of double precision.
        """
        tokens = self._checked(tokens)
        rows = tokens.unfold(0, self.context + 1, self.context)
        with evaluating(self):
            total = sum(float(self.loss(part)) * len(part) for part in rows.split(64))
        try:
            return math.exp(total / len(rows))
        except OverflowError:  # More than 709 nats.
            return math.inf


@dataclass(frozen=True)
class Training:
    """How a language model is trained.

    Attributes:
        regulariser: A loss of points that parts the vectors of tokens; none if None. Its parameters are trained, too.
        weight: Of the regulariser beside the loss.
        rows: Vectors that it sees in a step, drawn anew each time; all of them if None.
        decay: Weight decay of AdamW, of the vectors alone.
        steps: Number of batches.
        batch: Sequences in each.
        rate: The first learning rate; it falls to zero like a cosine.
    """

    regulariser: Callable[[Tensor], Tensor] | None = None
    weight: float = 1.0
    rows: int | None = None
    decay: float = 0.0
    steps: int = 2000
    batch: int = 16
    rate: float = 2e-3

    def __post_init__(self) -> None:
        check_fields(self, weight=check_nonnegative, decay=check_nonnegative, rate=check_positive)
        check_fields(self, steps=check_integer, batch=check_integer, regulariser=check_optional_function)
        if self.rows is not None:
            check_fields(self, rows=check_integer)


def training(model: TiedLanguageModel, tokens: Tensor, how: Training, generator: torch.Generator) -> Iterator[int]:
    """Train a language model by AdamW; the number of steps so far after each of them.

    Args:
        model: Changed in place.
        tokens: A text, shape (n,).
        how: Regulariser and schedule.
        generator: Of the sequences and rows. Rows have draws of their own, so that regularisers are compared on the
            same sequences.
    """
    check_generator(generator, needed=True)
    tokens = model._checked(tokens)
    model.train()
    others = [parameter for name, parameter in model.named_parameters() if name != "table"]
    others += learnt(how.regulariser)
    groups = [{"params": [model.table], "weight_decay": how.decay}, {"params": others, "weight_decay": 0.0}]
    sequences = tokens.unfold(0, model.context + 1, 1)
    drawing = torch.Generator().manual_seed(generator.initial_seed())

    def loss() -> Tensor:
        rows = torch.randint(len(sequences), (how.batch,), generator=generator, device=device_of_draws(generator))
        value = model.loss(sequences[rows.to(sequences.device)])
        if how.regulariser is None:
            return value
        return value + how.weight * how.regulariser(drawn_rows(model.table, how.rows, drawing))

    return minimised(loss, torch.optim.AdamW(groups, lr=how.rate), how.steps, clip=1.0)
