# SPDX-License-Identifier: Apache-2.0
"""Drop-ins on half types against themselves in float64: the parity tests there allow what the libraries round."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import test_info_nce
import test_lightly
import test_solo
import test_supcontrast
import torch
from parity import Case, assert_same, measure, peer

MODULES = (test_lightly, test_info_nce, test_solo, test_supcontrast)
ROUNDING = {torch.bfloat16: 8e-3, torch.float16: 1e-3}  # two of the dtype; measured: at most 5.2e-3 and 2.7e-4


def cases() -> list[Any]:
    found = [(m, name, case) for m in MODULES for name, case in m.CASES.items() if case.inputs[0].dtype in ROUNDING]
    return [pytest.param(m, case, id=f"{m.PEER} {name}") for m, name, case in found]


@pytest.mark.parametrize(("module", "case"), cases())
def test_half_inputs_are_summed_in_float32(module: ModuleType, case: Case) -> None:
    if "library" in case.tags:
        peer(module.MODULE)
    ours = module.ours
    wide = replace(case, inputs=tuple(x.double() if x.is_floating_point() else x for x in case.inputs))
    assert_same(measure(case, ours), measure(wide, ours), ROUNDING[case.inputs[0].dtype])
