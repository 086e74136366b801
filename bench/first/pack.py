# SPDX-License-Identifier: Apache-2.0
"""The folder that is carried to a GPU machine: what is in it, how it is written and how it is laid out there.

``manifest.json`` says what the rest was made for; ``cache-BUILD.tar.xz`` are parts of a Triton cache,
``package.tar.xz`` the compiled parts of pycl, ``ptxas.xz`` a newer assembler, ``*.whl`` other people's losses.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .builds import BUILDS

FOLDER = Path(".gpu")
MOST_BYTES = 50_000_000
MANIFEST = "manifest.json"
KEPT = {".json", ".cubin", ".so"}  # of an entry of Triton's cache: its index and metadata, the code, a launcher
GROUP = "__grp__"  # an entry's index, with absolute paths; relative ones travel
PACKAGE, PTXAS = "package.tar.xz", "ptxas.xz"


def archive_of(build: str) -> str:
    return f"cache-{build}.tar.xz"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return found


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def digest(files: Iterable[Path], *more: str) -> str:
    """Of contents and of what else matters."""
    found = hashlib.sha256("\0".join(more).encode())
    for file in sorted(files):
        found.update(f"\0{file}\0".encode() + file.read_bytes())
    return found.hexdigest()


def write_cache(cache: Path, entries: Iterable[str], archive: Path) -> None:
    """What a warm start needs of these entries."""
    with _writing(archive) as tar:
        for entry in sorted(entries):
            for file in sorted((cache / entry).iterdir()):
                if file.suffix in KEPT:
                    grouped = file.name.startswith(GROUP)
                    _add(tar, f"{entry}/{file.name}", _relative(file) if grouped else file.read_bytes())


def write_files(root: Path, files: Iterable[Path], archive: Path) -> None:
    with _writing(archive) as tar:
        for file in sorted(files):
            _add(tar, str(file.relative_to(root)), file.read_bytes())


def compress(file: Path, archive: Path) -> None:
    with file.open("rb") as source, lzma.open(archive, "wb") as target:
        shutil.copyfileobj(source, target)


def _writing(archive: Path) -> tarfile.TarFile:
    return tarfile.open(archive, "w:xz", format=tarfile.GNU_FORMAT)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def _relative(group: Path) -> bytes:
    paths = json.loads(group.read_text())["child_paths"]
    kept = {name: name for name in paths if Path(name).suffix in KEPT}
    return json.dumps({"child_paths": kept}).encode()


def unpack_cache(archive: Path, cache: Path) -> None:
    """Add the entries to a Triton cache, wherever that is."""
    with tarfile.open(archive) as tar:
        tar.extractall(cache, filter="data")
        names = [name for name in tar.getnames() if Path(name).name.startswith(GROUP)]
    for name in names:
        file = cache / name
        paths = json.loads(file.read_text())["child_paths"]
        file.write_text(json.dumps({"child_paths": {name: str(file.parent / name) for name in paths}}))


def unpack(folder: Path, cache: Path, site: Path, ptxas: Path) -> list[str]:
    """Everything that is there, at once; what cannot be laid out, as lines."""
    for target in (cache, site, ptxas.parent):
        target.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[Path, Callable[[Path], None]]] = []
    jobs += [(folder / archive_of(build), lambda a: unpack_cache(a, cache)) for build in BUILDS]
    jobs += [(wheel, lambda a: _unzip(a, site)) for wheel in folder.glob("*.whl")]
    jobs += [(folder / PACKAGE, lambda a: _untar(a, site)), (folder / PTXAS, lambda a: _tool(a, ptxas))]
    with ThreadPoolExecutor() as pool:
        found = pool.map(_tried, *zip(*((a, work) for a, work in jobs if a.exists()), strict=True))
        return [line for line in found if line]


def _tried(archive: Path, work: Callable[[Path], None]) -> str | None:
    try:
        work(archive)
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError, zipfile.BadZipFile, KeyError, ValueError) as error:
        return f"{archive.name} cannot be unpacked ({type(error).__name__}: {error}): the rest goes on without it"
    return None


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")


def _unzip(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        files.extractall(target)


def _tool(archive: Path, tool: Path) -> None:
    with lzma.open(archive) as source, tool.open("wb") as target:
        shutil.copyfileobj(source, target)
    tool.chmod(0o755)
