# SPDX-License-Identifier: Apache-2.0
"""The reference backend: the engine's operators in plain torch, a strip of rows at a time, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.backends.chosen_pairs import ChosenPairs
from pycl.backends.reference_modifiers import KINDS, ModifiedTile, back_at, strip_rows
from pycl.backends.reference_sinkhorn import sinkhorn as sinkhorn
from pycl.backends.reference_sinkhorn import sinkhorn_codes as sinkhorn_codes
from pycl.backends.reference_sinkhorn import sinkhorn_columns as sinkhorn_columns
from pycl.core.pairs import Pairs
from pycl.core.problem import (
    FLOATS,
    N_RESULTS,
    N_STATS,
    NORM_EPS,
    Gradients,
    Needs,
    Problem,
    accumulation_dtype,
    empty_average,
    empty_gradients,
    empty_values_gradient,
    no_residuals,
    slopes_or_one,
    stats_blocks,
)

DEVICES = None  # every device
DTYPES = FLOATS
MODIFIERS = KINDS
STRIP = 512  # rows of logits held at once
TILE = 256, 4096  # rows and columns of logits searched at once: 4 MiB of float32


class _Strip(NamedTuple):
    i: slice
    logits: Tensor  # [strip, n]
    in_pairs: Tensor  # bool [strip, n], without pairs that were dropped: their logit is -inf
    in_pos: Tensor
    modified: ModifiedTile | None


class _Map(NamedTuple):
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _times_exp(l: Tensor, factor: Tensor) -> Tensor:
    e = l.exp()
    return torch.where(e == 0, e, e * factor)


MAPS = {
    # softplus(l) = -logsigmoid(-l); torch's softplus turns linear above 20, short of float64
    "softplus": _Map(lambda l: -logsigmoid(-l), torch.sigmoid),
    "square": _Map(torch.square, lambda l: 2 * l),
    "relu": _Map(torch.relu, lambda l: torch.where(l.isnan(), l, (l > 0).to(l.dtype))),
    "exp": _Map(torch.exp, torch.exp),
    "logit_exp": _Map(lambda l: _times_exp(l, l), lambda l: _times_exp(l, 1 + l)),
}


class _Side(NamedTuple):
    x: Tensor  # what the product sees: accumulation dtype, normalised where asked
    inv_norm: Tensor | None
    frozen: Tensor | None  # rows shorter than NORM_EPS: their norm is a constant

    def gradient(self, d_x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.inv_norm is not None and self.frozen is not None:
            along = (self.x * d_x).sum(1, keepdim=True).masked_fill(self.frozen, 0)
            d_x = (d_x - self.x * along) * self.inv_norm
            if dtype == torch.float16:  # 1 / NORM_EPS is beyond float16
                d_x = torch.where(self.frozen, d_x.clamp(-65504, 65504), d_x)
        return d_x.to(dtype)


def _side(z: Tensor, normalize: bool) -> _Side:
    x = z.to(accumulation_dtype(z.dtype))
    if not normalize:
        return _Side(x, None, None)
    peak = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    x = x / peak  # squares of huge and tiny entries leave the range, and so may the norm itself
    norm = x.norm(dim=1, keepdim=True)
    inv_norm = 1 / norm.clamp_min(NORM_EPS / peak)
    return _Side(x * inv_norm, inv_norm / peak, norm * peak < NORM_EPS)


def _sides(problem: Problem) -> tuple[_Side, _Side]:
    rows = _side(problem.rows, problem.normalize)
    return rows, rows if problem.cols is None else _side(problem.cols, problem.normalize)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _members(problem: Problem, pairs: int, i: slice, j: slice) -> Tensor:
    """Which pairs of a tile are in a pair set, bool. Labels are written out once for all tiles: ``with_labels``."""
    row_ids, row_views, col_ids, col_views = problem.labels()
    same_id = row_ids[i, None] == col_ids[j]
    same_view = row_views[i, None] == col_views[j]
    positive = torch.where(same_view, bool(pairs & Pairs.POS_SAME_VIEW), bool(pairs & Pairs.POS_OTHER_VIEW))
    negative = torch.where(same_view, bool(pairs & Pairs.NEG_SAME_VIEW), bool(pairs & Pairs.NEG_OTHER_VIEW))
    members = torch.where(same_id, positive, negative)
    if problem.offset is not None:
        partner = torch.arange(i.start, i.stop, device=members.device) + problem.offset
        itself = partner[:, None] == torch.arange(j.start, j.stop, device=members.device)
        members.masked_fill_(itself, bool(pairs & Pairs.SELF))
    return members


def _biased(problem: Problem, logits: Tensor, i: slice, j: slice) -> Tensor:
    col_bias = problem.row_bias if problem.cols is None else problem.col_bias
    if problem.row_bias is not None:
        logits = logits + problem.row_bias[i, None]
    return logits if col_bias is None else logits + col_bias[j]


def _logits(problem: Problem, rows: _Side, cols: _Side, i: slice, j: slice) -> Tensor:
    scale = problem.logit_scale.expand(len(rows.x))[i, None]
    return _biased(problem, _product(rows.x[i], cols.x[j].T).mul_(scale), i, j)


def _strips(problem: Problem, rows: _Side, cols: _Side, taped: bool = False) -> Iterator[_Strip]:
    problem, every = problem.with_labels(), slice(0, len(cols.x))
    for i in _slices(len(rows.x), strip_rows(problem, STRIP) if problem.modifiers else STRIP):
        in_pairs, in_pos = (_members(problem, pairs, i, every) for pairs in (problem.pairs, problem.positives))
        logits, modified = _logits(problem, rows, cols, i, every), None
        if problem.modifiers:
            modified = ModifiedTile(problem, logits, i, every, in_pos, taped)
            logits = modified.logits
        kept = logits != -torch.inf
        yield _Strip(i, logits, in_pairs & kept, in_pos & kept, modified)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):  # the inputs' dtype was chosen where they were made
        return a @ b


def _lse(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    return logits.masked_fill(~mask, -torch.inf).logsumexp(dim)


def _steeper(logits: Tensor, slope: float) -> Tensor:
    return logits if slope == 1 else logits * slope


def _reduce(strip: _Strip, slopes: Sequence[float], dim: int) -> Tensor:
    """The results of each slope over ``dim``, a block [N_RESULTS, n] each."""
    pos_sum = torch.where(strip.in_pos, strip.logits, 0).sum(dim)
    sums = pos_sum, strip.in_pos.sum(dim).to(pos_sum.dtype)
    found = []
    for slope in slopes:
        logits = _steeper(strip.logits, slope)
        found.append(torch.stack([_lse(logits, strip.in_pairs, dim), _lse(logits, strip.in_pos, dim), *sums]))
    return torch.stack(found)


def pair_stats(
    problem: Problem, slopes: Sequence[float], both_sides: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = _sides(problem)
    both_sides, slopes = both_sides and problem.cols is not None, slopes_or_one(slopes)
    row_stats = rows.x.new_zeros(len(slopes) * N_STATS, len(rows.x))
    col_stats = rows.x.new_zeros(len(slopes) * N_STATS, len(cols.x) if both_sides else 0)
    of_rows, of_cols = (stats_blocks(stats)[:, :N_RESULTS] for stats in (row_stats, col_stats))
    of_cols[:, :2] = -torch.inf
    for strip in _strips(problem, rows, cols):
        of_rows[:, :, strip.i] = _reduce(strip, slopes, 1)
        if both_sides:
            part = _reduce(strip, slopes, 0)
            of_cols[:, :2] = torch.logaddexp(of_cols[:, :2], part[:, :2])
            of_cols[:, 2:] += part[:, 2:]
    return row_stats, col_stats, no_residuals(problem)


def _softmax_weights(
    strip: _Strip, slopes: Sequence[float], stats: Tensor, d_stats: list[Tensor | None], dim: int
) -> Tensor:
    """d loss / d logits of one side, whose statistics run along ``dim`` of the strip."""
    at = (strip.i, None) if dim == 0 else (None, slice(None))
    d_pos_sum = 0.0 if d_stats[2] is None else torch.where(strip.in_pos, d_stats[2][at], 0)
    d_lses = [[None] * len(slopes) if d is None else d.view(len(slopes), -1) for d in d_stats[:2]]
    w = torch.zeros_like(strip.logits) + d_pos_sum
    for slope, block, *d_of_slope in zip(slopes, stats_blocks(stats), *d_lses, strict=True):
        logits = _steeper(strip.logits, slope)
        for members, lse, d in zip((strip.in_pairs, strip.in_pos), block[:2], d_of_slope, strict=True):
            if d is not None:
                # an empty or wholly masked set weighs nothing: exp(-inf - 0), not exp(-inf + inf)
                share = (logits - lse.masked_fill(lse == -torch.inf, 0)[at]).exp()
                w += torch.where(members, slope * d[at] * share, 0)
    return w


def pair_stats_backward(
    problem: Problem,
    slopes: Sequence[float],
    row_stats: Tensor,
    col_stats: Tensor,
    residuals: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    slopes = slopes_or_one(slopes)

    def weights(strip: _Strip) -> Tensor:
        w = _softmax_weights(strip, slopes, row_stats, d_row_stats, 0)
        return w + _softmax_weights(strip, slopes, col_stats, d_col_stats, 1) if col_stats.shape[1] else w

    return _strips_backward(problem, weights, needs)


def pair_sum(
    problem: Problem, map: str, positive_weight: Tensor | None, counted: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = _sides(problem)
    sums, counts = (rows.x.new_empty(len(rows.x) if wanted else 0) for wanted in (True, counted))
    for strip in _strips(problem, rows, cols):
        weight, weighed = _of_positives(strip, positive_weight)
        parts = [
            torch.where(strip.in_pairs, MAPS[map].value(strip.logits), 0),
            torch.where(weighed, weight * MAPS[map].value(-strip.logits), 0),
        ]
        sums[strip.i] = (parts[0] + parts[1]).sum(1)
        if counted:
            counts[strip.i] = (parts[0].count_nonzero(1) + parts[1].count_nonzero(1)).to(counts.dtype)
    return sums, counts, no_residuals(problem)


def pair_sum_backward(
    problem: Problem, map: str, positive_weight: Tensor | None, residuals: Tensor, d_sum: Tensor, needs: Needs
) -> Gradients:
    def weights(strip: _Strip) -> Tensor:
        weight, weighed = _of_positives(strip, positive_weight)
        slope = torch.where(strip.in_pairs, MAPS[map].slope(strip.logits), 0)
        slope = slope - torch.where(weighed, weight * MAPS[map].slope(-strip.logits), 0)
        return d_sum[strip.i, None] * slope

    return _strips_backward(problem, weights, needs)


def _of_positives(strip: _Strip, positive_weight: Tensor | None) -> tuple[Tensor | float, Tensor]:
    """The weights of the strip's positives, and which pairs these are: none of a row whose weight is 0."""
    if positive_weight is None:
        return 1.0, strip.in_pos
    weight = positive_weight[strip.i, None]
    return weight, strip.in_pos & (weight != 0)


def pair_average(problem: Problem, values: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, cols = _sides(problem)
    means, lse = empty_average(problem, values)
    for strip in _strips(problem, rows, cols):
        logits = torch.where(strip.in_pairs, strip.logits, -torch.inf)
        lse[strip.i] = found = logits.logsumexp(1)
        p = (logits - found.masked_fill(found == -torch.inf, 0)[:, None]).exp()
        if values is None:
            means[strip.i, 0] = torch.where(p == 0, 0, p * logits).sum(1)
        else:
            means[strip.i] = _product(p, values.to(p.dtype))
    return means, lse


def pair_average_backward(
    problem: Problem, values: Tensor, d_out: Tensor, along: Tensor, of_values: bool, needs: Needs
) -> tuple[Tensor, ...]:
    d_values, values = empty_values_gradient(problem, values, of_values).zero_(), values.to(along.dtype)

    def weights(strip: _Strip) -> Tensor:
        g, p = d_out[strip.i], torch.where(strip.in_pairs, strip.logits.exp(), 0)
        if of_values:
            d_values.add_(_product(p.T, g))
        return p * (_product(g, values.T) - along[strip.i, None]) if any(needs) else p

    return d_values, *_strips_backward(problem, weights, needs)


def pair_logits(problem: Problem) -> Tensor:
    rows, cols = _sides(problem)
    dtype, whole = _product_dtype(problem.rows), slice(0, len(cols.x))
    left, right = _factors(problem, rows, cols, dtype)
    every = problem.pairs == Pairs.ALL
    if every and problem.row_bias is None and problem.col_bias is None and dtype == problem.rows.dtype:
        return _product(left, right.T)
    problem = problem if every else problem.with_labels()
    out = problem.rows.new_empty(len(left), len(right))
    for i in _slices(len(left), STRIP):
        logits = _biased(problem, _product(left[i], right.T), i, whole)
        out[i] = logits if every else logits.masked_fill(~_members(problem, problem.pairs, i, whole), -torch.inf)
    return out


def pair_logits_backward(problem: Problem, d_logits: Tensor, needs: Needs) -> Gradients:
    def weights() -> Iterator[tuple[slice, Tensor]]:
        m, n = d_logits.shape
        every = problem.pairs == Pairs.ALL
        labelled = problem if every else problem.with_labels()
        for i in _slices(m, m if every and dtype == d_logits.dtype else STRIP):
            w = d_logits[i].to(dtype)
            yield i, w if every else w.masked_fill(~_members(labelled, problem.pairs, i, slice(0, n)), 0)

    dtype = _product_dtype(problem.rows)
    return _apply(problem, *_sides(problem), weights(), needs, dtype)


def _product_dtype(z: Tensor) -> torch.dtype:
    """The inputs' own, but for float16 on a CPU: there a step of 4096 x 4096 x 512 took 57 times that of float32."""
    return torch.float32 if z.dtype == torch.float16 and z.device.type == "cpu" else z.dtype


def pair_top(problem: Problem, k: int, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, cols = _sides(problem)
    problem = problem if problem.pairs == Pairs.ALL else problem.with_labels()
    values = rows.x.new_empty(len(rows.x), k)
    col_values = rows.x.new_full((len(cols.x) if both_sides else 0, k), -torch.inf)
    index, col_index = (torch.full_like(v, -1, dtype=torch.int64) for v in (values, col_values))
    for i in _slices(len(rows.x), TILE[0]):
        best, where = values[i, :0], index[i, :0]
        for j in _slices(len(cols.x), TILE[1]):
            tile = _logits(problem, rows, cols, i, j)
            if problem.pairs != Pairs.ALL:
                tile = tile.masked_fill(~_members(problem, problem.pairs, i, j), -torch.inf)
            best, where = _merged(best, where, tile, j, k)
            if both_sides:
                seen = min(k, i.start)
                found = _merged(col_values[j, :seen], col_index[j, :seen], tile.T, i, k)
                width = found[0].shape[1]
                col_values[j, :width], col_index[j, :width] = found
        values[i], index[i] = best, where.masked_fill(best == -torch.inf, -1)
    return values, index, col_values, col_index.masked_fill_(col_values == -torch.inf, -1)


def _merged(best: Tensor, where: Tensor, tile: Tensor, j: slice, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of what was kept and of a tile with the candidates j."""
    candidates = torch.arange(j.start, j.stop, device=tile.device).expand(tile.shape)
    # what was kept stands to the left, so the lowest candidate still comes first
    best, where = torch.cat([best, tile], 1), torch.cat([where, candidates], 1)
    chosen = _first_largest(best, min(k, best.shape[1]))
    return best.gather(1, chosen), where.gather(1, chosen)


def pair_extremes(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, cols = _sides(problem)
    problem = problem.with_labels()
    of_rows, of_cols = (_Best.of(rows.x, n) for n in (len(rows.x), len(cols.x) if both_sides else 0))
    height, width = TILE if not problem.modifiers else (strip_rows(problem, TILE[0]), len(cols.x))
    for i in _slices(len(rows.x), height):
        for j in _slices(len(cols.x), width):
            tile, in_pos = _logits(problem, rows, cols, i, j), _members(problem, problem.positives, i, j)
            if problem.modifiers:
                tile = ModifiedTile(problem, tile, i, j, in_pos, False).logits
            for side, members in enumerate((_members(problem, problem.pairs, i, j), in_pos)):
                inside = members & (tile != -torch.inf)
                key = -tile if side else tile
                of_rows.merge(side, i, key, inside, j.start)
                if both_sides:
                    of_cols.merge(side, j, key.T, inside.T, i.start)
    for found in (of_rows, of_cols):
        found.values[1].neg_()
    return *of_rows, *of_cols


class _Best(NamedTuple):
    """The largest negatives and the largest of minus the positives of the points of a side, and where they are."""

    values: Tensor  # [2, n]
    where: Tensor

    @classmethod
    def of(cls, like: Tensor, n: int) -> _Best:
        values = like.new_full((2, n), -torch.inf)
        return cls(values, torch.full_like(values, -1, dtype=torch.int64))

    def merge(self, side: int, i: slice, key: Tensor, inside: Tensor, first: int) -> None:
        """Merge a tile of the points i; its candidates begin with ``first``, after those of all tiles before."""
        value = key.masked_fill(~inside, -torch.inf).amax(1)
        equal = (key == value[:, None]) | (key.isnan() & value.isnan()[:, None])
        at = (equal & inside).to(torch.uint8).argmax(1)  # the first; of values torch leaves ties to chance
        old, old_at = self.values[side, i], self.where[side, i]
        better = (~(value <= old) & ~old.isnan()) | (old_at < 0)
        better &= inside.any(1)
        self.values[side, i] = torch.where(better, value, old)
        self.where[side, i] = torch.where(better, at + first, old_at)


def pair_extremes_backward(
    problem: Problem,
    row_index: Tensor,
    col_index: Tensor,
    d_of_rows: list[Tensor | None],
    d_of_cols: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    """Of the chosen pairs alone, from gathered points: no tile but where modifiers take one."""
    (rows, cols), m, n = _sides(problem), len(problem.rows), problem.n_cols()
    d_rows, d_cols = torch.zeros_like(rows.x), torch.zeros_like(cols.x)
    d_scale, d_row_bias, d_col_bias = (rows.x.new_zeros(size) for size in (m, m, n))
    of_modifiers = empty_gradients(problem, Needs(False, False, False, needs.modifiers))
    of_modifiers.modifiers.zero_()
    row_chosen, col_chosen = (torch.zeros(size, dtype=torch.bool, device=rows.x.device) for size in (m + 1, n + 1))
    chosen = (*zip(row_index, d_of_rows, strict=True), *zip(col_index, d_of_cols, strict=True))
    for k, (index, d) in enumerate(chosen):
        if d is None:
            continue
        pairs = ChosenPairs.of(index, by_row=k < len(row_index))
        pairs.mark(row_chosen, col_chosen)
        # Wide before they are gathered: the gradients of a point that many chose add up in that dtype.
        x, y = pairs.of_rows(rows.x), pairs.of_cols(cols.x)
        scale, w = pairs.of_rows(problem.logit_scale.expand(m)), d.masked_fill(pairs.none, 0)
        product = (x * y).sum(1)
        if problem.modifiers and any(needs):
            w = back_at(problem, _biased_at(problem, scale * product, pairs), pairs, w, of_modifiers)
        of_product = (w * scale)[:, None]
        pairs.add_to_rows(d_scale, w * product)
        if needs.rows:
            pairs.add_to_rows(d_rows, of_product * y)
        if needs.cols:
            pairs.add_to_cols(d_cols, of_product * x)
        pairs.add_to_rows(d_row_bias, w)
        pairs.add_to_cols(d_col_bias, w)
    out = empty_gradients(problem, needs)._replace(modifiers=of_modifiers.modifiers)
    # the derivative of a norm that is infinite or NaN is NaN, and what was not chosen has none
    if needs.rows:
        d_z = rows.gradient(d_rows, problem.rows.dtype).masked_fill_(~row_chosen[:m, None], 0)
        out = out._replace(rows=d_z, logit_scale=d_scale)
    if needs.cols and problem.cols is not None:
        d_z = cols.gradient(d_cols, problem.cols.dtype).masked_fill_(~col_chosen[:n, None], 0)
        out = out._replace(cols=d_z)
    if needs.bias:
        out = out._replace(row_bias=d_row_bias, col_bias=d_col_bias)
    return out


def _biased_at(problem: Problem, logits: Tensor, pairs: ChosenPairs) -> Tensor:
    """The logits of some pairs with both biases."""
    if problem.row_bias is not None:
        logits = logits + pairs.of_rows(problem.row_bias)
    return logits if problem.col_bias is None else logits + pairs.of_cols(problem.col_bias)


def _first_largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest of each row, NaN above all, the first among equals: ``topk`` leaves ties to chance."""
    threshold = values.topk(k, dim=1).values[:, -1:]
    at_nan = threshold.isnan()
    above, tied = ~((values <= threshold) | at_nan), values == threshold
    if at_nan.any():
        tied |= at_nan & values.isnan()
    left = k - above.sum(1, keepdim=True)
    positions = (above | (tied & (tied.cumsum(1) <= left))).nonzero()[:, 1].view(-1, k)
    order = values.gather(1, positions).argsort(dim=1, descending=True, stable=True)
    return positions.gather(1, order)


def _factors(problem: Problem, rows: _Side, cols: _Side, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the matrix is the product of, the scale in the left factor."""
    return (rows.x * problem.logit_scale.unsqueeze(-1)).to(dtype), cols.x.to(dtype)


def _strips_backward(problem: Problem, weights: Callable[[_Strip], Tensor], needs: Needs) -> Gradients:
    """Gradients from those of the logits, which ``weights`` makes strip by strip."""
    sides, of_modifiers = _sides(problem), empty_gradients(problem, Needs(False, False, False, needs.modifiers))
    of_modifiers.modifiers.zero_()

    def given() -> Iterator[tuple[slice, Tensor]]:
        for strip in _strips(problem, *sides, taped=any(needs)):
            w = weights(strip)
            if strip.modified is not None and any(needs):
                w = strip.modified.back(w, of_modifiers)
            yield strip.i, w

    return _apply(problem, *sides, given(), needs)._replace(modifiers=of_modifiers.modifiers)


def _apply(
    problem: Problem,
    rows: _Side,
    cols: _Side,
    weights: Iterable[tuple[slice, Tensor]],
    needs: Needs,
    dtype: torch.dtype | None = None,
) -> Gradients:
    """Gradients of sum_ij W_ij l_ij with W held constant, W made strip by strip, and in ``dtype`` if one is given."""
    wide, symmetric = rows.x.dtype, problem.cols is None
    left, right = _factors(problem, rows, cols, dtype or wide)
    d_rows, d_cols = torch.zeros_like(rows.x), torch.zeros_like(cols.x)
    d_row_bias, d_col_bias = rows.x.new_zeros(len(rows.x)), rows.x.new_zeros(len(cols.x))
    for i, w in weights:
        if needs.rows:
            d_rows[i] = _product(w, right)
        if needs.cols or (needs.rows and symmetric):
            d_cols += _product(w.T, left[i])
        if needs.bias:
            d_row_bias[i] = w.sum(1, dtype=wide)
            d_col_bias += w.sum(0, dtype=wide)
    d_scale = (d_rows * rows.x).sum(1)
    d_rows = d_rows * problem.logit_scale.unsqueeze(-1)
    out = empty_gradients(problem, needs)
    if symmetric:
        d_rows, d_row_bias = d_rows + d_cols, d_row_bias + d_col_bias
    if needs.rows:
        out = out._replace(rows=rows.gradient(d_rows, problem.rows.dtype), logit_scale=d_scale)
    if needs.cols and problem.cols is not None:
        out = out._replace(cols=cols.gradient(d_cols, problem.cols.dtype))
    if needs.bias:
        out = out._replace(row_bias=d_row_bias, col_bias=out.col_bias if symmetric else d_col_bias)
    return out
