# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a group agree on before a loss of several steps, once for all of its steps."""

from __future__ import annotations

from torch import Tensor

from pycl.core.pairs import Points
from pycl.distributed.ranks import Agreement, Group, agree
from pycl.ops.sharded import known_value, wanted


def agree_on(
    group: Group | None, points: Points, logit_scale: float | Tensor, **facts: str | float | bool | None
) -> Agreement | None:
    """For a loss that compares its points with themselves; pass the result on as ``group`` to the engine.

    It knows how many points all ranks have, which a mean over the batch needs. None without a group. Arguments are to
    be checked before: what a rank raises from here on is not told to the others.

    Raises:
        ValueError: on every rank, where one brings another dtype, width, scale, kind of input or other facts.
        RuntimeError: where another rank failed before it came here.
    """
    if group is None:
        return None
    n, d = points.z.shape
    leaves = [("rows", points.z), ("logit_scale", logit_scale)]
    return agree(
        group,
        points.z.device,
        [n, n],
        dtype=str(points.z.dtype),
        d=d,
        logit_scale=known_value(logit_scale),
        gradients=wanted(leaves),
        **facts,
    )
