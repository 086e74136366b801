# SPDX-License-Identifier: Apache-2.0
"""The dense baselines: a spelling that is faster than the formula computes what the formula computes."""

from __future__ import annotations

import pytest
import torch

from pycl.bench.workloads import dense
from pycl.bench.workloads.workload import step_of
from pycl.testing import formulas
from pycl.testing.table import LOSSES


@pytest.mark.parametrize(("name", "n_views"), [(n, v) for n in dense.FASTER for v in (2, 3) if LOSSES[n].takes(v)])
def test_a_faster_spelling_is_the_formula(name: str, n_views: int) -> None:
    loss = LOSSES[name]
    options = {what: value for what, value in loss.scalars.items() if (name, what) != ("clip", "logit_bias")}
    inputs = [x.requires_grad_() for x in loss.make(n_views, 17, 8)]
    found = step_of(lambda *x: dense.fastest(name)(*x, **options), inputs)()
    wanted = step_of(lambda *x: loss.formula(*x, **options).mean(), inputs)()
    for mine, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-14)


def test_a_loss_without_a_faster_spelling_has_its_formula() -> None:
    views = torch.randn(3, 5, 4, dtype=torch.float64)
    found = dense.fastest("mv_info_nce")(views, temperature=0.3)
    torch.testing.assert_close(found, formulas.mv_info_nce(views, 0.3).mean())
