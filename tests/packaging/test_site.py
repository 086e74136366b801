# SPDX-License-Identifier: Apache-2.0
"""The documentation site: pictures say what the losses do, links lead on, and a fault is one clear line."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pycl import functional
from pycl.core.pairs import Pairs
from pycl.testing.table import LOSSES, LossRow
from pycl.tools.site import guides, links, pages
from pycl.tools.site.__main__ import inspect_pages, main
from pycl.tools.site.drawing import figure, legend
from pycl.tools.site.forces import Forces
from pycl.tools.site.notebooks import page_of_notebook
from pycl.tools.site.pairs import (
    BOTH,
    IDLE,
    NEGATIVE,
    NONE,
    POSITIVE,
    SELF,
    Picture,
    inputs_of,
    options_of,
    picture_of,
    set_name,
)

ROOT = Path(__file__).parent.parent.parent
WITHOUT_PAIRS = {"vicreg", "barlow_twins"}  # their products are of features
pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="runs in a checkout")
DRAWN = [row for row in LOSSES.values() if row.name not in WITHOUT_PAIRS]


# ---- pictures


@cache
def drawn(name: str) -> Picture:
    picture = pages._picture(name)
    assert picture is not None
    return picture


def dense(row: LossRow) -> Forces:
    """How the terms of the formula with the whole matrix depend on the pairs."""
    inputs, _ = inputs_of(row)
    kinds = inspect.signature(row.function).parameters
    by_position = [name for name in inputs.given if kinds[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    def formula(**given: Any) -> Tensor:
        by_name = {name: x for name, x in given.items() if name not in by_position}
        return row.formula(*(given[name] for name in by_position), **by_name, **options_of(row))

    return Forces(formula, inputs)


@pytest.mark.parametrize("row", DRAWN, ids=lambda row: row.name)
def test_what_is_drawn_is_what_the_dense_formula_depends_on(row: LossRow) -> None:
    picture, forces = drawn(row.name), dense(row)
    for anchor in picture.anchors:
        if not (slopes := forces.of(anchor)):
            continue  # the loss takes it as a constant
        shown = {c for c in picture.candidates if picture.cells.get((anchor, c), NONE) not in (NONE, IDLE, SELF)}
        assert shown == set(slopes), anchor
        negatives = [c for c in shown if picture.cells[anchor, c] == NEGATIVE]
        for c in shown - set(negatives):
            assert forces.weakens(anchor, c, negatives) == (picture.cells[anchor, c] == BOTH), (anchor, c)


def test_losses_of_features_have_no_picture() -> None:
    for name in WITHOUT_PAIRS:
        assert picture_of(LOSSES[name]) is None
        assert "Which pairs count" not in pages.loss_page(name, ROOT)


def states(name: str, anchor: str) -> str:
    """The states of an anchor's row, one letter each."""
    letters = {SELF: "x", POSITIVE: "p", BOTH: "b", NEGATIVE: "n", IDLE: "i", NONE: "."}
    picture = drawn(name)
    return "".join(letters[picture.cells.get((anchor, c), NONE)] for c in picture.candidates)


@pytest.mark.parametrize(
    ("name", "anchor", "expected"),
    [
        ("nt_xent", "a1", "xnnbnnbnn"),  # three views of three instances, one view after the other
        ("dcl", "a1", "xnnnpnnn"),
        ("dhel", "b2", ".p..nxnn"),
        ("mv_dhel", "a1", "xnnp..p.."),
        ("mv_info_nce_cross", "a1", "x..bnnbnn"),
        ("clip", "t1", "bnnn...."),
        ("siglip", "i2", "npnn"),
        ("info_nce_shared", "q1", "b...nnnnnnnn"),
        ("info_nce_own", "q2", ".b....nn...."),
        ("sup_con", "a3", "nnxbnnbb"),
        ("multi_similarity", "z1", "xpnn"),
        ("mil_nce", "v1", "....bbnnnnnn"),
    ],
)
def test_pictures_that_are_known(name: str, anchor: str, expected: str) -> None:
    assert states(name, anchor) == expected


def test_a_drawing_has_a_cell_for_each_pair() -> None:
    picture = drawn("dcl")
    svg = figure(picture, "a & b")
    assert len(re.findall(r"<title>(.*?)</title>", svg)) == len(picture.anchors) * len(picture.candidates) == 64
    assert svg.count('<rect class="negative"') == 48
    assert svg.count('<rect class="positive"') == 8
    assert "<figcaption>a &amp; b</figcaption>" in svg
    assert "\n" not in svg  # Markdown would end the block at an empty line
    assert "also in the denominator" not in legend([picture])


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        (Pairs.OTHERS, "OTHERS"),
        (Pairs.POS_OTHER_VIEW | Pairs.NEG_OTHER_VIEW, "POS_OTHER_VIEW | NEG_OTHER_VIEW"),
        (Pairs.SELF | Pairs.POSITIVE, "ALL & ~NEGATIVE"),
    ],
)
def test_names_of_sets(pairs: Pairs, name: str) -> None:
    assert set_name(int(pairs)) == name


# ---- pages


def test_every_function_has_a_page() -> None:
    made = pages.generated(ROOT)
    for name in pages.functions():
        text = made[f"loss/{name}.md"]
        assert f"::: pycl.functional.{name}\n" in text
        assert f"]({name}.md)" in made["loss/index.md"]
    assert {row.function.__name__ for row in LOSSES.values()} <= set(pages.functions())
    modules = {row.function.__name__: row.module for row in LOSSES.values() if row.module} | {"swav": "SwAVLoss"}
    assert {name: pages.module_of(name) for name in modules} == modules
    assert "::: pycl.NTXentLoss\n" in made["loss/nt_xent.md"]


def test_conventions_are_on_the_pages_of_their_losses() -> None:
    assert "twice as large" in pages.loss_page("nt_xent", ROOT)
    assert "both directions" in pages.loss_page("dclw", ROOT)  # in a row with dcl
    assert pages.conventions(ROOT).keys() <= {*pages.functions(), "label_smoothing"}


def test_functions_of_the_table_lead_to_their_pages() -> None:
    text = pages.with_links("`clip`\n## What is there\n| `clip` | `CLIPLoss` |\n## Inputs\n`clip`", "losses.md")
    assert text == "`clip`\n## What is there\n| [`clip`](loss/clip.md) | `CLIPLoss` |\n## Inputs\n`clip`"
    assert pages.with_links("`clip`", "viz.md") == "`clip`"


@pytest.mark.parametrize(
    ("link", "page", "source", "there"),
    [
        ("../CONTRIBUTING.md#the-bar", "benchmarks.md", "docs/benchmarks.md", "contributing.md#the-bar"),
        ("docs/losses.md", "readme.md", "README.md", "losses.md"),
        ("../images/x.png", "examples/a.md", "docs/examples/a.md", "../images/x.png"),
        ("../examples/your_own_loss.py", "a.md", "docs/a.md", "source/examples/your_own_loss.py.md"),
        ("https://arxiv.org", "a.md", "docs/a.md", "https://arxiv.org"),
        ("#here", "a.md", "docs/a.md", "#here"),
    ],
)
def test_links_lead_into_the_site(link: str, page: str, source: str, there: str) -> None:
    assert links.rewritten(f"[x]({link})", page, source) == f"[x]({there})"
    code = f"```python\ny = [x]({link})\n```"
    assert links.rewritten(code, page, source) == code


def test_files_that_pages_link_to_have_a_page() -> None:
    made = pages.generated(ROOT)
    text = made["source/examples/your_own_loss.py.md"]
    assert (ROOT / "examples" / "your_own_loss.py").read_text(encoding="utf-8") in text
    assert text.startswith("# examples/your_own_loss.py\n\n````python no-run\n")


def test_a_notebook_is_a_page(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Words."]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]},
        {"cell_type": "code", "source": ["plot()"], "outputs": [{"data": {"image/png": "iVBO\n"}}]},
    ]
    (path := tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    text = page_of_notebook(path)
    assert text.startswith("# Title\nWords.\n\n[The notebook](n.ipynb)")
    assert "````python no-run\n1 + 1\n````\n\n````text\n2\n````" in text
    assert 'src="data:image/png;base64,iVBO"' in text


# ---- faults


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\nx = = 2", "a.md:3: invalid syntax"),
        ("import torch\ntorch.zeros(2).reshape(\n    3)", "a.md:3: RuntimeError: shape '[3]' is invalid"),
        ("def f():\n    raise ValueError('two\\nlines')\nf()", "a.md:3: ValueError: two lines"),
    ],
)
def test_a_broken_block_is_named(code: str, said: str) -> None:
    with pytest.raises(guides.BrokenPage) as found:
        guides.check(f"```python\n{code}\n```\n", "a.md", runs=True)
    assert str(found.value).startswith(said)
    assert "\n" not in str(found.value)


def test_blocks_are_not_run_where_only_their_syntax_is_asked_for() -> None:
    guides.check("```python\n1 / 0\n```\n```python no-run\n1 / 0\n```\n", "a.md", runs=False)
    with pytest.raises(guides.BrokenPage, match="ZeroDivisionError"):
        guides.check("```python\n1 / 0\n```\n", "a.md", runs=True)


def test_examples_of_docstrings_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycl.backends import workspace

    assert guides.doctests() == []
    monkeypatch.setattr(workspace.set_workspace, "__doc__", ">>> 1 + 1\n3\n")
    assert guides.doctests() == ["pycl.backends.workspace: 1 of 1 examples in its docstrings do not hold"]


def test_markup_that_is_left_and_what_is_fetched_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<p>of :func:`x` and ``y``</p><pre>``</pre><script src='a.js'></script>"
        '<script src="https://cdn.example/x.js"></script><link rel="stylesheet" href="//fonts.example/x">'
        '<a href="https://arxiv.org">a link is not fetched</a>'
    )
    assert inspect_pages(tmp_path) == [
        "a.html has ':func:' in its text",
        "a.html has '``' in its text",
        "a.html fetches //fonts.example/x",
        "a.html fetches https://cdn.example/x.js",
    ]


def test_without_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no mkdocs\.yml in .*: run it in a checkout"):
        main(["--root", str(tmp_path)])


def test_without_mkdocs() -> None:
    """One line with the command that installs it."""
    code = (
        "import sys; sys.modules['mkdocs'] = None; sys.modules['latex2mathml'] = None\n"
        "from pycl.tools.site.__main__ import main\n"
        f"main(['--root', {str(ROOT)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("pycl.tools.site needs latex2mathml: pip install")
    assert "'pycl-kernels[docs]'" in done.stderr
    assert "Traceback" not in done.stderr


# ---- with MkDocs


SITE = """site_name: small
theme: {{name: material, font: false}}
hooks: [hooks.py]
plugins:
  mkdocstrings:
    handlers:
      python:
        paths: [{root}]
        options: {{extensions: [pycl.tools.site.docstrings]}}
validation: {{links: {{anchors: warn}}}}
"""
HOOKS = "from pycl.tools.site.hooks import on_page_markdown\n"


@pytest.fixture(scope="module")
def mkdocs() -> Any:
    return pytest.importorskip("mkdocs", reason="needs pip install 'pycl-kernels[docs]'")


def test_docstrings_become_markdown(mkdocs: Any) -> None:
    griffe = pytest.importorskip("griffe")
    from pycl.tools.site.docstrings import PublicNames

    loaded = griffe.load(
        "pycl", search_paths=[str(ROOT)], extensions=griffe.load_extensions(PublicNames), docstring_parser="google"
    )
    assert loaded["functional"].members["nt_xent"].is_function  # and not the module of that name
    assert loaded["engine"].members["pair_stats"].is_function
    text = loaded["functional"].members["pairwise_nt_xent"].docstring.value
    assert "with `s` as in [`nt_xent`][pycl.functional.nt_xent]:\n\n    term_ai" in text.replace("``", "`")
    assert "<math" in loaded["engine"].members["pair_stats"].docstring.value
    classes = loaded["engine"].members["Pairs"].docstring.value
    assert "| ``SELF`` | the same point (position ``i + offset == j``) |" in classes
    module = loaded.members["NTXentLoss"].docstring.value
    assert "learnable_temperature:" in module
    assert "log sum_" not in module  # the formula stands above it, on the function
    assert set(functional.__all__) <= set(loaded["functional"].members)


def test_a_role_that_names_nothing_is_a_warning(mkdocs: Any, caplog: pytest.LogCaptureFixture) -> None:
    griffe = pytest.importorskip("griffe")
    from pycl.tools.site.docstrings import _markdown

    module = griffe.load("pycl.viz", search_paths=[str(ROOT)])
    assert (
        _markdown("of :func:`measure` and :class:`torch.nn.Module`", module, {}) == "of `measure` and `torch.nn.Module`"
    )
    assert not caplog.messages
    _markdown("of :func:`nothing`", module, {})
    assert caplog.messages == ["pycl.viz: the docstring names nothing, which there is not"]


def test_a_star_in_the_nav_lists_what_there_is(mkdocs: Any) -> None:
    from pycl.tools.site.hooks import listed

    names = ["a.md", "b/z.md", "b/README.md", "b/a.b.md", "b/a.md", "c.md"]
    nav = [{"A": "a.md"}, {"B": [{"all": "b/*"}]}, {"C": "c*"}, {"none": "notebooks/*"}]
    expected = [{"A": "a.md"}, {"B": [{"all": ["b/README.md", "b/a.md", "b/a.b.md", "b/z.md"]}]}, {"C": "c.md"}]
    assert listed(nav, names) == expected


def test_pages_of_one_address_are_found(mkdocs: Any) -> None:
    from mkdocs.structure.files import File, Files

    from pycl.tools.site.hooks import shared_addresses

    files = Files([File(name, "docs", "site", True) for name in ("a.md", "a/index.md", "b.md")])
    assert shared_addresses(files) == {"a/index.html": ["a.md", "a/index.md"]}


FAULTS = {
    "index.md": ("# Small\n\n[dead](nothing.md)\n", "'index.md' contains a link 'nothing.md'"),
    "anchor.md": ("# A\n\n[dead](index.md#nothing)\n", "does not contain an anchor '#nothing'"),
    "block.md": ("# B\n\n```python\nx = = 1\n```\n", "docs/block.md:4: invalid syntax"),
    "reference.md": ("# R\n\n[nothing][pycl.functional.nothing]\n", "pycl.functional.nothing"),
    "object.md": ("# O\n\n::: pycl.functional.nothing\n", "pycl.functional.nothing could not be found"),
}


@pytest.mark.parametrize("page", FAULTS)
def test_a_fault_of_a_page_fails_the_build(mkdocs: Any, page: str, tmp_path: Path) -> None:
    from pycl.tools.site.__main__ import build

    text, said = FAULTS[page]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Small\n")
    (tmp_path / "docs" / page).write_text(text)
    (tmp_path / "mkdocs.yml").write_text(SITE.format(root=ROOT))
    (tmp_path / "hooks.py").write_text(HOOKS)
    found = build(tmp_path)
    assert len(found) == 1, found
    assert said in found[0]
