"""Soft minima and products of plans, tile by tile, in Triton: no matrix of pairs leaves the chip.

A program owns a block of rows and walks over the columns. A tile of the reduced cost is a matrix product where points
have many features and the cost is bilinear, and a sum over the features of the points' products or differences
otherwise: differences keep all digits of a small distance, which products lose.
"""

import triton
import triton.language as tl

__all__ = ["ANGLE", "DISTANCE", "PRODUCT", "combine_kernel", "product_kernel", "softmin_kernel"]

# What a tile of the cost is made of.
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
def _by_features(
    X: tl.tensor,
    Y: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    d: tl.tensor,
    FORM: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """Products or squared lengths from points that are stored feature by feature."""
    s = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    t = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    X += rows[:, None]
    Y += cols[None, :]
    in_x = rows[:, None] < n
    in_y = cols[None, :] < m
    if FEW > 0:
        for _ in tl.static_range(FEW):
            s, t = _add_feature(s, t, X, Y, in_x, in_y, FORM)
            X += n
            Y += m
    else:
        for _ in range(d):
            s, t = _add_feature(s, t, X, Y, in_x, in_y, FORM)
            X += n
            Y += m
    return s, t


@triton.jit
def _rows_of(X: tl.tensor, points: tl.tensor, count: tl.tensor, feats: tl.tensor, d: tl.tensor) -> tl.tensor:
    mask = (points[:, None] < count) & (feats[None, :] < d)
    return tl.load(X + points[:, None].to(tl.int64) * d + feats[None, :], mask=mask, other=0.0)


@triton.jit
def _by_product(
    x: tl.tensor,
    X: tl.tensor,
    Y: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    d: tl.tensor,
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Scalar products as a matrix product; ``x`` holds the first features of the rows."""
    feats = tl.arange(0, BLOCK_D)
    s = tl.dot(x, tl.trans(_rows_of(Y, cols, m, feats, d)), input_precision=PRECISION)
    if not SINGLE:
        for start in range(BLOCK_D, d, BLOCK_D):
            more = _rows_of(X, rows, n, start + feats, d)
            s = tl.dot(more, tl.trans(_rows_of(Y, cols, m, start + feats, d)), s, input_precision=PRECISION)
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
        half = _arcsine(tl.minimum(tl.sqrt(tl.minimum(s, t)) * 0.5, 0.7072))
        found = -factor * tl.where(s <= t, 2 * half, _PI - 2 * half)
        sine = 0.5 * tl.sqrt(s) * tl.sqrt(t)
        slope = tl.where(sine > 0, factor / sine, 0.0)
    return found, slope


@triton.jit
def _admissible(
    s: tl.tensor,
    BARRED_X: tl.tensor,
    BARRED_Y: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    BARRED: tl.constexpr,
) -> tl.tensor:
    """Minus infinity where a row and a column share a number: the first, or the second and not the third."""
    if BARRED > 0:
        x = tl.load(BARRED_X + rows, mask=rows < n, other=0)
        y = tl.load(BARRED_Y + cols, mask=cols < m, other=0)
        s = tl.where(x[:, None] == y[None, :], float("-inf"), s)
    if BARRED > 1:
        x = tl.load(BARRED_X + n + rows, mask=rows < n, other=0)
        y = tl.load(BARRED_Y + m + cols, mask=cols < m, other=0)
        kept_x = tl.load(BARRED_X + 2 * n + rows, mask=rows < n, other=0)
        kept_y = tl.load(BARRED_Y + 2 * m + cols, mask=cols < m, other=0)
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
def softmin_kernel(
    X: tl.tensor,
    Y: tl.tensor,
    H: tl.tensor,
    FACTOR: tl.tensor,
    BARRED_X: tl.tensor,
    BARRED_Y: tl.tensor,
    OUT: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    d: tl.tensor,
    batch: tl.tensor,
    parts: tl.tensor,
    span: tl.tensor,
    stride_x: tl.tensor,
    stride_y: tl.tensor,
    stride_h: tl.tensor,
    FORM: tl.constexpr,
    FEW: tl.constexpr,
    WIDE: tl.constexpr,
    BARRED: tl.constexpr,
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """-log sum_j exp(h_j - R_ij) over the columns of one part, shape (parts, batch, n)."""
    rows, part, b = _place(n, parts, BLOCK_N)
    X += b * stride_x
    Y += b * stride_y
    H += b * stride_h
    factor = tl.load(FACTOR + b) if FORM != PRODUCT else 1.0
    x = _rows_of(X, rows, n, tl.arange(0, BLOCK_D), d) if WIDE else 0.0
    if WIDE:
        # Rows of a matrix product are spread over few threads, so their maxima are cheap to have in each step.
        top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
    else:
        # Those of sums over features are not: every place of the tile has a maximum of its own, until the end.
        top = tl.full((BLOCK_N, BLOCK_M), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(part * span, tl.minimum(part * span + span, m), BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        if WIDE:
            s = _by_product(x, X, Y, rows, cols, n, m, d, PRECISION, SINGLE, BLOCK_D)
        else:
            s, t = _by_features(X, Y, rows, cols, n, m, d, FORM, FEW, BLOCK_N, BLOCK_M)
            s, _ = _reduced_cost(s, t, factor, FORM)
        s += tl.load(H + cols, mask=cols < m, other=float("-inf"))[None, :]
        s = _admissible(s, BARRED_X, BARRED_Y, rows, cols, n, m, BARRED)
        if WIDE:
            higher = tl.maximum(top, tl.max(s, 1))
            # Without any admissible pair yet, minus infinity less itself would be no number.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(top - shift) + tl.sum(tl.exp(s - shift[:, None]), 1)
            top = higher
        else:
            # One exponential for both: of the old sum by the new maximum, or of the new term by the old one.
            gap = tl.where(s == top, 0.0, tl.abs(s - top))
            share = tl.exp(-gap)
            total = tl.where(s > top, total * share + 1, tl.where(s == float("-inf"), total, total + share))
            top = tl.maximum(top, s)
    if not WIDE:
        highest = tl.max(top, 1)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        total = tl.sum(total * tl.exp(top - shift[:, None]), 1)
        top = highest
    found = tl.where(total == 0, float("inf"), -(top + tl.log(total)))
    tl.store(OUT + (part * batch + b) * n + rows, found, mask=rows < n)


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
def product_kernel(
    X: tl.tensor,
    Y: tl.tensor,
    HF: tl.tensor,
    HG: tl.tensor,
    V: tl.tensor,
    LAST: tl.tensor,
    LEFT: tl.tensor,
    RIGHT: tl.tensor,
    FACTOR: tl.tensor,
    BARRED_X: tl.tensor,
    BARRED_Y: tl.tensor,
    OUT: tl.tensor,
    OUT_LAST: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    d: tl.tensor,
    e: tl.tensor,
    r: tl.tensor,
    batch: tl.tensor,
    parts: tl.tensor,
    span: tl.tensor,
    stride_x: tl.tensor,
    stride_y: tl.tensor,
    stride_hf: tl.tensor,
    stride_hg: tl.tensor,
    FORM: tl.constexpr,
    FEW: tl.constexpr,
    WIDE: tl.constexpr,
    BARRED: tl.constexpr,
    SLOPE: tl.constexpr,
    EXCESS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """The plan times V, and times one more column, over the columns of one part.

    The plan is exp(hf_i + hg_j - R_ij), less one if EXCESS, times the slope of the cost if SLOPE, times <l_i, r_j> if
    WEIGHTED. V has e columns, of which a program takes BLOCK_E; with BLOCK_E = 0 there is only the one more.
    """
    rows, part, b = _place(n, parts, BLOCK_N)
    X += b * stride_x
    Y += b * stride_y
    HG += b * stride_hg
    V += b * m * e
    LAST += b * m
    LEFT += b * n * r
    RIGHT += b * m * r
    factor = tl.load(FACTOR + b) if FORM != PRODUCT else 1.0
    x = _rows_of(X, rows, n, tl.arange(0, BLOCK_D), d) if WIDE else 0.0
    hf = tl.load(HF + b * stride_hf + rows, mask=rows < n, other=float("-inf"))
    last = tl.zeros((BLOCK_N,), tl.float32)
    if BLOCK_E > 0:
        wide = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
        out = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for start in range(part * span, tl.minimum(part * span + span, m), BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        if WIDE:
            s = _by_product(x, X, Y, rows, cols, n, m, d, PRECISION, SINGLE, BLOCK_D)
            slope = s
        else:
            s, t = _by_features(X, Y, rows, cols, n, m, d, FORM, FEW, BLOCK_N, BLOCK_M)
            s, slope = _reduced_cost(s, t, factor, FORM)
        s += tl.load(HG + cols, mask=cols < m, other=float("-inf"))[None, :]
        s = _admissible(s, BARRED_X, BARRED_Y, rows, cols, n, m, BARRED)
        p = _expm1(s + hf[:, None]) if EXCESS else tl.exp(s + hf[:, None])
        if SLOPE:
            p *= slope
        if WEIGHTED:
            pairs = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for first in range(0, r, 16):
                feats = first + tl.arange(0, 16)
                left = _rows_of(LEFT, rows, n, feats, r)
                pairs = tl.dot(left, tl.trans(_rows_of(RIGHT, cols, m, feats, r)), pairs, input_precision=PRECISION)
            p *= pairs
        weight = tl.load(LAST + cols, mask=cols < m, other=0.0)
        last += tl.sum(p * weight[None, :], 1)
        if BLOCK_E > 0:
            v = _rows_of(V, cols, m, wide, e)
            out = tl.dot(p.to(v.dtype), v, out, input_precision=PRECISION)
    place = (part * batch + b) * n
    if BLOCK_E > 0:
        within = (rows[:, None] < n) & (wide[None, :] < e)
        tl.store(OUT + (place + rows[:, None]) * e + wide[None, :], out, mask=within)
    if tl.program_id(1) == 0:
        tl.store(OUT_LAST + place + rows, last, mask=rows < n)
