r"""Launches of the Triton kernels on tensors: tiles by rule, batches on one axis, columns split where rows are few."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from otdml.ot.engines import _triton_kernels as kernels

__all__ = ["FORMS", "PRECISIONS", "Barred", "FusedCost", "Tile", "tile"]

FORMS = {"product": kernels.PRODUCT.value, "distance": kernels.DISTANCE.value, "angle": kernels.ANGLE.value}
# How products of matrices are rounded: as single precision; as three products of TF32, which is nearly that; as one
# (10 bits); or as bfloat16 (7 bits).
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
# Features up to which a loop over them is written out, and costs less than a matrix product of sixteen.
FEW = 4
# Programs that keep a GPU busy, and columns that are worth one.
PROGRAMS, LEAST_SPAN = 512, 1024
# Nothing is tuned at run time: a fixed number of stages fits the shared memory of every GPU from sm_80 on.
OPTIONS = {"num_stages": 2, "enable_fp_fusion": True}


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

    def meta(self, d: int, precision: str) -> dict[str, Any]:
        """Compile-time arguments of a kernel, for points of d features."""
        return {
            "FEW": self.few,
            "WIDE": self.wide,
            "PRECISION": "ieee" if precision == "bf16" else precision,
            "SINGLE": d <= self.d,
            "BLOCK_N": self.n,
            "BLOCK_M": self.m,
            "BLOCK_D": self.d,
            "num_warps": self.warps,
            **OPTIONS,
        }


def tile(form: str, d: int, precision: str = "ieee") -> Tile:
    """The tile for points of d features.

    Example:
        >>> tile("product", 50)
        Tile(n=64, m=64, d=32, few=0, wide=True, warps=4)
        >>> tile("distance", 3)
        Tile(n=32, m=64, d=16, few=3, wide=False, warps=4)
    """
    if form != "product" or d <= FEW:
        return Tile(32, 64, 16, d if d <= FEW else 0, False)
    # Without tensor cores each thread holds its operands in registers, so fewer features fit.
    most = 32 if precision == "ieee" else 64
    return Tile(64, 64, min(most, max(16, 1 << (d - 1).bit_length())), 0, True)


@dataclass(frozen=True)
class Barred:
    r"""Pairs that may carry no mass, by integers that their points share.

    A pair (i, j) is barred if ``own`` agrees, or if ``same`` agrees and ``kept`` does not. As a mask it is a function of
    two slices, as every engine takes it.

    Attributes:
        own: Two vectors of integers, shapes (n,) and (m,), or None.
        same: Likewise.
        kept: Likewise; without it, nothing is excepted from ``same``.
    """

    own: tuple[Tensor, Tensor] | None = None
    same: tuple[Tensor, Tensor] | None = None
    kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """True where no mass may go."""
        own, same, kept = (pair and pair[0][rows, None] == pair[1][columns] for pair in (self.own, self.same, self.kept))
        if same is None:
            assert own is not None
            return own
        same = same if kept is None else same & ~kept
        return same if own is None else own | same

    @property
    def mT(self) -> "Barred":
        own, same, kept = (pair and pair[::-1] for pair in (self.own, self.same, self.kept))
        return Barred(own, same, kept)

    @property
    def level(self) -> int:
        """1 if one pair of vectors says it all, 2 if it takes three."""
        return 1 if self.same is None or (self.own is None and self.kept is None) else 2

    def vectors(self, side: int) -> Tensor:
        """The rows' (0) or the columns' (1) integers, shape (1, n) or (3, n)."""
        if self.level == 1:
            pair = self.own or self.same
            assert pair is not None
            return pair[side].to(torch.int32)[None].contiguous()
        assert self.same is not None
        # Numbers that agree with none of the other side.
        never = torch.full_like(self.same[side], -1 - side)
        own, kept = (never if pair is None else pair[side] for pair in (self.own, self.kept))
        return torch.stack([own, self.same[side], kept]).to(torch.int32)


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
        precision: Of matrix products, one of ``PRECISIONS``; sums over features are single precision always.
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
    def tile(self) -> Tile:
        return tile(self.form, self.x.shape[-1], self.precision)

    @cached_property
    def _points(self) -> tuple[Tensor, Tensor]:
        """The points as the kernels read them: feature by feature where they are summed so."""
        return self._laid_out(self.x), self._laid_out(self.y)

    def _laid_out(self, x: Tensor) -> Tensor:
        if not self.tile.wide:
            return x.float().mT.contiguous()
        x = x.to(torch.bfloat16) if self.precision == "bf16" else x.float()
        # A batch of views of one cloud needs no copies of it.
        return x[:1].contiguous().expand(x.shape) if x.stride(0) == 0 else x.contiguous()

    @cached_property
    def _barred(self) -> tuple[Tensor, Tensor]:
        if self.barred is None:
            none = torch.empty(1, dtype=torch.int32, device=self.x.device)
            return none, none
        return self.barred.vectors(0), self.barred.vectors(1)

    def _split(self) -> tuple[int, int]:
        """The number of parts of the columns, so that programs are many enough, and the columns of one."""
        batch, n, m = self.shape
        programs = batch * -(-n // self.tile.n)
        parts = max(1, min(PROGRAMS // max(1, programs), m // LEAST_SPAN))
        span = -(-m // (parts * self.tile.m)) * self.tile.m
        return max(1, -(-m // max(1, span))), span

    def _grid(self, parts: int) -> int:
        batch, n, _ = self.shape
        return batch * parts * -(-n // self.tile.n)

    def _meta(self) -> dict[str, Any]:
        level = 0 if self.barred is None else self.barred.level
        return {"FORM": FORMS[self.form], "BARRED": level, **self.tile.meta(self.x.shape[-1], self.precision)}

    def softmin(self, h: Tensor) -> Tensor:
        r""":math:`-\log \sum_j \exp(h_j - R_{ij})`, shape (batch, n), for h of shape (batch, m)."""
        (batch, n, m), (x, y), (parts, span) = self.shape, self._points, self._split()
        h = _rows(h)
        out = h.new_empty(parts, batch, n)
        if not out.numel():
            return out[0]
        kernels.softmin_kernel[(self._grid(parts),)](
            *(x, y, h, h if self.factor is None else self.factor, *self._barred, out),
            *(n, m, self.x.shape[-1], batch, parts, span, x.stride(0), y.stride(0), h.stride(0)),
            **self._meta(),
        )
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
            weights: l and r, shapes (batch, n, k) and (batch, m, k): P is multiplied by :math:`\langle l_i, r_j \rangle`.
            slope: Whether P is multiplied by the factor over the distance, or over the sine of the angle.
            excess: Whether one is subtracted from P.
        """
        (batch, n, _), e = self.shape, v.shape[-1]
        # The last of an odd number of columns, most often the row sums, would double a padded product.
        last = v[..., -1] if e % 16 == 1 else v.new_zeros(v.shape[:-1])
        body = v[..., :-1] if e % 16 == 1 else v
        parts, span = self._split()
        out, sums = v.new_empty(parts, batch, n, body.shape[-1], dtype=torch.float32), v.new_empty(parts, batch, n)
        if out.numel() or sums.numel():
            meta = self._meta() | {"SLOPE": slope, "EXCESS": excess}
            self._launch_product(hf, hg, body, last, weights, (out, sums), span, meta)
        found = out if e % 16 != 1 else torch.cat([out, sums[..., None]], -1)
        return found[0] if parts == 1 else found.sum(0)

    def _launch_product(
        self,
        hf: Tensor,
        hg: Tensor,
        v: Tensor,
        last: Tensor,
        weights: tuple[Tensor, Tensor] | None,
        out: tuple[Tensor, Tensor],
        span: int,
        meta: dict[str, Any],
    ) -> None:
        (batch, n, m), (x, y), e, parts = self.shape, self._points, v.shape[-1], len(out[0])
        hf, hg = _rows(hf), _rows(hg)
        left, right = (hf, hg) if weights is None else (w.float().contiguous() for w in weights)
        half = torch.bfloat16 if self.precision == "bf16" and self.tile.wide else torch.float32
        block = min(64, max(16, 1 << (e - 1).bit_length())) if e else 0
        kernels.product_kernel[(self._grid(parts), -(-e // block) if e else 1)](
            *(x, y, hf, hg, v.to(half).contiguous(), last.float().contiguous(), left, right),
            *(hf if self.factor is None else self.factor, *self._barred, *out),
            *(n, m, self.x.shape[-1], e, 1 if weights is None else left.shape[-1], batch, parts, span),
            *(x.stride(0), y.stride(0), hf.stride(0), hg.stride(0)),
            **meta,
            WEIGHTED=weights is not None,
            BLOCK_E=block,
        )


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
