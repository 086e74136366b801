# SPDX-License-Identifier: Apache-2.0
"""What the tests of the examples share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """The example of that name, which may import its neighbours."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module(name)
    sys.path.remove(str(EXAMPLES))


@contextmanager
def one_thread() -> Iterator[None]:
    """At these sizes a second thread only waits, for ever where the machine is busy."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def write_folder(root: Path, *, colour: bool, classes: tuple[str, ...] = ("dark", "light"), each: int = 10) -> Path:
    """Noisy squares whose brightness is their class."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / "train" / name).mkdir(parents=True)
        for i in range(each):
            shape = (20, 12, 3) if colour else (20, 12)
            pixels = rng.integers(0, 100, shape) + 120 * number
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / "train" / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) >= 300
    assert len(np.unique(pixels @ np.array([1, 256, 65536]))) > 20  # colours; of rows it takes seconds
    assert 0.02 < (pixels < 250).any(axis=2).mean() < 0.9  # neither blank nor smeared
