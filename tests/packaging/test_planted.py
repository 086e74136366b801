# SPDX-License-Identifier: Apache-2.0
"""The faults that ``make planted-faults`` plants are still faults of these sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted.faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").exists(), reason="faults are texts of the sources: runs in a checkout"
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_the_text_of_a_fault_is_there_once(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.new != fault.old
    assert all(len([*(ROOT / "tests").glob(f"*/{name}.py")]) == 1 for name in fault.tests.split())


def test_twenty_faults_in_every_part() -> None:
    assert len({fault.what for fault in FAULTS}) == len(FAULTS) >= 20
    assert {fault.file.partition("/")[0] for fault in FAULTS} == {"triton_kernels", "pycl", "csrc"}
