# SPDX-License-Identifier: Apache-2.0
"""Weights and limits of pairs: what ``modifiers=`` and ``score_mod=`` take, checked and brought into a problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import torch
from torch import Tensor

from pycl.core.modifiers import KINDS, Modifiers, ScoreMod, kinds
from pycl.core.problem import Problem, accumulation_dtype, check_whole
from pycl.core.tracing import observed
from pycl.ops.unit import unit

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


class LabelTable(NamedTuple):
    """Weights of pairs by the labels of their points: adds ``log table[a_i, b_j]`` to a logit.

    An entry of 0 drops its pairs and gets no gradient.

    Args:
        table: [A, B], floating point, at least 0.
        row_labels: integers [m] below A.
        col_labels: integers [n] below B.
    """

    table: Tensor
    row_labels: Tensor
    col_labels: Tensor


class Agreement(NamedTuple):
    """Weights by how many labels two points share: adds ``log weights[number of t with a_ti == b_tj]``; 0 drops.

    Args:
        row_ids: integers [T, m].
        col_ids: integers [T, n].
        weights: [T + 1], floating point, at least 0.
    """

    row_ids: Tensor
    col_ids: Tensor
    weights: Tensor


class PairMLP(NamedTuple):
    """Weights by a network on pairs: adds ``log sigmoid(w2 . tanh(p_i + q_j) + b2)``. No [m, n, h] is stored.

    A first layer on a concatenated pair is ``p = x @ w1[:d] + b1``, ``q = y @ w1[d:]``.

    Args:
        p: [m, h], floating point.
        q: [n, h].
        w2: [h].
        b2: [].
    """

    p: Tensor
    q: Tensor
    w2: Tensor
    b2: Tensor


class Limit(NamedTuple):
    """Drops false negatives: pairs outside of the positive set whose value is greater than a limit of their points.

    The value is the unmodified logit, or with a guide ``<g_i, h_j>`` as given, in the accumulation dtype. All are
    constants.

    Args:
        rows: limits of the anchors [m]; None for none.
        cols: limits of the candidates [n].
        guide: ``(g, h)``, [m, e] and [n, e].
    """

    rows: Tensor | None = None
    cols: Tensor | None = None
    guide: tuple[Tensor, Tensor] | None = None


Modifier: TypeAlias = LabelTable | Agreement | PairMLP | Limit


class Modified(TypedDict, total=False):
    """What the reductions of the engine take by name to change the logits.

    ``l_ij`` is ``logit_scale_i col_scale_j <x_i, y_j>`` and the biases; then come the modifiers, then ``score_mod``.
    A pair whose logit becomes ``-inf`` is dropped: it is in no sum, no count, no maximum and has no gradient.

    Keys:
        modifiers: a sequence of ``LabelTable``, ``Agreement``, ``PairMLP``, ``Limit``; positives are modified, too.
        col_scale: [n], a factor of the candidates.
        score_mod: ``score_mod(logits, rows, cols, *score_mod_args) -> logits`` in plain torch, on tiles [a, b] with the
            points' positions, int64 [a, 1] and [1, b]. With a group positions are those among the points of all ranks:
            a rank's first point comes after all points of the ranks before. It runs on the reference backend, whatever
            the device; autograd differentiates it tile by tile. It may be what ``torch.compile`` made.
        score_mod_args: tensors and others for it. Those of floating point come in the accumulation dtype and get
            gradients; what a function closes over gets none. Ranks of a group bring the same function and arguments.
    """

    modifiers: Sequence[Modifier]
    col_scale: Tensor | None
    score_mod: Callable[..., Tensor] | None
    score_mod_args: tuple[Any, ...]


class _Data(NamedTuple):
    """A modifier in the form of ``Problem``. ``symmetric``: both sides have the same, so the matrix stays symmetric."""

    kind: str
    sizes: tuple[int, int]
    row_codes: Tensor | None = None
    col_codes: Tensor | None = None
    row_values: Tensor | None = None
    col_values: Tensor | None = None
    shared: Tensor | None = None
    symmetric: bool = False


def modified(problem: Problem, **given: Unpack[Modified]) -> Problem:
    """The problem with modifiers and a score_mod."""
    modifiers, score_mod = given.pop("modifiers", ()), given.pop("score_mod", None)
    arguments = given.pop("score_mod_args", ())
    if given:
        raise TypeError(f"unexpected keyword argument {next(iter(given))!r}")
    if isinstance(modifiers, (*_ENCODERS, Tensor)) or not isinstance(modifiers, Sequence):
        raise TypeError(f"modifiers must be a sequence of modifiers of pairs, got {type(modifiers).__name__}")
    data = [_encoded(modifier, problem) for modifier in modifiers]
    scorer = None
    if score_mod is not None:
        scorer, encoded = _scored(score_mod, arguments, problem)
        data.append(encoded)
    elif arguments:
        raise ValueError(f"score_mod_args must be empty without a score_mod, got {len(arguments)}")
    if not data:
        return problem
    if not all(x.symmetric for x in data):
        problem = problem.as_rectangular()
    symmetric = problem.cols is None
    sequence = tuple(number for x in data for number in (KINDS.index(x.kind), *x.sizes))
    if scorer is not None:
        sequence = Modifiers(sequence)
        sequence.score_mod = scorer
    return problem._replace(
        modifiers=sequence,
        row_codes=_joined([x.row_codes for x in data], 1),
        col_codes=None if symmetric else _joined([x.col_codes for x in data], 1),
        row_values=_joined([x.row_values for x in data], 1),
        col_values=None if symmetric else _joined([x.col_values for x in data], 1),
        shared=_joined([x.shared for x in data], 0),
    )


def kinds_of(problem: Problem) -> tuple[str, ...]:
    """The kinds of modifiers that a backend has to have."""
    return kinds(problem.modifiers) if problem.modifiers else ()


def with_roles_apart(problem: Problem) -> Problem:
    """For results of columns, and for a group: there a symmetric problem serves both roles of a pair at once.

    A label table's entries [a, b] and [b, a] have the same value, but gradients of their own.
    """
    learned = problem.shared is not None and problem.shared.requires_grad
    return problem.as_rectangular() if learned and "label_table" in kinds(problem.modifiers) else problem


def scaled(z: Tensor, normalize: bool, factor: Tensor | None) -> Tensor:
    """Embeddings as the product sees them, wide, and times a factor each."""
    z = z.to(accumulation_dtype(z.dtype))
    z = unit(z) if normalize else z
    if factor is None:
        return z
    factor = _floats("col_scale", factor, z, z.shape[:1], "[n], one per candidate")
    return z * factor[:, None]


def _joined(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    present = [x for x in parts if x is not None]
    if not present:
        return None
    return present[0].contiguous() if len(present) == 1 else torch.cat(present, dim)


def _encoded(modifier: Modifier, problem: Problem) -> _Data:
    for kind, encode in _ENCODERS.items():
        if isinstance(modifier, kind):
            return encode(modifier, problem)
    known = ", ".join(kind.__name__ for kind in _ENCODERS)
    raise TypeError(f"modifiers must be made of {known}, got {type(modifier).__name__}")


def _label_table(given: LabelTable, problem: Problem) -> _Data:
    table = _weights("LabelTable.table", given.table, problem, 2, "[A, B]")
    codes = []
    for name, n, size in (("row_labels", len(problem.rows), 0), ("col_labels", problem.n_cols(), 1)):
        labels = check_integers(f"LabelTable.{name}", getattr(given, name), problem.rows, (n,), f"[{n}], one per point")
        check_below(f"LabelTable.{name}", labels, table.shape[size], "the table's size")
        codes.append(labels[:, None])
    known = table.device.type == "cpu" and not observed()
    symmetric = known and given.row_labels is given.col_labels and torch.equal(table, table.T)
    sizes = table.shape[0], table.shape[1]
    return _Data("label_table", sizes, codes[0], codes[1], shared=_log(table).reshape(-1), symmetric=symmetric)


def _agreement(given: Agreement, problem: Problem) -> _Data:
    weights = _weights("Agreement.weights", given.weights, problem, 1, "[T + 1]")
    t = weights.shape[0] - 1
    codes = []
    for name, n in (("row_ids", len(problem.rows)), ("col_ids", problem.n_cols())):
        shape = f"[{t}, {n}], as many labels of each point as there are weights but one"
        codes.append(check_integers(f"Agreement.{name}", getattr(given, name), problem.rows, (t, n), shape).T)
    symmetric = given.row_ids is given.col_ids
    return _Data("agreement", (t, 0), codes[0], codes[1], shared=_log(weights), symmetric=symmetric)


def _pair_mlp(given: PairMLP, problem: Problem) -> _Data:
    h = given.w2.numel() if isinstance(given.w2, Tensor) else 0
    w2 = _floats("PairMLP.w2", given.w2, problem.rows, (max(h, 1),), "[h] with h >= 1")
    p, q = (
        _floats(f"PairMLP.{name}", getattr(given, name), problem.rows, (n, h), f"[{n}, {h}], h as w2")
        for name, n in (("p", len(problem.rows)), ("q", problem.n_cols()))
    )
    b2 = _floats("PairMLP.b2", given.b2, problem.rows, (), "[]")
    shared = torch.cat([w2, b2.reshape(1)])
    symmetric = given.p is given.q
    return _Data("pair_mlp", (h, 0), row_values=p, col_values=q, shared=shared, symmetric=symmetric)


def _limit(given: Limit, problem: Problem) -> _Data:
    like, sides = problem.rows, (("rows", len(problem.rows)), ("cols", problem.n_cols()))
    values = []
    for name, n in sides:
        limits = getattr(given, name)
        if limits is None:
            values.append([like.new_full((n, 1), torch.inf, dtype=accumulation_dtype(like.dtype))])
        else:
            values.append([_floats(f"Limit.{name}", limits, like, (n,), f"[{n}], one per point")[:, None]])
    same = given.rows is given.cols
    e = 0
    if given.guide is not None:
        if not isinstance(given.guide, (tuple, list)) or len(given.guide) != 2:
            raise TypeError("Limit.guide must be a pair of tensors, the guide's embeddings of rows and of columns")
        same = same and given.guide[0] is given.guide[1]
        e = given.guide[0].shape[-1] if isinstance(given.guide[0], Tensor) and given.guide[0].dim() else 0
        for (name, n), side, guide in zip(sides, values, given.guide, strict=True):
            shape = f"[{n}, e], one row per point of {name}, with one e >= 1"
            side.append(_floats("Limit.guide", guide, like, (n, max(e, 1)), shape))
    rows, cols = (torch.cat(side, 1).detach() for side in values)
    return _Data("limit", (e, 0), row_values=rows, col_values=cols, symmetric=same)


_ENCODERS: dict[type, Callable[..., _Data]] = {
    LabelTable: _label_table,
    Agreement: _agreement,
    PairMLP: _pair_mlp,
    Limit: _limit,
}


def _scored(function: Callable[..., Tensor], arguments: Sequence[Any], problem: Problem) -> tuple[ScoreMod, _Data]:
    if not callable(function):
        raise TypeError(f"score_mod must be a function, got {type(function).__name__}")
    if not isinstance(arguments, (tuple, list)):
        raise TypeError(f"score_mod_args must be a tuple, got {type(arguments).__name__}")
    dtype, kept, floats = accumulation_dtype(problem.rows.dtype), [], []
    for x in arguments:
        if isinstance(x, Tensor) and x.is_floating_point():
            floats.append(_floats("score_mod_args", x, problem.rows, x.shape, "any").to(dtype).reshape(-1))
            kept.append(x.shape)
        else:
            kept.append(x)
    scorer, shared = ScoreMod(function, tuple(kept)), _joined(floats, 0)
    sizes = scorer.handle, 0 if shared is None else shared.numel()
    # ranks of a group move them on, and send those of their columns
    rows, cols = (torch.arange(n, device=problem.rows.device)[:, None] for n in (len(problem.rows), problem.n_cols()))
    return scorer, _Data("score_mod", sizes, rows, cols, shared=shared)


def _log(weights: Tensor) -> Tensor:
    zero = weights == 0
    return weights.masked_fill(zero, 1).log().masked_fill(zero, -torch.inf)


def _weights(name: str, x: Tensor, problem: Problem, dim: int, shape: str) -> Tensor:
    like = x.shape if isinstance(x, Tensor) and x.dim() == dim and x.numel() else (1,) * dim
    x = _floats(name, x, problem.rows, like, f"{shape} and not be empty")
    check_holds(((x >= 0) & (x < torch.inf)).all(), f"{name} must be finite and at least 0", x)
    return x


def _floats(name: str, x: object, like: Tensor, shape: Sequence[int], wanted: str) -> Tensor:
    """A tensor of floating point in the accumulation dtype of ``like``."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    _check_place(name, x, like, shape, wanted)
    return x.to(accumulation_dtype(like.dtype))


def check_integers(name: str, x: object, like: Tensor, shape: Sequence[int], wanted: str) -> Tensor:
    """Integers as int64, of a shape and on the device of ``like``; raises where they do not fit."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    _check_place(name, x, like, shape, wanted)
    return x.to(torch.int64)


def check_below(name: str, x: Tensor, size: int, what: str) -> None:
    """Raise unless all are at least 0 and less than ``size``."""
    inside = ((x >= 0) & (x < size)).all()
    check_holds(inside, f"{name} must be at least 0 and less than {size}, {what}", x)


def _check_place(name: str, x: Tensor, like: Tensor, shape: Sequence[int], wanted: str) -> None:
    check_whole(name, x)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the points are, got {x.device}")


def check_holds(holds: Tensor, message: str, given: Tensor) -> None:
    """Raise unless a tensor of one bool holds. A device is not waited for: there the error comes with its next one."""
    if observed():
        return
    if holds.device.type != "cpu":
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(f"{message}, got values from {given.min().item()} to {given.max().item()}")
