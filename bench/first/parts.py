# SPDX-License-Identifier: Apache-2.0
"""What is carried besides kernels: pycl's compiled parts, a newer ptxas, other people's losses."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from . import pack
from .jobs import Workshop
from .suitable import nvcc

PTXAS_VERSION = "13.5.37"
PTXAS_WHEEL, PTXAS_FILE = f"nvidia-cuda-nvcc=={PTXAS_VERSION}", "nvidia/cu13/bin/ptxas"
PEERS = (
    *("inf-cl==1.2.1", "cut-cross-entropy==25.1.1", "liger-kernel==0.8.5", "memeff==0.3.1", "siglip-kernel==0.1.2"),
    *("open_clip_torch==3.3.0", "ftfy==6.3.1", "wcwidth==0.9.4", "lightly==1.6.0", "lightly_utils==0.0.2"),
    *("pytorch-metric-learning==2.9.0", "info-nce-pytorch==0.1.4"),
)
BUILT_FROM = ("csrc/**/*", "CMakeLists.txt", "pyproject.toml", "pycl/__init__.py")


def download(shop: Workshop, target: Path) -> list[str]:
    """Wheels of peers into the pack and the workshop's site, and the other ptxas; lines where that fails."""
    return _peers(shop, target) + _ptxas(shop, target)


def _peers(shop: Workshop, target: Path) -> list[str]:
    folder, state = shop.folder / "wheels", pack.digest([], *PEERS)
    if changed(shop, folder, state):
        empty(folder)
        if reason := _pip("download", "--no-deps", "--only-binary=:all:", "-d", str(folder), *PEERS):
            return [f"no wheels of peers are carried, the rest runs: {reason}"]
        settle(shop, folder, state)
    for wheel in target.glob("*.whl"):
        if not (folder / wheel.name).exists():
            wheel.unlink()
    for wheel in folder.glob("*.whl"):
        shutil.copyfile(wheel, target / wheel.name)
        with zipfile.ZipFile(wheel) as files:
            files.extractall(shop.site)
    return []


def _ptxas(shop: Workshop, target: Path) -> list[str]:
    if changed(shop, target / pack.PTXAS, PTXAS_WHEEL) or not shop.ptxas.exists():
        folder = shop.folder / "nvcc"
        empty(folder)
        if reason := _pip("download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PTXAS_WHEEL):
            return [f"no ptxas {PTXAS_VERSION} is carried, cases that fail are tried without: {reason}"]
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as files, shop.ptxas.open("wb") as tool:
            tool.write(files.read(PTXAS_FILE))
        shop.ptxas.chmod(0o755)
        empty(folder)
        pack.compress(shop.ptxas, target / pack.PTXAS)
        settle(shop, target / pack.PTXAS, PTXAS_WHEEL)
    return []


def package(shop: Workshop, target: Path) -> list[str]:
    """The compiled parts and what says where they are: the checkout there has the rest."""
    files = [file for pattern in BUILT_FROM for file in shop.root.glob(pattern) if file.is_file()]
    archive, folder = target / pack.PACKAGE, shop.folder / "package"
    state = pack.digest(files, sys.version, nvcc() or "no nvcc")
    if not changed(shop, archive, state):
        return []
    empty(folder)
    options = "--no-deps", "--no-build-isolation", "--config-settings=cmake.define.PYCL_CPU=ON"
    reason = _pip("install", *options, "--target", str(folder), str(shop.root))
    if reason:
        return [f"the package cannot be built: {reason}; Sinkhorn in CUDA is left out, the rest runs"]
    found = [file for file in folder.rglob("*") if file.is_file()]
    kept = [file for file in found if file.suffix == ".so" or ".dist-info" in file.relative_to(folder).parts[0]]
    pack.write_files(folder, kept, archive)
    settle(shop, archive, state)
    if not any(file.name == "libpycl_cuda.so" for file in kept):
        return ["the package was built without libpycl_cuda.so: Sinkhorn in CUDA is left out, the rest runs"]
    return []


def _pip(*arguments: str) -> str | None:
    """Why it failed."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1][:300]


def changed(shop: Workshop, made: Path, state: str) -> bool:
    """Whether this must be made (again)."""
    note = _note(shop, made)
    return not (made.exists() and note.exists() and note.read_text() == state)


def settle(shop: Workshop, made: Path, state: str) -> None:
    """From here on it is made of that."""
    _note(shop, made).write_text(state)


def _note(shop: Workshop, made: Path) -> Path:
    return shop.records / f"{made.name}.state"


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def commit(root: Path) -> str | None:
    """The checkout's, with a mark where it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
