r"""Launches of the Triton kernels on tensors: tiles by rule, batches on one axis, columns split where rows are few."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from otdml._fused import _triton_kernels as kernels
from otdml._fused._triton_arguments import Clouds, Factors, Output, Parts, Shape
from otdml._fused.barred import Barred

__all__ = ["FORMS", "FusedCost", "Tile", "tile"]

FORMS = {"product": kernels.PRODUCT.value, "distance": kernels.DISTANCE.value, "angle": kernels.ANGLE.value}
# Features up to which a loop over them is written out, and costs less than a matrix product of sixteen.
FEW = 4
# Programs that keep a GPU busy, and columns that are worth one.
PROGRAMS, LEAST_SPAN = 512, 1024
# Nothing is tuned at run time: a fixed number of stages fits the shared memory of every GPU from sm_80 on.
# The number of registers is not limited, as the assembler would then spill some to run more programs at once.
OPTIONS = {"num_stages": 2, "enable_fp_fusion": True, "maxnreg": 255}
# Warps of a program that holds scalar products of weights beside its tile.
CROWDED_WARPS = 8


@dataclass(frozen=True)
class Tile:
    """The shape of a tile of pairs, which decides about registers; none of these spills.

    Attributes:
        n: Rows.
        m: Columns.
        d: Features that are multiplied at once.
        few: Number of features, where the loop over them is written out, or zero.
        wide: Whether it is a matrix product.
        warps: Warps of a program.
    """

    n: int
    m: int
    d: int
    few: int
    wide: bool
    warps: int = 4

    def shape(self, form: str, barred: int, d: int, precision: str, **flags: Any) -> Shape:
        """Compile-time arguments of a kernel, for points of d features."""
        multiplied = "ieee" if precision == "bf16" else precision
        whole = (FORMS[form], self.few, self.wide, barred, multiplied, d <= self.d)
        return Shape(*whole, self.n, self.m, self.d, **flags)

    def options(self, *, crowded: bool = False) -> dict[str, Any]:
        """Options of a launch; ``crowded`` as in :meth:`columns`."""
        return {"num_warps": CROWDED_WARPS if crowded else self.warps, **OPTIONS}

    def columns(self, e: int, precision: str, *, crowded: bool) -> int:
        """Columns of a matrix, of ``e``, that a program takes; ``crowded`` where it holds more beside them."""
        most = 16 if crowded else 32 if not self.wide or precision == "tf32x3" else 64
        return min(most, max(16, 1 << (e - 1).bit_length())) if e else 0


def tile(form: str, d: int, precision: str = "ieee", *, product: bool = False) -> Tile:
    """The tile for points of d features.

    Args:
        form: Of the cost.
        d: Features.
        precision: Of matrix products.
        product: Whether the plan is multiplied by a matrix, whose columns need registers as well.

    Example:
        >>> tile("product", 50)
        Tile(n=64, m=32, d=16, few=0, wide=True, warps=4)
        >>> tile("distance", 3)
        Tile(n=32, m=64, d=16, few=3, wide=False, warps=4)
    """
    # Without tensor cores each thread holds its operands in registers, so that few may be multiplied at once.
    single = precision == "ieee" or form != "product" or d <= FEW
    m = 32 if product else 64
    if form != "product" or d <= FEW:
        return Tile(32, m, 16, d if d <= FEW else 0, False)
    most = 16 if single else 32 if precision == "tf32x3" else 64
    whole = max(16, 1 << (d - 1).bit_length())
    if single and whole > 32:
        # Features in several steps: their loads need registers, too.
        return Tile(64, 32, most, 0, True)
    return Tile(64, m, whole if single else min(most, whole), 0, True)


@dataclass(frozen=True)
class FusedCost:
    r"""A reduced cost over the temperature that the kernels evaluate, with one batch dimension.

    Attributes:
        form: ``"product"``: :math:`R = -\langle x, y \rangle`; ``"distance"``: :math:`\lVert x - y \rVert`;
            ``"angle"``: the angle between unit vectors.
        x: Shape (batch, n, d).
        y: Shape (batch, m, d).
        factor: Of a distance or an angle, shape (batch,); None for a product.
        barred: Pairs without mass, the same in all of the batch.
        precision: Of matrix products, one of the engine's; sums over features are single precision always.
    """

    form: str
    x: Tensor
    y: Tensor
    factor: Tensor | None = None
    barred: Barred | None = None
    precision: str = "ieee"

    @property
    def mT(self) -> "FusedCost":
        return replace(self, x=self.y, y=self.x, barred=self.barred and self.barred.mT)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.x), self.x.shape[1], self.y.shape[1]

    @cached_property
    def tiles(self) -> tuple[Tile, Tile]:
        """The tiles of the soft minimum and of products."""
        one, other = (tile(self.form, self.x.shape[-1], self.precision, product=p) for p in (False, True))
        return one, other

    @cached_property
    def _points(self) -> tuple[Tensor, Tensor]:
        """The points as the kernels read them: feature by feature where they are summed so."""
        return self._laid_out(self.x), self._laid_out(self.y)

    def _laid_out(self, x: Tensor) -> Tensor:
        if not self.tiles[0].wide:
            return x.float().mT.contiguous()
        # A batch of views of one cloud needs no copies of it.
        own = x[:1] if x.stride(0) == 0 else x
        return _padded(own, self._half).expand(len(x), -1, -1)

    @property
    def _half(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" and self.tiles[0].wide else torch.float32

    @cached_property
    def _barred(self) -> tuple[Tensor, Tensor]:
        if self.barred is None:
            none = torch.empty(1, dtype=torch.int32, device=self.x.device)
            return none, none
        return self.barred.vectors(0), self.barred.vectors(1)

    def _split(self, tile: Tile) -> tuple[int, int, int]:
        """The number of parts of the columns, so that programs are many enough, the columns of one, and programs."""
        batch, n, m = self.shape
        programs = batch * -(-n // tile.n)
        parts = max(1, min(PROGRAMS // max(1, programs), m // LEAST_SPAN))
        span = -(-m // (parts * tile.m)) * tile.m
        parts = max(1, -(-m // max(1, span)))
        return parts, span, programs * parts

    def _shape(self, tile: Tile, **flags: Any) -> Shape:
        level = 0 if self.barred is None else self.barred.level
        return tile.shape(self.form, level, self._features, self.precision, **flags)

    def _clouds(self, unused: Tensor) -> Clouds:
        """The points as a kernel takes them; ``unused`` stands where a product has no factor."""
        (_, n, m), (x, y) = self.shape, self._points
        factor = unused if self.factor is None else self.factor
        return Clouds(x, y, factor, *self._barred, n, m, self._features, x.stride(0), y.stride(0))

    @property
    def _features(self) -> int:
        """The number of features as the kernels see them."""
        return self._points[0].shape[-1] if self.tiles[0].wide else self.x.shape[-1]

    def softmin(self, h: Tensor) -> Tensor:
        r""":math:`-\log \sum_j \exp(h_j - R_{ij})`, shape (batch, n), for h of shape (batch, m)."""
        (batch, n, _), tile, h = self.shape, self.tiles[0], _rows(h)
        parts, span, programs = self._split(tile)
        out = h.new_empty(parts, batch, n)
        if not out.numel():
            return out[0]
        split, shape = Parts(batch, parts, span), self._shape(tile)
        kernels.softmin_kernel[(programs,)](self._clouds(h), h, out, h.stride(0), split, SHAPE=shape, **tile.options())
        return out[0] if parts == 1 else _combined(out)

    def product(
        self,
        hf: Tensor,
        hg: Tensor,
        v: Tensor,
        *,
        weights: tuple[Tensor, Tensor] | None = None,
        slope: bool = False,
        excess: bool = False,
    ) -> Tensor:
        r"""The plan :math:`P_{ij} = \exp(h^f_i + h^g_j - R_{ij})` times ``v``, shape (batch, n, e).

        Args:
            hf: Shape (batch, n).
            hg: Shape (batch, m).
            v: Shape (batch, m, e).
            weights: l and r, shapes (batch, n, k) and (batch, m, k): P is multiplied by
                :math:`\langle l_i, r_j \rangle`.
            slope: Whether P is multiplied by the factor over the distance, or over the sine of the angle.
            excess: Whether one is subtracted from P.
        """
        (batch, n, _), e = self.shape, v.shape[-1]
        # The last of an odd number of columns, most often the row sums, would double a padded product.
        beside = e % 16 == 1
        last = v[..., -1] if beside else v.new_zeros(v.shape[:-1])
        body = _padded(v[..., :-1] if beside else v, self._half)
        parts, _, _ = self._split(self.tiles[1])
        sums = torch.empty(parts, batch, n, device=v.device)
        out = sums.new_empty(*sums.shape, body.shape[-1])
        if out.numel() or sums.numel():
            flags = {"SLOPE": slope, "EXCESS": excess}
            self._launch_product(hf, hg, body, last, weights, (out, sums), flags)
        found = torch.cat([out, sums[..., None]], -1) if beside else out[..., :e]
        return found[0] if parts == 1 else found.sum(0)

    def _launch_product(
        self,
        hf: Tensor,
        hg: Tensor,
        v: Tensor,
        last: Tensor,
        weights: tuple[Tensor, Tensor] | None,
        out: tuple[Tensor, Tensor],
        flags: dict[str, Any],
    ) -> None:
        batch, tile, e, weighted = len(self.x), self.tiles[1], v.shape[-1], weights is not None
        parts, span, programs = self._split(tile)
        hf, hg = _rows(hf), _rows(hg)
        left, right = (hf, hg) if weights is None else (_padded(w) for w in weights)
        block = tile.columns(e, self.precision, crowded=weighted)
        factors = Factors(v, last.float().contiguous(), left, right, e, left.shape[-1] if weighted else 1)
        kernels.product_kernel[(programs, -(-e // block) if e else 1)](
            *(self._clouds(hf), hf, hg, hf.stride(0), hg.stride(0), factors, Output(*out)),
            Parts(batch, parts, span),
            SHAPE=self._shape(tile, **flags, WEIGHTED=weighted, BLOCK_E=block),
            **tile.options(crowded=weighted),
        )


def _padded(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Contiguous, with zeros up to a multiple of 16 features, so that every load is wide."""
    return torch.nn.functional.pad(x.to(dtype), (0, -x.shape[-1] % 16)).contiguous()


def _rows(h: Tensor) -> Tensor:
    """In single precision, with successive entries beside each other; a batch of views of one row is no copy."""
    h = h.float()
    return h if h.stride(-1) == 1 else h.contiguous()


def _combined(found: Tensor) -> Tensor:
    """The soft minimum of those of all parts, shape (batch, n)."""
    out = torch.empty_like(found[0])
    count, block = out.numel(), 256
    kernels.combine_kernel[(-(-count // block),)](found, out, count, len(found), BLOCK=block, num_warps=4, **OPTIONS)
    return out
