# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a reader counts on: short functions, licences, kernels without foreign headers."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from pycl.backends.registry import why_not

ROOT = Path(__file__).parent.parent.parent
PARTS = ("pycl", "csrc", "triton_kernels", "bench", "tests", "examples", ".ci")
CODE = {".py", ".cpp", ".h", ".cu", ".cuh"}
LINES = 45  # of code in a Python function, below its docstring
KERNEL_LINES = 65  # in a Triton kernel, which has no functions to call for what the compiler must see in one piece
# what kernels of one instruction set may include: headers without inline functions that the linker could share
PLAIN = {"cmath", "cstddef", "cstdint", "cstring", "immintrin.h"}
HOME = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt|tmp)/[\w.]+")
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="runs in a checkout")


@cache
def tracked() -> list[Path]:
    """Files under version control; without git, what lies in the known folders."""
    git = shutil.which("git")
    listed = git and subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed and listed.returncode == 0 and listed.stdout:
        names = [Path(name) for name in listed.stdout.rstrip("\0").split("\0")]
    else:
        names = [path.relative_to(ROOT) for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file()]
    return [name for name in names if (ROOT / name).is_file()]


def code(*suffixes: str) -> list[Path]:
    return [name for name in tracked() if name.suffix in (suffixes or CODE)]


def lines(name: Path) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def included(name: Path) -> set[str]:
    found = (re.match(r"\s*#\s*include\s*[<\"]([^>\"]+)[>\"]", line) for line in lines(name))
    return {match[1] for match in found if match}


def test_something_is_looked_at() -> None:
    assert {Path("pycl/engine/reductions.py"), Path("csrc/bindings.cpp")} <= set(tracked())


def length(function: ast.FunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]  # parsed code has lines


def test_functions_are_short() -> None:
    long = {
        f"{name}: {function.name}": length(function)
        for name in code(".py")
        for function in ast.walk(ast.parse("\n".join(lines(name))))
        if isinstance(function, ast.FunctionDef)
        and length(function) > (KERNEL_LINES if name.parts[0] == "triton_kernels" else LINES)
    }
    assert not long


def test_every_file_names_its_licence() -> None:
    comment = {".py": "#"} | dict.fromkeys(CODE - {".py"}, "//")
    for name in code():
        text = [line for line in lines(name)[:2] if not line.startswith("#!")]
        if text:  # an empty __init__.py needs none
            assert text[0] == f"{comment[name.suffix]} SPDX-License-Identifier: Apache-2.0", name


def test_python_has_postponed_annotations() -> None:
    for name in code(".py"):
        if lines(name):
            assert "from __future__ import annotations" in lines(name), name


def test_kernels_know_neither_torch_nor_python() -> None:
    for name in code(".cpp", ".h", ".cu", ".cuh"):
        foreign = {h for h in included(name) if re.match(r"torch|ATen|c10|Python\.h|pybind11", h)}
        allowed = {h for h in foreign if h.startswith("pybind11")} if name == Path("csrc/bindings.cpp") else set()
        assert foreign == allowed, name


def test_kernels_include_nothing_that_the_linker_may_share() -> None:
    """An inline function compiled for AVX-512 must not be the copy the whole program gets."""
    folder = ROOT / "csrc" / "cpu"
    todo = [path.relative_to(ROOT) for path in folder.glob("isa_*.cpp")]
    seen: set[Path] = set()
    assert todo
    while todo:
        name = todo.pop()
        seen.add(name)
        own = {h for h in included(name) if (folder / h).exists()}
        assert included(name) - own <= PLAIN, name
        todo += [found for h in own if (found := (folder / h).relative_to(ROOT)) not in seen]
    for name in (name for name in seen if name.suffix == ".h" and name.name != "problem.h"):  # that one is plain data
        assert "namespace {" in lines(name), f"{name} has no internal linkage"


def test_flags_of_an_instruction_set_stay_with_its_file() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.search(r"-m(avx|fma|amx|sse|prefer|tune|arch|cpu)|-march", line):
            assert re.match(r"\s*(pycl_isa\(|set\(PYCL_AVX512 )", line), line
    assert not re.search(r"-march=native|-Ofast|-ffast-math|CMAKE_CXX_FLAGS", text)
    everywhere = re.findall(r"(?:add_compile_options|target_compile_options)\(([^)]*)\)", text)
    assert all("isa_${name}" in call for call in everywhere)


def test_a_folder_beside_the_package_is_a_link_inside() -> None:
    """Its modules have one address, for a checkout, an editable install, the wheel, mypy and an IDE.

    An __init__.py there would shadow other projects' names where the checkout is on the path.
    """
    for part in ("triton_kernels", "bench"):
        link = ROOT / "pycl" / part
        assert link.is_symlink()
        assert link.readlink() == Path("..") / part
        assert not (ROOT / part / "__init__.py").exists()


def test_nobody_s_paths() -> None:
    for name in tracked():
        if name.suffix in {".png", ".ipynb", ".npz", ".gz"} or name == Path("tests/packaging/test_layout.py"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
        assert not (found := HOME.findall(text)), f"{name}: {found}"


def compiled_module() -> str:
    if reason := why_not("cpu", "cpu"):
        pytest.skip(reason)
    from pycl.backends import cpu

    return str(cpu._C.__file__)


def tool(*command: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_module_needs_no_symbol_of_torch() -> None:
    names = tool("nm", "-DC", "--undefined-only", compiled_module())
    assert "Py" in names
    assert not re.findall(r".*(?:at::|c10::|torch).*", names)


def test_the_module_exports_its_entry_alone() -> None:
    names = tool("nm", "-DC", "--defined-only", compiled_module()).splitlines()
    ours = [line for line in names if "pycl" in line or "PyInit" in line]
    assert [line.split()[-1] for line in ours] == ["PyInit__C"]
