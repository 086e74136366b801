# SPDX-License-Identifier: Apache-2.0
"""CLIP, InfoNCE and NT-Xent summed over prefixes of the features, from one sweep of the engine.

A function here returns what its loss, called with unit prefixes for each length, adds up to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.engine.prefixes import of_one_sweep, prefix_stats
from pycl.engine.reduction import by_view, check_reduction, share_of
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, as_scalar, check_matched, to_logit_scale
from pycl.functional.clip import clip, look_once
from pycl.functional.info_nce import info_nce
from pycl.functional.nt_xent import nt_xent


def clip_over_prefixes(
    image: Tensor,
    text: Tensor,
    logit_scale: Scalar,
    *,
    dims: Sequence[int],
    weights: Sequence[float],
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """:func:`pycl.functional.clip` of the unit prefixes of these lengths, which ascend, each times its weight."""
    check_matched(image=image, text=text)
    look_once(image, text, logit_scale, normalize=True)
    scale = as_scalar("logit_scale", logit_scale)
    return _reduced(_matched(image, text, scale, dims, True, backend), weights, reduction)


def info_nce_over_prefixes(
    query: Tensor,
    key: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float],
    temperature: Scalar = 0.1,
    symmetric: bool = False,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """:func:`pycl.functional.info_nce` without a queue, as :func:`clip_over_prefixes`."""
    scale = to_logit_scale(temperature)
    check_matched(query=query, key=key)
    return _reduced(_matched(query, key, scale, dims, symmetric, backend), weights, reduction)


def nt_xent_over_prefixes(
    views: Views,
    *,
    dims: Sequence[int],
    weights: Sequence[float],
    temperature: Scalar = 0.5,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """:func:`pycl.functional.nt_xent`, as :func:`clip_over_prefixes`."""
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    found = prefix_stats(
        points,
        None,
        scale,
        prefixes=dims,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        backend=backend,
    )
    return by_view(_reduced(found.lse - found.pos_sum / (n_views - 1), weights, reduction), n_views)


def _matched(x: Tensor, y: Tensor, scale: Scalar, dims: Sequence[int], both: bool, backend: str | None) -> Tensor:
    """The terms [K, N] of rows that belong together, of each prefix."""
    sets: dict[str, Any] = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE, "offset": None}
    points = Points(x), Points(y)
    if not both:
        stats = prefix_stats(*points, scale, prefixes=dims, sides="rows", backend=backend, **sets)
        return stats.lse - stats.pos_sum
    of_rows, of_cols = prefix_stats(*points, scale, prefixes=dims, sides="both", backend=backend, **sets)
    return (of_rows.lse + of_cols.lse) / 2 - of_rows.pos_sum


def _reduced(terms: Tensor, weights: Sequence[float], reduction: str) -> Tensor:
    check_reduction(reduction)
    return share_of((terms * terms.new_tensor(weights)[:, None]).sum(0), reduction, None)


class _Form(NamedTuple):
    """What computes the sum of a loss over prefixes, and the arguments of the loss: all of them with their defaults."""

    run: Callable[..., Tensor]
    taken: frozenset[str]
    arguments: dict[str, Any]


def _form(loss: Callable[..., Tensor], run: Callable[..., Tensor]) -> _Form:
    arguments = {name: x.default for name, x in inspect.signature(loss).parameters.items()}
    return _Form(run, frozenset(inspect.signature(run).parameters), arguments)


_LOSSES = (clip, clip_over_prefixes), (info_nce, info_nce_over_prefixes), (nt_xent, nt_xent_over_prefixes)
_FORMS = {loss: _form(loss, run) for loss, run in _LOSSES}


def over_prefixes(
    loss: Callable[..., Tensor], views: Sequence[Any], dims: Sequence[int], weights: Sequence[float]
) -> Tensor | None:
    """``sum_k weights_k loss(unit prefixes of dims_k)`` from one sweep; None where that would not be the faster way.

    That is where the loss is none of the three above or a ``functools.partial`` of one, where an argument says what
    they do not take, such as a group or a queue, and where the backend or the lengths do not allow one sweep.
    """
    options: dict[str, Any] = {}
    while isinstance(loss, partial) and not loss.args:
        options = {**loss.keywords, **options}
        loss = loss.func
    form = _FORMS.get(loss) if inspect.isfunction(loss) else None
    if form is None:
        return None
    given = dict(zip(form.arguments, views, strict=False)) | options
    given.pop("normalize", None)  # unit prefixes are what they are
    given = {name: value for name, value in given.items() if value is not form.arguments.get(name)}
    needed = {name for name, default in form.arguments.items() if default is inspect.Parameter.empty}
    if len(views) > len(form.arguments) or not needed <= given.keys() <= form.taken:
        return None
    of_length: dict[int, float] = {}
    for dim, weight in zip(dims, weights, strict=True):
        of_length[dim] = of_length.get(dim, 0.0) + weight
    ends = sorted(of_length)
    z = _first(views)
    backend = registry.choose(given.get("backend"), z.device.type, z.dtype)
    if not of_one_sweep(ends) or not registry.has(backend, "prefix_stats"):
        return None
    return form.run(**given, dims=ends, weights=[of_length[end] for end in ends])


def _first(views: Any) -> Tensor:
    return views if isinstance(views, Tensor) else _first(views[0])
