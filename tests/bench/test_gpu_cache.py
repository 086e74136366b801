# SPDX-License-Identifier: Apache-2.0
"""What gpu-cache makes and gpu-first lays out, and what both say in one line of what is missing."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycl.bench.first import __main__ as first
from pycl.bench.first import facts, fill, jobs, pack, parts, processes, report, suitable
from pycl.bench.first.place import Place

ROOT = Path(__file__).resolve().parent.parent.parent
Capture = pytest.CaptureFixture[str]
FACTS = {
    "gpu": "NVIDIA H100", "architecture": 90, "cores": 16, "torch": "2.11.0+cu130", "cuda": "13.0", "triton": "3.6.0",
    "key": "bd4757a49ddb", "python": "3.12", "nvcc": "Build cuda_13.0", "compiler": "/usr/bin/cc", "settings": [],
    "library": None, "smi": "NVIDIA H100, 580.65.06, 700 W",
}  # fmt: skip
MANIFEST = {
    "python": "3.12", "torch": "2.11.0", "triton": "3.6.0", "key": "bd4757a49ddb", "architecture": 90, "commit": "abc",
    "ptxas": "13.5.37", "wheels": ["inf_cl-1.2.1-py3-none-any.whl"],
}  # fmt: skip


# ---- what is missing, in one line each


@pytest.mark.parametrize(
    ("of_machine", "of_pack", "line"),
    [
        (
            {"key": "0123456789ab", "triton": "3.7.1"},
            {},
            "the cache is of Triton 3.6.0 (key bd4757a49ddb), here is Triton 3.7.1 (key 0123456789ab): "
            "kernels are compiled here, 14 cases at once",
        ),
        ({"architecture": 100}, {}, "the cache is for sm_90, this GPU is sm_100: kernels are compiled here, 14 cases"),
        ({}, None, "no cache is carried (`make gpu-cache` makes it): kernels are compiled here, 14 cases at once"),
        ({"settings": ["TRITON_PTXAS_PATH"]}, {}, "TRITON_PTXAS_PATH is set, which may enter the cache's keys: "),
        (
            {"library": "libpycl_cuda.so was not built", "nvcc": None},
            {},
            "no libpycl_cuda.so; no nvcc to build it here: Sinkhorn in CUDA is left out, Triton's runs "
            "(libpycl_cuda.so was not built)",
        ),
        (
            {"library": "was not built", "python": "3.11"},
            {},
            "no libpycl_cuda.so; the carried one is for CPython 3.12, this is 3.11: Sinkhorn in CUDA is left out, ",
        ),
        ({}, {"wheels": []}, "no wheels of peers are carried: rows have those that are installed, the rest runs"),
        ({}, {"ptxas": None}, "no newer ptxas is carried: a case that fails is tried with wider pieces and one stage"),
    ],
)
def test_remarks(of_machine: dict[str, Any], of_pack: dict[str, Any] | None, line: str) -> None:
    assert facts.remarks(FACTS, MANIFEST, 14) == []
    found = facts.remarks(FACTS | of_machine, None if of_pack is None else MANIFEST | of_pack, 14)
    assert found[0].startswith(line)
    assert all("\n" not in remark for remark in found)
    assert len(found) == (1 if of_pack is not None else 3)  # without a pack there are no wheels and no ptxas either


def test_no_compiler_where_one_is_needed() -> None:
    lines = facts.remarks(FACTS | {"key": "other", "compiler": None}, MANIFEST, 14)
    assert lines[1] == "no C compiler (cc or $CC): Triton cannot compile its launchers, so nothing of it runs"
    assert facts.remarks(FACTS | {"compiler": None}, MANIFEST, 14) == []


OLD = "The NVIDIA driver on your system is too old (found version 12020)."


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            {"gpu": None, "why_no_gpu": OLD, "smi": "NVIDIA H100, 535.1, 700 W"},
            f"the driver is too old: torch 2.11.0+cu130 for CUDA 13.0 says: {OLD}; nvidia-smi says NVIDIA H100, 535.1, "
            "700 W; nothing runs without it",
        ),
        ({"gpu": None, "why_no_gpu": "torch sees none", "smi": None}, "no GPU can be used: torch 2.11.0+cu130 for "),
        ({"triton": None, "why_no_triton": "No module named 'triton'"}, "no Triton (No module named 'triton'): "),
    ],
)
def test_what_stops_everything(
    found: dict[str, Any],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(first, "_facts", lambda place: (FACTS | found, None))
    arguments = [str(tmp_path / "out"), "--pack", str(tmp_path / "none"), "--work", str(tmp_path / "work")]
    assert first.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gpu-first: {line}")
    assert said.count("\n") == 1
    assert json.loads((tmp_path / "out" / report.JSON).read_text())["remarks"] == [said[len("gpu-first: ") : -1]]


def test_a_machine_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "python", lambda *_: [sys.executable, "-c", "raise SystemExit('no torch')"])
    found, reason = first._facts(Place(tmp_path, tmp_path))
    assert found == {}
    assert reason == "the machine cannot be asked what it is: no torch; nothing runs without that"


def test_a_python_that_cannot_make_the_cache(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    has = {"torch": "2.13.0+cpu", "triton": None, "pip": "26.0"}
    monkeypatch.setattr(suitable, "_version", has.get)
    monkeypatch.setattr(suitable.sys, "version_info", (3, 11, 4))
    monkeypatch.setattr(suitable, "NEEDED", ("pip", "no_such_module"))
    monkeypatch.setattr(suitable.shutil, "which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    assert fill.main([]) == 2
    assert capsys.readouterr().err == (
        f"gpu-cache: {sys.executable} cannot compile for the GPU machine: it is CPython 3.11, wanted 3.12; torch is "
        "2.13.0+cpu, wanted 2.11.0; triton is missing, wanted 3.6.0; no_such_module is missing; there is no C compiler "
        "(cc or $CC) (GPU_CACHE_PYTHON names another)\n"
    )


def test_no_nvcc_where_the_cache_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/opt/nvcc")
    assert suitable.remarks() == []
    monkeypatch.delenv("CUDACXX")
    monkeypatch.setattr(suitable.shutil, "which", lambda _: None)
    assert suitable.remarks() == [
        "no nvcc (PATH, $CUDACXX): libpycl_cuda.so is not carried; Sinkhorn in CUDA is left out, the rest runs"
    ]


def test_make_names_a_python_that_is_not_there() -> None:
    command = ["make", "--no-print-directory", "gpu-cache", "GPU_CACHE_PYTHON=no-such-python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    line = "gpu-cache: no no-such-python; GPU_CACHE_PYTHON=... names the Python to compile with"
    assert done.stderr.splitlines()[0] == line


def test_no_peers_and_no_ptxas_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_pip", lambda *_: "no such host")
    shop = jobs.Workshop(ROOT, tmp_path)
    assert parts.download(shop, tmp_path) == [
        "no wheels of peers are carried, the rest runs: no such host",
        "no ptxas 13.5.37 is carried, cases that fail are tried without: no such host",
    ]
    assert parts.package(shop, tmp_path) == [
        "the package cannot be built: no such host; Sinkhorn in CUDA is left out, the rest runs"
    ]
    assert jobs.fill(shop, next(job for job in jobs.JOBS if job.build == "ptxas")) == [
        "smoke-ptxas is left out: there is no newer ptxas"
    ]


@pytest.mark.parametrize("bad", [["--stages", "smoke,nothing"], ["--seconds", "long"]])
def test_arguments(bad: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        first.main(bad)
    assert bad[0] in capsys.readouterr().err


# ---- what is carried


def a_cache(folder: Path) -> list[str]:
    kernel, launcher = folder / "KERNEL", folder / "LAUNCHER"
    kernel.mkdir(parents=True)
    launcher.mkdir()
    names = ("k.cubin", "k.json", "k.ptx", "k.ttir")
    for name in names:
        (kernel / name).write_text(name)
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": {name: str(kernel / name) for name in names}}))
    (launcher / "launcher.so").write_text("code")
    return ["KERNEL", "LAUNCHER"]


def test_a_cache_moves(tmp_path: Path) -> None:
    entries = a_cache(tmp_path / "here")
    pack.write_cache(tmp_path / "here", entries, tmp_path / pack.archive_of("default"))
    there, site, ptxas = tmp_path / "there", tmp_path / "site", tmp_path / "bin" / "ptxas"
    assert pack.unpack(tmp_path, there, site, ptxas) == []
    kernel = there / "KERNEL"
    assert sorted(file.name for file in kernel.iterdir()) == ["__grp__k.json", "k.cubin", "k.json"]
    paths = json.loads((kernel / "__grp__k.json").read_text())["child_paths"]
    assert paths == {name: str(kernel / name) for name in ("k.cubin", "k.json")}
    assert (there / "LAUNCHER" / "launcher.so").read_text() == "code"


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / pack.archive_of("piece")).write_bytes(b"not an archive")
    with lzma.open(tmp_path / pack.PTXAS, "wb") as file:
        file.write(b"#!/bin/sh\n")
    ptxas = tmp_path / "bin" / "ptxas"
    (line,) = pack.unpack(tmp_path, tmp_path / "cache", tmp_path / "site", ptxas)
    assert line.startswith("cache-piece.tar.xz cannot be unpacked (ReadError: ")
    assert line.endswith(": the rest goes on without it")
    assert os.access(ptxas, os.X_OK)


def test_only_what_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def run(command: list[str], *, environment: dict[str, str], **_: Any) -> processes.Done:
        started.append(command[3])
        Path(environment[jobs.USED]).write_text("used KERNEL\nmade KERNEL\nused LAUNCHER\n")
        if len(started) == 1:
            a_cache(Path(environment["TRITON_CACHE_DIR"]))
        return processes.Done(0, 1.0, "", "")

    monkeypatch.setattr(processes, "run", run)
    shop = jobs.Workshop(tmp_path, tmp_path / "shop")
    source = tmp_path / "triton_kernels" / "forward.py"
    source.parent.mkdir()
    source.write_text("1")
    job = jobs.JOBS[0]
    for changed in (False, False, True):
        if changed:
            source.write_text("2")
        assert jobs.fill(shop, job) == []
    assert started == ["pytest", "pytest"]
    assert jobs.entries_of(shop, job) == {"KERNEL", "LAUNCHER"}
    assert jobs.entries_of(shop, job, "made") == {"KERNEL"}


@pytest.mark.parametrize("carried", [True, False])
def test_the_whole_and_its_proof(
    carried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The second time, with what was carried alone, nothing may be compiled."""

    def run(command: list[str], *, environment: dict[str, str], **_: Any) -> processes.Done:
        cache = Path(environment["TRITON_CACHE_DIR"])
        made = not (cache / "KERNEL").exists()
        if made:
            a_cache(cache)
        Path(environment[jobs.USED]).write_text("used KERNEL\nused LAUNCHER\n" + "made KERNEL\n" * made)
        return processes.Done(0, 1.0, "", "")

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(fill, "why_not", lambda: None)
    monkeypatch.setattr(fill, "key_of_triton", lambda: "bd4757a49ddb")
    for part in ("download", "package"):
        monkeypatch.setattr(parts, part, lambda *_: [])
    if not carried:
        monkeypatch.setattr(pack, "unpack_cache", lambda *_: None)
    folder = tmp_path / "gpu"
    arguments = ["--pack", str(folder), "--work", str(tmp_path / "work"), "--jobs", "tests", "--prove"]
    monkeypatch.setenv("CUDACXX", "/opt/nvcc")
    assert fill.main(arguments) == int(not carried)
    said = capsys.readouterr()
    assert f"proof: tests used 2 entries of what is carried and made {int(not carried)}\n" in said.out
    assert said.err == ("" if carried else "gpu-cache: tests had to compile 1 entries that are not carried\n")
    manifest = pack.read_manifest(folder)
    assert manifest is not None
    assert (manifest["key"], manifest["architecture"], manifest["ptxas"]) == ("bd4757a49ddb", 90, None)
    assert manifest["entries"] == {"default": 2, "ptxas": 0, "piece": 0, "stage": 0}
    monkeypatch.setattr(pack, "MOST_BYTES", 100)
    assert fill.main(arguments[:-1]) == 1
    assert "MB, allowed are 0.0001\n" in capsys.readouterr().err
