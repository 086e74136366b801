# SPDX-License-Identifier: Apache-2.0
"""The guides hold: their code runs, and what they name exists."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rooms import FILES, FLOOR, imported, module_of, room_of
from torch.utils._pytree import tree_leaves

import pycl
from pycl import functional
from pycl.backends.registry import BACKENDS, why_not
from pycl.testing import assert_ddp_equivalent
from pycl.testing.table import LOSSES
from pycl.tools.site import guides
from pycl.tools.site.links import ROOT_PAGES
from pycl.tools.site.pages import generated

ROOT = Path(__file__).parent.parent.parent
WRITTEN = [path for pattern in ("*.md", "docs/**/*.md", ".github/**/*.md") for path in sorted(ROOT.glob(pattern))]
# what the site has besides, under the paths that it has there
MADE = generated(ROOT) if (ROOT / "docs").exists() else {}
GENERATED = {ROOT / "docs" / name: text for name, text in MADE.items() if name not in ROOT_PAGES.values()}
PAGES = [*WRITTEN, *GENERATED]
EXAMPLE = "examples/your_own_loss.py"
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
TARGET = re.compile(r"\bmake ([a-z][\w-]*)")
MODULE = re.compile(r"\bpython[\d.]* -m ([\w.]+)|torchrun .*?-m ([\w.]+)")
NAME = re.compile(r"(?<![\w./])pycl(?:\.[A-Za-z_]\w*)+")
FOLDERS = (
    "pycl",
    "csrc",
    "triton_kernels",
    "bench",
    "tests",
    "examples",
    "docs",
    "findings",
    "release",
    ".ci",
    ".github",
)
FILE = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*<>-]+")
pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="runs in a checkout")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def text_of(page: Path) -> str:
    return GENERATED[page] if page in GENERATED else page.read_text(encoding="utf-8")


def blocks(page: Path, *kinds: str) -> list[guides.Block]:
    """The blocks whose first word is among the kinds; all without any."""
    return guides.blocks(text_of(page), *kinds)


def prose(page: Path) -> str:
    """The page without its blocks."""
    return guides.FENCE.sub("", text_of(page))


def quoted(page: Path) -> Iterator[str]:
    """What stands in backticks, and the commands of shell blocks without their comments."""
    for span in SPAN.findall(prose(page)):
        yield " ".join(span.split())
    for block in blocks(page, "bash", "sh", "console", ""):
        yield from (line.split(" #")[0] for line in block.code.splitlines())


def test_something_is_looked_at() -> None:
    assert {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"} <= set(PAGES)
    assert len(blocks(ROOT / "docs" / "losses.md", "python")) >= 4


# ---- code


RUN = [page for page in PAGES if any(block.runs() for block in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_code_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All blocks of a page in one namespace, one after the other."""
    monkeypatch.chdir(tmp_path)
    guides.run(text_of(page), str(page))


def test_the_drawings_and_calls_of_modifiers_are_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    """A block of text is what the block of code above it prints; the calls of the last table run."""
    page = ROOT / "docs" / "modifiers.md"
    namespace: dict[str, Any] = {"__name__": "guide"}
    drawn, printed = [], ""
    for block in blocks(page, "python", "text"):
        if block.kind == "text":
            drawn.append(block.line)
            assert block.code == printed, f"line {block.line}"
        else:
            exec(block.compiled(str(page)), namespace)
            printed = capsys.readouterr().out
    assert len(drawn) > 5
    table = text_of(page)[text_of(page).index("| objective |") :]
    calls = re.findall(r"^\| .* \| `(pair_\w+\(.*\)(?:\.\w+)?)` \|$", table, re.MULTILINE)
    assert len(calls) == table.count("\n|") - 1
    for call in calls:
        found = eval(compile(call, str(page), "eval", dont_inherit=True), namespace)
        for values in tree_leaves(found):
            assert namespace["n"] in values.shape, call
            assert not values.isnan().any(), call


@pages
def test_code_that_does_not_run_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        block.compiled(str(page))


def test_the_page_shows_the_example() -> None:
    shown = [
        block.code.strip("\n") for block in blocks(ROOT / "docs/your-own-loss.md", "python") if EXAMPLE in block.kind
    ]
    assert "\n\n\n".join(shown) + "\n" == text_of(ROOT / EXAMPLE)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / EXAMPLE), run_name="your_own_loss")


@pytest.mark.float64
def test_the_example_is_its_formula(example: dict[str, Any], backend: str) -> None:
    example["compare"](backend=backend)


def test_the_example_has_all_options(example: dict[str, Any]) -> None:
    loss = example["hard_nt_xent"]
    options = {"temperature", "reduction", "normalize", "group", "backend"}
    assert options <= set(inspect.signature(loss).parameters)
    views = torch.randn(2, 5, 4, requires_grad=True)
    terms = loss(views, reduction="none")
    assert terms.shape == (2, 5)
    torch.testing.assert_close(loss(views), terms.mean())
    torch.testing.assert_close(loss(views, reduction="sum"), terms.sum())
    torch.testing.assert_close(loss(views, beta=0.0), functional.nt_xent(views))
    with pytest.raises(ValueError, match="reduction must be"):
        loss(views, reduction="avg")
    with pytest.raises(ValueError, match="exactly two views, got 3"):
        loss(torch.randn(3, 5, 4))


def test_the_example_on_one_instance(example: dict[str, Any]) -> None:
    views = torch.randn(2, 1, 4, requires_grad=True)
    value = example["hard_nt_xent"](views)
    value.backward()
    assert value == 0
    assert not views.grad.any()  # type: ignore[union-attr]  # there is one


@pytest.mark.parametrize("shares", [None, (9, 1)], ids=["even", "uneven"])
def test_the_example_on_two_processes(shares: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")  # processes import it by its name
    module = importlib.import_module("your_own_loss")
    inputs = torch.randn(2, 10, 4, dtype=torch.float64).unbind()
    assert_ddp_equivalent(module.on_all_ranks, inputs, shares=shares)


# ---- what is named


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(anchor == slug or re.fullmatch(rf"{slug}-\d+", anchor) is not None for anchor in found)
        found.append(f"{slug}-{again}" if again else slug)
    return set(found)


@pages
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", SPAN.sub("", prose(page))):
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path)) if path else page  # a generated page's folder is not there
        if re.match(r"[a-z]+:", link):
            continue
        there = target.exists() or (page in GENERATED and target in GENERATED)  # GitHub has no generated pages
        if not there or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pages
def test_targets_of_make_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = {target for command in quoted(page) for target in TARGET.findall(command)}
    assert named <= known


@pages
def test_modules_that_run_exist(page: Path) -> None:
    named = {name for command in quoted(page) for found in MODULE.findall(command) for name in found if name}
    assert not [name for name in named if importlib.util.find_spec(name) is None]


@pages
def test_files_exist(page: Path) -> None:
    """``<name>`` stands for any name, and a star for some."""
    named = {
        word.rstrip(".:,") for command in quoted(page) for word in FILE.findall(command) if word in command.split()
    }
    assert not [name for name in named if not any(ROOT.glob(re.sub("<[^>]*>", "*", name.rstrip("/"))))]


def test_the_tree_is_right() -> None:
    """Files are named in the line of their folder, or below it."""
    (tree,) = blocks(ROOT / "CONTRIBUTING.md", "")
    folder = ROOT
    for line in tree.code.splitlines():
        first, *words = line.split()
        if line[0] != " ":
            folder = ROOT / first
            assert folder.is_dir(), first
        files = [word.rstrip(":,;") for word in (first, *words) if re.search(r"\w\.(py|h|cpp|cu)\b", word)]
        assert not [name for name in files if not (folder / name).is_file()], line


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, maybe one that cannot be imported here, or what a module has."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except ModuleNotFoundError:  # of what is no package
            continue
        except ImportError:  # its package needs a library that is not installed
            module = ROOT.joinpath(*parts)
            return module.is_dir() or module.with_suffix(".py").is_file()
        if spec is not None:
            break
    found: Any = importlib.import_module(".".join(parts[:end])) if end < len(parts) else None
    for part in parts[end:]:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pages
def test_names_of_pycl_exist(page: Path) -> None:
    named = {name for command in quoted(page) for name in NAME.findall(command)}
    named -= {name for name in named if name.startswith("pycl._C")}  # not in every build
    assert not [name for name in named if not resolves(name)]


def test_every_loss_is_in_its_page() -> None:
    named = set(SPAN.findall(prose(ROOT / "docs" / "losses.md")))
    assert {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))} <= named
    assert {row.module for row in LOSSES.values() if row.module} | {"SwAVLoss", "Prototypes"} <= named
    assert set(BACKENDS) <= set(SPAN.findall(prose(ROOT / "docs" / "install.md")))


@pytest.mark.parametrize("extra", ["lint", "docs"])
def test_tools_are_pinned(extra: str) -> None:
    (tools,) = re.findall(rf"^{extra} = \[(.*?)\] #", text_of(ROOT / "pyproject.toml"), re.MULTILINE)
    pinned = re.findall(r"^([\w-]+)==", text_of(ROOT / "constraints.txt"), re.MULTILINE)
    assert set(re.findall(r'"([\w-]+)(?:\[\w+\])?"', tools)) <= set(pinned)


def test_what_continuous_integration_runs() -> None:
    commands = [line for line in text_of(ROOT / ".ci" / "run").splitlines() if line.startswith("make ")]
    assert commands == ["make lint", "make docs", "make test", "make test-cpus", "make notebooks"]


# ---- how it works


def test_frames_from_the_call_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbered list of docs/architecture.md is the stack of a run."""
    if reason := why_not("cpu", "cpu"):
        pytest.skip(reason)
    from pycl.backends import cpu

    stacks: list[list[tuple[str, str]]] = []

    class Compiled:
        def __getattr__(self, name: str) -> Any:
            return self.pair_stats if name == "pair_stats" else getattr(module, name)

        def pair_stats(self, *args: Any) -> None:
            frames, frame = [], sys._getframe(1)
            while frame is not None:
                frames.append((frame.f_code.co_filename, frame.f_code.co_name))
                frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
            package = str(Path(pycl.__file__).parent)
            stacks.append(
                [(f"pycl/{Path(f).relative_to(package)}", n) for f, n in reversed(frames) if f.startswith(package)]
            )
            module.pair_stats(*args)

    module = cpu._C
    monkeypatch.setattr(cpu, "_C", Compiled())
    pycl.functional.nt_xent(torch.randn(2, 8, 4), reduction="none", backend="cpu")
    page = text_of(ROOT / "docs" / "architecture.md")
    listed = re.findall(r"^\d+\. `(pycl/[\w/]+\.py)` `(?:\w+\.)?(\w+)`", page, re.MULTILINE)
    assert stacks == [listed]


def rooms() -> list[list[str]]:
    """The rows of the table of rooms: a room, and what it imports among others."""
    page = text_of(ROOT / "docs" / "architecture.md")
    table = page[page.index("| room |") : page.index("\n\n", page.index("| room |"))]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [[row[0].strip("`"), *(SPAN.findall(row[2]) if len(row) > 2 else [])] for row in rows]


def test_rooms_are_those_of_the_page() -> None:
    """From the top; the page calls the package itself pycl."""
    listed = ["" if room == "pycl" else room for room, *_ in rooms()]
    assert set(FLOOR) <= set(listed)
    floors = [FLOOR[room] for room in listed if room in FLOOR]
    assert floors == sorted(floors, reverse=True)


def test_rooms_import_what_the_page_says() -> None:
    found = {(room_of(module_of(path)) or "pycl", room_of(name) or "pycl") for path in FILES for name in imported(path)}
    for room, *below in rooms():
        if room in FLOOR or room == "pycl":
            assert {(room, name) for name in below} <= found


# ---- the one table of figures outside docs/benchmarks.md


def test_the_figures_of_the_readme_are_the_records() -> None:
    """Every ratio and every peak of the README's small table stands in a row of the benchmarks' page."""
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").replace("**", "")
    lines = [line for line in measured.splitlines() if line.startswith(("| clip", "| nt_xent"))]
    rows: dict[str, str] = {}  # records of several instruction sets have rows of one name
    for line in lines:
        name = line.split("|")[1].strip()
        rows[name] = rows.get(name, "") + line
    found = re.findall(
        r"^\| (CLIP|NT-Xent), ([\d ]+) \w+, d = (\d+), (\w+) \|(.*)\|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(found) >= 5
    for loss, size, d, dtype, cells in found:
        row = rows[f"{'clip' if loss == 'CLIP' else 'nt_xent'} {size.replace(' ', '')}, d = {d}, {dtype}"]
        for number in re.findall(r"~?\d[\d.]*(?= \u00d7| GiB)", cells):
            where = re.search(rf"\| {re.escape(number)}(?: x)? \|", row)
            assert where, f"{number} of {loss} {size} is not in: {row}"
