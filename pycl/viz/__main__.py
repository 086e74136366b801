# SPDX-License-Identifier: Apache-2.0
"""Draws the dashboard of a run: ``python -m pycl.viz LOG.jsonl [-o OUT.png]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pycl.viz.drawing import dashboard


def main(argv: Sequence[str] | None = None) -> int:
    """Draw it and print where; returns 1 where it cannot be drawn, with the reason on one line."""
    parser = argparse.ArgumentParser(prog="python -m pycl.viz", description="Draws the dashboard of a run.")
    parser.add_argument("log", type=Path, metavar="LOG.jsonl", help="what a pycl.viz.RunLog wrote")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.png", help="default: LOG.png")
    options = parser.parse_args(argv)
    out = options.out or options.log.with_suffix(".png")
    if out == options.log:
        parser.error(f"{out} is the log itself: name another file with -o")
    try:
        dashboard(options.log, out)
    except (ImportError, OSError, ValueError, TypeError) as error:
        print(f"pycl.viz: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
