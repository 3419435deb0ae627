"""Soft minima and products of plans, tile by tile, in Triton: no matrix of pairs leaves the chip.

A program owns a block of rows and walks over the columns. A tile of the reduced cost is a matrix product where points
have many features and the cost is bilinear, and a sum over the features of the points' products or differences
otherwise: differences keep all digits of a small distance, which products lose.
"""

import triton
import triton.language as tl

from otdml._fused._triton_arguments import Clouds, Factors, Output, Parts

__all__ = ["ANGLE", "DISTANCE", "PRODUCT", "combine_kernel", "product_kernel", "softmin_kernel"]

# The inputs of a tile of the cost.
PRODUCT = tl.constexpr(0)
DISTANCE = tl.constexpr(1)
ANGLE = tl.constexpr(2)

_PI = tl.constexpr(3.141592653589793)


@triton.jit
def _arcsine(t: tl.tensor) -> tl.tensor:
    """The arcsine on [0, 0.71], to two units in the last place of single precision."""
    large = t > 0.5
    z = tl.where(large, (1 - t) * 0.5, t * t)
    s = tl.where(large, tl.sqrt(z), t)
    p = 4.2163199048e-2 * z + 2.4181311049e-2
    p = p * z + 4.5470025998e-2
    p = p * z + 7.4953002686e-2
    p = p * z + 1.6666752422e-1
    p = p * z * s + s
    return tl.where(large, _PI * 0.5 - 2 * p, p)


@triton.jit
def _expm1(z: tl.tensor) -> tl.tensor:
    """The exponential less one, to all digits near zero."""
    p = z * (1 / 5040) + 1 / 720
    p = p * z + 1 / 120
    p = p * z + 1 / 24
    p = p * z + 1 / 6
    p = p * z + 0.5
    p = p * z * z + z
    return tl.where(tl.abs(z) < 0.35, p, tl.exp(z) - 1)


@triton.jit
def _add_feature(
    s: tl.tensor, t: tl.tensor, X: tl.tensor, Y: tl.tensor, in_x: tl.tensor, in_y: tl.tensor, FORM: tl.constexpr
) -> tl.tensor:
    """One feature's part of the products, or of the squared lengths of differences and of sums."""
    x = tl.load(X, mask=in_x, other=0.0)
    y = tl.load(Y, mask=in_y, other=0.0)
    if FORM == PRODUCT:
        s += x * y
    else:
        s += (x - y) * (x - y)
    if FORM == ANGLE:
        t += (x + y) * (x + y)
    return s, t


@triton.jit
def _by_features(of: Clouds, rows: tl.tensor, cols: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """Products or squared lengths from points that are stored feature by feature."""
    s = tl.zeros((SHAPE.BLOCK_N, SHAPE.BLOCK_M), tl.float32)
    t = tl.zeros((SHAPE.BLOCK_N, SHAPE.BLOCK_M), tl.float32)
    X = of.x + rows[:, None]
    Y = of.y + cols[None, :]
    in_x = rows[:, None] < of.n
    in_y = cols[None, :] < of.m
    if SHAPE.FEW > 0:
        for _ in tl.static_range(SHAPE.FEW):
            s, t = _add_feature(s, t, X, Y, in_x, in_y, SHAPE.FORM)
            X += of.n
            Y += of.m
    else:
        for _ in range(of.d):
            s, t = _add_feature(s, t, X, Y, in_x, in_y, SHAPE.FORM)
            X += of.n
            Y += of.m
    return s, t


@triton.jit
def _rows_of(X: tl.tensor, points: tl.tensor, count: tl.tensor, feats: tl.tensor, d: tl.tensor) -> tl.tensor:
    mask = (points[:, None] < count) & (feats[None, :] < d)
    return tl.load(X + points[:, None].to(tl.int64) * d + feats[None, :], mask=mask, other=0.0)


@triton.jit
def _by_product(x: tl.tensor, of: Clouds, rows: tl.tensor, cols: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """Scalar products as a matrix product; ``x`` holds the first features of the rows."""
    feats = tl.arange(0, SHAPE.BLOCK_D)
    s = tl.dot(x, tl.trans(_rows_of(of.y, cols, of.m, feats, of.d)), input_precision=SHAPE.PRECISION)
    if not SHAPE.SINGLE:
        for start in range(SHAPE.BLOCK_D, of.d, SHAPE.BLOCK_D):
            more = _rows_of(of.x, rows, of.n, start + feats, of.d)
            other = tl.trans(_rows_of(of.y, cols, of.m, start + feats, of.d))
            s = tl.dot(more, other, s, input_precision=SHAPE.PRECISION)
    return s


@triton.jit
def _reduced_cost(s: tl.tensor, t: tl.tensor, factor: tl.tensor, FORM: tl.constexpr) -> tl.tensor:
    """A tile of minus the reduced cost, and of the slope by which its gradient is a sum of points."""
    if FORM == PRODUCT:
        found = s
        slope = s
    elif FORM == DISTANCE:
        length = tl.sqrt(s)
        found = -factor * length
        # Coincident points have no direction between them.
        slope = tl.where(s > 0, factor / length, 0.0)
    else:
        # Half the angle is the arcsine of half the chord: to the point, or to its antipode where that is nearer.
        # By comparisons, as a minimum takes the number of a number and NaN.
        half_chord = tl.sqrt(tl.where(t < s, t, s)) * 0.5
        half = _arcsine(tl.where(half_chord > 0.7072, 0.7072, half_chord))
        found = -factor * tl.where(s <= t, 2 * half, _PI - 2 * half)
        sine = 0.5 * tl.sqrt(s) * tl.sqrt(t)
        slope = tl.where(sine > 0, factor / sine, 0.0)
    return found, slope


@triton.jit
def _admissible(s: tl.tensor, of: Clouds, rows: tl.tensor, cols: tl.tensor, BARRED: tl.constexpr) -> tl.tensor:
    """Minus infinity where a row and a column share a number: the first, or the second and not the third."""
    if BARRED > 0:
        x = tl.load(of.barred_x + rows, mask=rows < of.n, other=0)
        y = tl.load(of.barred_y + cols, mask=cols < of.m, other=0)
        s = tl.where(x[:, None] == y[None, :], float("-inf"), s)
    if BARRED > 1:
        x = tl.load(of.barred_x + of.n + rows, mask=rows < of.n, other=0)
        y = tl.load(of.barred_y + of.m + cols, mask=cols < of.m, other=0)
        kept_x = tl.load(of.barred_x + 2 * of.n + rows, mask=rows < of.n, other=0)
        kept_y = tl.load(of.barred_y + 2 * of.m + cols, mask=cols < of.m, other=0)
        same = (x[:, None] == y[None, :]) & (kept_x[:, None] != kept_y[None, :])
        s = tl.where(same, float("-inf"), s)
    return s


@triton.jit
def _place(n: tl.tensor, parts: tl.tensor, BLOCK_N: tl.constexpr) -> tl.tensor:
    """The rows, the part of the columns and the batch element of this program."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(n, BLOCK_N)
    rows = (pid % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows, (pid // blocks) % parts, (pid // blocks // parts).to(tl.int64)


@triton.jit
def _one(of: Clouds, b: tl.tensor, SHAPE: tl.constexpr) -> Clouds:
    """The clouds of one of the batch, with the factor itself."""
    factor = tl.load(of.factor + b) if SHAPE.FORM != PRODUCT else 1.0
    x, y = of.x + b * of.stride_x, of.y + b * of.stride_y
    return Clouds(x, y, factor, of.barred_x, of.barred_y, of.n, of.m, of.d, of.stride_x, of.stride_y)


@triton.jit
def _first_features(of: Clouds, rows: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """The first features of the rows, which a matrix product reuses in every step."""
    return _rows_of(of.x, rows, of.n, tl.arange(0, SHAPE.BLOCK_D), of.d) if SHAPE.WIDE else 0.0


@triton.jit
def _scores(x: tl.tensor, of: Clouds, H: tl.tensor, rows: tl.tensor, cols: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """A tile of h_j - R_ij, and of the slope of the cost."""
    if SHAPE.WIDE:
        s = _by_product(x, of, rows, cols, SHAPE)
        slope = s
    else:
        s, t = _by_features(of, rows, cols, SHAPE)
        s, slope = _reduced_cost(s, t, of.factor, SHAPE.FORM)
    s += tl.load(H + cols, mask=cols < of.m, other=float("-inf"))[None, :]
    return _admissible(s, of, rows, cols, SHAPE.BARRED), slope


@triton.jit
def _nothing_yet(SHAPE: tl.constexpr) -> tl.tensor:
    """The maxima and the sums before the first tile."""
    if SHAPE.WIDE:
        # Rows of a matrix product are spread over few threads, so their maxima are cheap to have in each step.
        top = tl.full((SHAPE.BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((SHAPE.BLOCK_N,), tl.float32)
    else:
        # Those of sums over features are not: every place of the tile has a maximum of its own, until the end.
        top = tl.full((SHAPE.BLOCK_N, SHAPE.BLOCK_M), float("-inf"), tl.float32)
        total = tl.zeros((SHAPE.BLOCK_N, SHAPE.BLOCK_M), tl.float32)
    return top, total


@triton.jit
def _with_tile(top: tl.tensor, total: tl.tensor, s: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """The maxima of the scores so far, and the sums of exponentials over them."""
    if SHAPE.WIDE:
        higher = tl.maximum(top, tl.max(s, 1))
        # Before the first admissible pair, minus infinity minus itself would be NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(s - shift[:, None]), 1)
        top = higher
    else:
        # One exponential for both: of the old sum by the new maximum, or of the new term by the old one.
        gap = tl.where(s == top, 0.0, tl.abs(s - top))
        share = tl.exp(-gap)
        total = tl.where(s > top, total * share + 1, tl.where(s == float("-inf"), total, total + share))
        top = tl.maximum(top, s)
    return top, total


@triton.jit
def _negative_log(top: tl.tensor, total: tl.tensor, SHAPE: tl.constexpr) -> tl.tensor:
    """The soft minima of the rows."""
    if not SHAPE.WIDE:
        highest = tl.max(top, 1)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        total = tl.sum(total * tl.exp(top - shift[:, None]), 1)
        top = highest
    return tl.where(total == 0, float("inf"), -(top + tl.log(total)))


@triton.jit
def softmin_kernel(
    clouds: Clouds, H: tl.tensor, OUT: tl.tensor, stride_h: tl.tensor, split: Parts, SHAPE: tl.constexpr
) -> None:
    """-log sum_j exp(h_j - R_ij) over the columns of one part, shape (parts, batch, n)."""
    rows, part, b = _place(clouds.n, split.parts, SHAPE.BLOCK_N)
    of = _one(clouds, b, SHAPE)
    H += b * stride_h
    x = _first_features(of, rows, SHAPE)
    top, total = _nothing_yet(SHAPE)
    for start in range(part * split.span, tl.minimum(part * split.span + split.span, of.m), SHAPE.BLOCK_M):
        s, _ = _scores(x, of, H, rows, start + tl.arange(0, SHAPE.BLOCK_M), SHAPE)
        top, total = _with_tile(top, total, s, SHAPE)
    found = _negative_log(top, total, SHAPE)
    tl.store(OUT + (part * split.batch + b) * of.n + rows, found, mask=rows < of.n)


@triton.jit
def combine_kernel(PARTS: tl.tensor, OUT: tl.tensor, count: tl.tensor, parts: tl.tensor, BLOCK: tl.constexpr) -> None:
    """-log sum_p exp(-s_p) of the soft minima of all parts, shape (parts, count)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        s = tl.load(PARTS + at, mask=at < count, other=float("inf"))
        lower = tl.minimum(low, s)
        shift = tl.where(lower == float("inf"), 0.0, lower)
        total = total * tl.exp(shift - low) + tl.exp(shift - s)
        low = lower
        PARTS += count
    tl.store(OUT + at, tl.where(total == 0, float("inf"), low - tl.log(total)), mask=at < count)


@triton.jit
def _factors_of(by: Factors, b: tl.tensor, of: Clouds) -> Factors:
    """The factors of one element of the batch."""
    left, right = by.left + b * of.n * by.r, by.right + b * of.m * by.r
    return Factors(by.v + b * of.m * by.e, by.last + b * of.m, left, right, by.e, by.r)


@triton.jit
def _weights(by: Factors, rows: tl.tensor, cols: tl.tensor, of: Clouds, SHAPE: tl.constexpr) -> tl.tensor:
    """The scalar products <l_i, r_j>."""
    pairs = tl.zeros((SHAPE.BLOCK_N, SHAPE.BLOCK_M), tl.float32)
    for first in range(0, by.r, 16):
        feats = first + tl.arange(0, 16)
        left = _rows_of(by.left, rows, of.n, feats, by.r)
        right = tl.trans(_rows_of(by.right, cols, of.m, feats, by.r))
        pairs = tl.dot(left, right, pairs, input_precision=SHAPE.PRECISION)
    return pairs


@triton.jit
def _plan(
    s: tl.tensor, slope: tl.tensor, by: Factors, of: Clouds, rows: tl.tensor, cols: tl.tensor, SHAPE: tl.constexpr
) -> tl.tensor:
    """A tile of the plan exp(s), less one if EXCESS, times the slope if SLOPE, times <l_i, r_j> if WEIGHTED."""
    p = _expm1(s) if SHAPE.EXCESS else tl.exp(s)
    if SHAPE.SLOPE:
        p *= slope
    if SHAPE.WEIGHTED:
        p *= _weights(by, rows, cols, of, SHAPE)
    return p


@triton.jit
def product_kernel(
    clouds: Clouds,
    HF: tl.tensor,
    HG: tl.tensor,
    stride_hf: tl.tensor,
    stride_hg: tl.tensor,
    factors: Factors,
    out: Output,
    split: Parts,
    SHAPE: tl.constexpr,
) -> None:
    """The plan exp(hf_i + hg_j - R_ij) times V, and times one more column, over the columns of one part.

    V has e columns, of which a program takes BLOCK_E; with BLOCK_E = 0 there is only the one more.
    """
    rows, part, b = _place(clouds.n, split.parts, SHAPE.BLOCK_N)
    of, by = _one(clouds, b, SHAPE), _factors_of(factors, b, clouds)
    n, m, e = of.n, of.m, by.e
    HG += b * stride_hg
    x = _first_features(of, rows, SHAPE)
    hf = tl.load(HF + b * stride_hf + rows, mask=rows < n, other=float("-inf"))
    last = tl.zeros((SHAPE.BLOCK_N,), tl.float32)
    if SHAPE.BLOCK_E > 0:
        wide = tl.program_id(1) * SHAPE.BLOCK_E + tl.arange(0, SHAPE.BLOCK_E)
        sums = tl.zeros((SHAPE.BLOCK_N, SHAPE.BLOCK_E), tl.float32)
    for start in range(part * split.span, tl.minimum(part * split.span + split.span, m), SHAPE.BLOCK_M):
        cols = start + tl.arange(0, SHAPE.BLOCK_M)
        s, slope = _scores(x, of, HG, rows, cols, SHAPE)
        p = _plan(s + hf[:, None], slope, by, of, rows, cols, SHAPE)
        last += tl.sum(p * tl.load(by.last + cols, mask=cols < m, other=0.0)[None, :], 1)
        if SHAPE.BLOCK_E > 0:
            some = _rows_of(by.v, cols, m, wide, e)
            sums = tl.dot(p.to(some.dtype), some, sums, input_precision=SHAPE.PRECISION)
    place = (part * split.batch + b) * n + rows
    if SHAPE.BLOCK_E > 0:
        within = (rows[:, None] < n) & (wide[None, :] < e)
        tl.store(out.columns + place[:, None] * e + wide[None, :], sums, mask=within)
    if tl.program_id(1) == 0:
        tl.store(out.last + place, last, mask=rows < n)
