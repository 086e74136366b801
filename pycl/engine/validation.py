# SPDX-License-Identifier: Apache-2.0
"""The one place where the engine's arguments are checked and brought into the form the operators take."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.core.problem import FLOATS, MAX_SLOPES, Problem, accumulation_dtype, check_whole
from pycl.distributed.ranks import Group, instances
from pycl.engine.modifiers import Modified, modified, scaled

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

# of points without labels, which are all of one view
POSITIVE, NEGATIVE = int(Pairs.POS_SAME_VIEW), int(Pairs.NEG_SAME_VIEW)


def problem_of(
    rows: Points,
    cols: Points | None,
    logit_scale: float | Tensor,
    sets: dict[str, Pairs],
    row_bias: Tensor | None,
    col_bias: Tensor | None,
    offset: int | None,
    normalize: bool,
    group: Group | None = None,
    **changes: Unpack[Modified],
) -> Problem:
    """Validate everything once and bring it into the form the operators take.

    Points without ids are numbered; those of a ``group`` get numbers that no two ranks have in common. Outside a
    group, a problem where no side has labels has none: kernels number points by themselves.
    """
    _check_points("rows", rows)
    if cols is not None:
        _check_points("cols", cols)
    if changes and (col_scale := changes.pop("col_scale", None)) is not None:
        rows, cols = _scaled(rows, cols, col_scale, normalize)
        normalize = False
    for name, pairs in sets.items():
        if not isinstance(pairs, Pairs):
            raise TypeError(f"{name} must be a union of pycl.Pairs, got {_described(pairs)}")
    first, pos = map(int, sets.values())
    z = embeddings_of("rows", rows.z)
    unlabelled = rows.ids is None and rows.views is None
    unlabelled = unlabelled and (cols is None or (cols.ids is None and cols.views is None))
    bare = unlabelled and group is None and (cols is None or cols.n_views == rows.n_views)
    if rows.n_views > 1 and z.device.type != "cpu":
        bare = False  # made once here, for a forward and a backward that would each make them
    n_views = rows.n_views if bare else 1
    row_ids, row_views = (None, None) if bare else _integers("rows", rows, group)
    if cols is None:
        if offset != 0:
            raise ValueError(f"offset must be 0 where cols is None and the points meet themselves, got {offset}")
        cols_z, col_ids, col_views = z, row_ids, row_views
    else:
        cols_z = embeddings_of("cols", cols.z)
        of_one_view = unlabelled and rows.n_views == cols.n_views == 1
        if of_one_view and (offset == 0 or not (first | pos) & POSITIVE):
            _check_numbering(sets, rows, cols, offset)
        col_ids, col_views = (None, None) if bare else _integers("cols", cols, group)
        if cols_z.shape[1] != z.shape[1]:
            raise ValueError(f"rows and cols must have one feature size, got {z.shape[1]} and {cols_z.shape[1]}")
        if cols_z.device != z.device:
            raise ValueError(f"rows and cols must be on one device, got {z.device} and {cols_z.device}")
        if z.dtype != cols_z.dtype:
            common = torch.promote_types(z.dtype, cols_z.dtype)
            z, cols_z = z.to(common), cols_z.to(common)
    dtype = accumulation_dtype(z.dtype)
    scale = scale_of(logit_scale, z, dtype, alone=group is None)
    symmetric = cols is None and scale.dim() == 0 and row_bias is col_bias
    row_bias, col_bias = _vector("row_bias", row_bias, z, dtype), _vector("col_bias", col_bias, cols_z, dtype)
    rest = first, pos, 0 if symmetric else offset, normalize, n_views
    if symmetric:
        problem = Problem(z, None, row_ids, row_views, None, None, scale, row_bias, None, *rest)
    else:
        problem = Problem(z, cols_z, row_ids, row_views, col_ids, col_views, scale, row_bias, col_bias, *rest)
    return modified(problem, **changes) if changes else problem


def _scaled(rows: Points, cols: Points | None, col_scale: Tensor, normalize: bool) -> tuple[Points, Points]:
    """Points whose product has the factors of the columns."""
    z = embeddings_of("rows", rows.z)
    given, cols_z = (rows, z) if cols is None else (cols, embeddings_of("cols", cols.z))
    return rows._replace(z=scaled(z, normalize, None)), given._replace(z=scaled(cols_z, normalize, col_scale))


def _check_points(name: str, points: object) -> None:
    if not isinstance(points, Points):
        way_out = f": make it pycl.Points({name})" if isinstance(points, Tensor) else ""
        raise TypeError(f"{name} must be pycl.Points, got {type(points).__name__}{way_out}")
    if points.n_views != 1:
        _check_n_views(name, points)


def _check_n_views(name: str, points: Points) -> None:
    if points.ids is not None or points.views is not None:
        raise ValueError(f"{name}.n_views is for points without ids and views, got {points.n_views} beside them")
    n = points.z.shape[0]
    if n % check_count(f"{name}.n_views", points.n_views):
        raise ValueError(f"{name}.n_views must divide the number of points, got {points.n_views} of {n}")


def _described(pairs: object) -> str:
    if not isinstance(pairs, Tensor):
        return repr(pairs)
    shape = tuple(pairs.shape)
    return f"a tensor {shape}: ids and views say which pairs count; a mask of pairs is for what pair_logits returns"


def _check_numbering(sets: dict[str, Pairs], rows: Points, cols: Points, offset: int | None) -> None:
    """Points without ids are numbered, so row i and column i are of one instance. Raise where nobody can mean that."""
    values = {name: int(pairs) for name, pairs in sets.items()}
    positive = any(pairs & POSITIVE for pairs in values.values())
    for name, pairs in values.items():
        if bool(pairs & POSITIVE) == bool(pairs & NEGATIVE):
            continue  # the numbers do not matter
        if not positive and rows.z.shape[0] != cols.z.shape[0]:
            raise ValueError(
                f"{name} {sets[name]!r} leaves candidate i out for anchor i, as points without ids are numbered: give "
                "ids, or take Pairs.OTHERS where no candidate is of an anchor's instance"
            )
        if pairs & POSITIVE and offset == 0 and not pairs & int(Pairs.SELF):
            raise ValueError(
                f"{name} {sets[name]!r} has no pair: without ids only row i and column i are of one instance, and with "
                "offset=0 they are one point, Pairs.SELF. Of two different sets say offset=None"
            )


def one_set(pairs: Pairs) -> dict[str, Pairs]:
    """The sets of a problem that has one."""
    return {"pairs": pairs, "positives": Pairs.NONE}


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in (known := tuple(choices)):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_integer(name: str, value: int) -> int:
    """An int, also from a number of NumPy, or what stands for one while a graph is traced."""
    if isinstance(value, torch.SymInt) or type(value) is int:
        return value
    try:
        if isinstance(value, (bool, np.bool_, Tensor)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None


def check_count(name: str, count: int) -> int:
    """An integer of at least 1."""
    count = check_integer(name, count)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def check_slopes(slopes: Sequence[float] | None, dtype: torch.dtype) -> tuple[float, ...]:
    """Positive numbers that the dtype has with all digits, one at least; none where None was given."""
    if slopes is None:
        return ()
    if not isinstance(slopes, Sequence) or isinstance(slopes, (str, bytes)):
        raise TypeError(f"slopes must be None or a sequence of numbers, got {type(slopes).__name__}")
    if not 1 <= len(slopes) <= MAX_SLOPES:
        raise ValueError(f"slopes must be 1 to {MAX_SLOPES} numbers, got {len(slopes)}")
    range_of = torch.finfo(dtype)
    for slope in slopes:
        if isinstance(slope, (bool, np.bool_)) or not isinstance(slope, (int, float, np.integer, np.floating)):
            raise TypeError(f"slopes must be numbers, which have no gradient, got {type(slope).__name__}")
        if not range_of.tiny <= slope <= range_of.max:
            raise ValueError(f"slopes must be positive and finite in {dtype}, got {slope}")
    return tuple(float(slope) for slope in slopes)


def check_prefixes(prefixes: Sequence[int], d: int) -> tuple[int, ...]:
    """Ascending lengths of prefixes of d features, one at least."""
    if not isinstance(prefixes, Sequence) or isinstance(prefixes, (str, bytes)):
        raise TypeError(f"prefixes must be a sequence of integers, got {type(prefixes).__name__}")
    ends = tuple(check_count("prefixes", end) for end in prefixes)
    if not ends or any(a >= b for a, b in pairwise(ends)) or ends[-1] > d:
        raise ValueError(f"prefixes must be ascending lengths, one at least, each at most {d}, got {list(ends)}")
    return ends


def check_k(k: int, n: int) -> int:
    """How many of n candidates are wanted: an integer between 1 and n."""
    k = check_integer("k", k)
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of candidates, {n}, got {k}")
    return k


def check_values(values: Tensor, problem: Problem) -> None:
    """Raise unless the values can be averaged over the candidates."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        given = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"values must be a floating-point tensor, got {given}")
    n = problem.n_cols()
    if values.dim() != 2 or values.shape[0] != n or values.shape[1] == 0:
        raise ValueError(
            f"values must have shape [{n}, dv] with dv >= 1, one row per candidate, got {tuple(values.shape)}"
        )
    if values.device != problem.rows.device:
        raise ValueError(f"values must be on {problem.rows.device} as the points are, got {values.device}")


def check_positive_weight(weight: Tensor | None, problem: Problem) -> Tensor | None:
    """One constant number of each row, in the accumulation dtype."""
    weight = _vector("positive_weight", weight, problem.rows, accumulation_dtype(problem.rows.dtype))
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("positive_weight is constant, and must not require a gradient: pass positive_weight.detach()")
    return weight


def embeddings_of(name: str, z: Tensor) -> Tensor:
    if not isinstance(z, Tensor) or z.dtype not in FLOATS:
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{name}.z must be a floating-point tensor ({', '.join(map(str, FLOATS))}), got {got}")
    if type(z) is not Tensor:
        check_whole(f"{name}.z", z)
    if z.dim() != 2 or 0 in z.shape:
        raise ValueError(f"{name}.z must have shape [n, d] with n >= 1 and d >= 1, got {tuple(z.shape)}")
    return z


def _integers(name: str, points: Points, group: Group | None) -> tuple[Tensor, Tensor]:
    n, device = points.z.shape[0], points.z.device
    if points.ids is None:
        ids = instances(n // points.n_views, device, group).repeat(points.n_views)
    else:
        ids = _labels(f"{name}.ids", points.ids, points.z)
    if points.views is None:
        one = points.n_views == 1  # saves two operators, 12 % of a step of 64 points
        return ids, torch.zeros_like(ids) if one else torch.arange(n, device=device) // (n // points.n_views)
    return ids, _labels(f"{name}.views", points.views, points.z)


def _labels(name: str, values: Tensor, z: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be an integer tensor, got {type(values).__name__}")
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.shape != z.shape[:1]:
        raise ValueError(f"{name} must have shape [{len(z)}], one per point, got {tuple(values.shape)}")
    if values.device != z.device:
        raise ValueError(f"{name} must be on {z.device} as {name.split('.')[0]}.z is, got {values.device}")
    return values.to(torch.int64).contiguous()


def scale_of(logit_scale: float | Tensor, z: Tensor, dtype: torch.dtype, alone: bool) -> Tensor:
    if not isinstance(logit_scale, Tensor):
        return torch.full((), float(logit_scale), dtype=dtype, device=z.device)
    if logit_scale.numel() == 1 and (alone or logit_scale.shape != z.shape[:1]):  # other ranks may have many rows
        logit_scale = logit_scale.reshape(()) if logit_scale.dim() else logit_scale  # a node of the graph takes 15 us
    elif logit_scale.shape != z.shape[:1]:
        raise ValueError(f"logit_scale must be a number or have shape [] or [{len(z)}], got {tuple(logit_scale.shape)}")
    if logit_scale.device != z.device and logit_scale.dim() > 0:
        raise ValueError(f"logit_scale must be on {z.device} as rows.z is, got {logit_scale.device}")
    return logit_scale.to(z.device, dtype).contiguous()


def _vector(name: str, x: Tensor | None, z: Tensor, dtype: torch.dtype) -> Tensor | None:
    if x is None:
        return None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.shape != z.shape[:1]:
        raise ValueError(f"{name} must have shape [{len(z)}], got {tuple(x.shape)}")
    if x.device != z.device:
        raise ValueError(f"{name} must be on {z.device} as the embeddings are, got {x.device}")
    return x.to(dtype).contiguous()
