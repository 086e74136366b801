# SPDX-License-Identifier: Apache-2.0
"""From the views of a batch to points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycl.core.notices import warn_once
from pycl.core.pairs import Points
from pycl.core.problem import check_whole

MANY_VIEWS = 16  # where there are fewer instances than that many views, [N, V, d] may have been meant


def stack_views(views: Tensor | Sequence[Tensor], labels: Tensor | None = None) -> tuple[Points, int]:
    """Stack V views of N instances into ``V * N`` points, views-major; returns the points and V.

    Args:
        views: ``[V, N, d]``, or a sequence of V tensors ``[N, d]``; V >= 2, or with labels V >= 1.
        labels: int ``[N]``, used as ids instead of the instance numbers; they give positives within one view.

    Raises:
        TypeError: a view is not a floating-point tensor, or the labels are not integers.
        ValueError: too few views, an empty batch, views of differing shape, dtype or device, or
            labels of the wrong length or on another device.
    """
    if isinstance(views, Tensor):
        if views.dim() != 3:
            way_out = ": of two halves make views.view(2, -1, d)" if views.dim() == 2 else ""
            raise ValueError(
                f"views must be a [V, N, d] tensor or V tensors [N, d], got shape {tuple(views.shape)}{way_out}"
            )
        check_whole("views", views)
        z, n_views, n = views.flatten(0, 1), views.shape[0], views.shape[1]
        _warn_of_views_last(n_views, n)
    else:
        views = tuple(views)
        if not all(isinstance(v, Tensor) for v in views):
            raise TypeError(f"views must be tensors, got {[type(v).__name__ for v in views]}")
        for k, view in enumerate(views):
            check_whole(f"views[{k}]", view)
        shapes = [tuple(v.shape) for v in views]
        if any(v.dim() != 2 for v in views) or any(v.shape != views[0].shape for v in views):
            labelled = bool(views) and views[-1].dim() == 1 and not views[-1].is_floating_point()
            way_out = "; labels are for sup_con and SupConLoss" if labelled else ""
            raise ValueError(f"every view must have one and the same shape [N, d], got {shapes}{way_out}")
        if len({v.device for v in views}) > 1:
            raise ValueError(f"every view must be on one device, got {[str(v.device) for v in views]}")
        if len({v.dtype for v in views}) > 1:
            raise ValueError(f"every view must have one dtype, got {[str(v.dtype) for v in views]}")
        n_views, n = len(views), shapes[0][0] if views else 0
        z = torch.cat(views) if n_views else torch.empty(0, 0)
    least = 2 if labels is None else 1
    if n_views < least:
        raise ValueError(f"views must hold at least two views (one where there are labels), got {n_views}")
    if not z.is_floating_point():
        raise TypeError(f"views must be floating point, got {z.dtype}")
    if n == 0:
        raise ValueError(f"views must hold at least one instance, got N = 0 (V = {n_views})")
    if isinstance(labels, Tensor) and labels.shape == (n_views,) != (n,):
        raise ValueError(
            f"labels must have shape [{n}], one per instance, got ({n_views},), one per view: views come first, "
            "so of [N, V, d] make views.transpose(0, 1)"
        )
    if labels is None:
        return Points(z, n_views=n_views), n_views
    ids = check_labels(labels, n, z)
    return Points(z, ids.expand(n_views, n).reshape(-1), torch.arange(n_views * n, device=z.device) // n), n_views


def _warn_of_views_last(n_views: int, n: int) -> None:
    if not torch.compiler.is_compiling() and n_views >= MANY_VIEWS and n_views > n:
        warn_once(
            "views last",
            f"views [{n_views}, {n}, d] are {n_views} views of {n} instances: of [N, V, d], as other libraries have "
            "them, make views.transpose(0, 1)",
        )


def check_labels(labels: Tensor, n: int, like: Tensor, name: str = "labels") -> Tensor:
    """Labels as int64 ids for n instances on the device of ``like``; raises where they do not fit."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be an integer tensor, got {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != (n,):
        raise ValueError(f"{name} must have shape [{n}], one per instance, got {tuple(labels.shape)}")
    if labels.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the embeddings are, got {labels.device}")
    return labels.to(torch.int64)


def occurrences(of: Tensor, among: Tensor) -> Tensor:
    """How many of the integers ``among`` are equal to each of those ``of``."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, of, right=True) - torch.searchsorted(ordered, of)
