# SPDX-License-Identifier: Apache-2.0
"""Run a program for a GPU on the one that is not there: ``python -m null_gpu MODULE ARGUMENT ...``."""

from __future__ import annotations

import importlib
import runpy
import sys


def main() -> None:
    sys.argv = sys.argv[1:]
    if not sys.argv:
        sys.exit("usage: python -m null_gpu MODULE ARGUMENT ...")
    try:
        importlib.import_module("null_gpu.start")
    except RuntimeError as error:
        sys.exit(f"null_gpu: {error}")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
