# SPDX-License-Identifier: Apache-2.0
"""Run the cases of the parity tests with the libraries' own losses and write their numbers to ``golden/``.

``python tests/compat/record.py [NAME ...]``: test modules with or without ``test_`` in front, all by default.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from parity import GOLDEN, measure  # noqa: E402

from pycl.bench.workloads.baselines import declare_torchvision  # noqa: E402

PREFIX = "test_"


def with_peers() -> list[str]:
    """The test modules that stand for a library, without ``test_``."""
    paths = sorted(Path(__file__).parent.glob(f"{PREFIX}*.py"))
    return [path.stem.removeprefix(PREFIX) for path in paths if re.search(r"^PEER\b", path.read_text(), re.MULTILINE)]


def chosen(names: Sequence[str]) -> list[str]:
    """The modules of these names, or all; ends the program where one stands for no library."""
    known = with_peers()
    wanted = [name.removeprefix(PREFIX) for name in names]
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"record.py: no library is behind {', '.join(unknown)}; there are {', '.join(known)}")
    return wanted or known


def record(name: str) -> None:
    tests = importlib.import_module(PREFIX + name)
    library = importlib.import_module(tests.MODULE)
    cases = {name: measure(case, library) for name, case in tests.CASES.items()}
    version = getattr(tests, "VERSION", None) or importlib.metadata.version(tests.PEER)  # not all are distributions
    written = {"peer": tests.PEER, "version": version, "cases": cases}
    (GOLDEN / f"{tests.PEER}.json").write_text(json.dumps(written, indent=1) + "\n")
    print(f"{tests.PEER} {written['version']}: {len(cases)} cases")


if __name__ == "__main__":
    names = chosen(sys.argv[1:])
    declare_torchvision()
    for name in names:
        record(name)
