# SPDX-License-Identifier: Apache-2.0
"""Whether a backward computes the gradients that are wanted, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from pycl.backends import registry
from pycl.core.problem import Gradients, Needs


def check_only_wanted(
    operator: str, wanted: str, leaves: dict[str, Tensor], value: Callable[[], Tensor], backend: str
) -> None:
    """The backward of ``value`` asks a backend's ``operator`` for what the one leaf ``wanted`` needs, and gets that."""
    module = registry.load(backend)
    seen: list[tuple[Needs, Gradients]] = []
    original = getattr(module, operator)

    def spy(*arguments: Any) -> Gradients:
        seen.append((arguments[-1], original(*arguments)))
        return seen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, operator, spy)
        value().backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [wanted]
    ((needs, found),) = seen
    assert needs == Needs(rows=wanted in ("x", "scale"), cols=wanted == "y", bias="bias" in wanted)
    assert (found.rows.numel() > 0) == (found.logit_scale.numel() > 0) == needs.rows
    assert (found.cols.numel() > 0) == needs.cols
    assert (found.row_bias.numel() > 0) == (found.col_bias.numel() > 0) == needs.bias
