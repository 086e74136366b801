# SPDX-License-Identifier: Apache-2.0
"""Which entries of Triton's cache processes use, and which of them they have to make.

Every process that has ``$PYCL_NULL_GPU_USED`` adds lines to that file: ``used`` or ``made``, and the entry, the folder
of a kernel or of a compiled module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

VARIABLE = "PYCL_NULL_GPU_USED"


def watch() -> None:
    """From here on, in this process, where there is such a file."""
    if VARIABLE not in os.environ:
        return
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    file, told = Path(os.environ[VARIABLE]), set()

    def tell(what: str, entry: str) -> None:
        if (what, entry) not in told:
            told.add((what, entry))
            with file.open("a") as lines:  # at once: a process may end in any way
                lines.write(f"{what} {entry}\n")

    class Watched(FileCacheManager):  # type: ignore[misc]  # Triton's class has no types
        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override, dump)
            tell("used", key)

        def put(self, data: Any, filename: str, binary: bool = True) -> Any:
            tell("made", self.key)
            return super().put(data, filename, binary)

    knobs.cache.manager_class = Watched
