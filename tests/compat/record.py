# SPDX-License-Identifier: Apache-2.0
"""Run every case of the parity tests with the libraries' own losses and write their numbers to ``golden/``."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from parity import GOLDEN, measure  # noqa: E402

from pycl.bench.workloads.baselines import declare_torchvision  # noqa: E402


def record(path: Path) -> None:
    tests = importlib.import_module(path.stem)
    if not hasattr(tests, "CASES"):
        return
    library = importlib.import_module(tests.MODULE)
    cases = {name: measure(case, library) for name, case in tests.CASES.items()}
    version = getattr(tests, "VERSION", None) or importlib.metadata.version(tests.PEER)  # not all are distributions
    written = {"peer": tests.PEER, "version": version, "cases": cases}
    (GOLDEN / f"{tests.PEER}.json").write_text(json.dumps(written, indent=1) + "\n")
    print(f"{tests.PEER} {written['version']}: {len(cases)} cases")


if __name__ == "__main__":
    declare_torchvision()
    wanted = sys.argv[1:]
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if not wanted or path.stem in wanted:
            record(path)
