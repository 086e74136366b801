# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml beside other versions of pytorch-metric-learning, and the modules of the library that it has."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from parity import peer

import pycl.compat.pml

NAME = "pytorch_metric_learning"


def stub(folder: Path, version: str, installed: bool) -> None:
    """Another release: no module of it can be imported, as where it needs another Python or torch."""
    (folder / NAME).mkdir()
    text = f"__version__ = {version!r}\n"
    (folder / NAME / "__init__.py").write_text("raise SyntaxError('not for this Python')\n" if installed else text)
    if installed:
        meta = folder / f"{NAME}-{version}.dist-info"
        meta.mkdir()
        text = f"Metadata-Version: 2.1\nName: pytorch-metric-learning\nVersion: {version}\n"
        (meta / "METADATA").write_text(text)


def imported(folder: Path, statement: str, *, without_metadata: bool = False) -> subprocess.CompletedProcess[str]:
    hide = "import importlib.metadata as m\ndef version(_): raise m.PackageNotFoundError\nm.version = version\n"
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{hide if without_metadata else ''}{statement}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["3.0.0", "3.1.0.dev2", "1.7.3"])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("statement", ["from pycl.compat.pml import losses", "import pycl.compat.pml.losses"])
def test_other_versions_are_refused(version: str, installed: bool, statement: str, tmp_path: Path) -> None:
    stub(tmp_path, version, installed)
    found = imported(tmp_path, statement, without_metadata=not installed)
    assert found.returncode == 1
    *_, said = found.stderr.strip().splitlines()
    assert said.startswith(
        f"ImportError: pycl.compat.pml stands for pytorch-metric-learning 2.x, installed is {version}, "
    )
    assert "pip install" in said


def test_every_module_of_the_library() -> None:
    library = peer(NAME)
    names = [m.name for m in pkgutil.iter_modules(library.__path__)]
    assert {"losses", "miners", "distances", "reducers", "regularizers", "testers", "trainers", "utils"} <= set(names)
    assert set(names) <= set(dir(pycl.compat.pml))
    for name in ("miners", "distances", "reducers", "regularizers", "utils"):
        assert getattr(pycl.compat.pml, name) is importlib.import_module(f"{NAME}.{name}")
    scope: dict[str, object] = {}
    exec("from pycl.compat.pml import distances, losses, miners, reducers", scope)
    assert scope["losses"] is pycl.compat.pml.losses
    with pytest.raises(AttributeError, match="no attribute 'minors'"):
        _ = pycl.compat.pml.minors
