# SPDX-License-Identifier: Apache-2.0
"""The notebooks are fit to be read and to be run: small, clean, and with packages that an extra installs."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_layout import HOME

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = 200_000  # bytes of a file
# where a distribution has another name than its module
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "IPython": "ipykernel", "pycl": "pycl-kernels"}
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="runs in a checkout")
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path: Path) -> list[Any]:
    return [output for cell in cells(path) for output in cell.outputs]


def texts(path: Path) -> str:
    """All that a reader reads."""
    found = [cell.source for kind in ("code", "markdown") for cell in cells(path, kind)]
    for output in outputs(path):
        found += [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
    return "\n".join(found)


def test_there_are_five_and_the_page_has_them() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in NOTEBOOKS}
    assert len(names) == 5
    assert set(re.findall(r"\]\((\w+\.ipynb)\)", page)) == names


@notebooks
def test_it_is_valid(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)
    assert not any(cell.execution_count for cell in cells(path))


@notebooks
def test_it_was_run_and_nothing_failed(path: Path) -> None:
    found = outputs(path)
    assert {output.output_type for output in found} <= {"stream", "display_data", "execute_result"}
    assert all(output.name == "stdout" for output in found if output.output_type == "stream")
    assert any("image/png" in output.get("data", {}) for output in found)
    assert any(output.output_type == "stream" for output in found)


@notebooks
def test_it_is_small_and_names_no_machine(path: Path) -> None:
    assert path.stat().st_size < SMALL
    assert not HOME.findall(texts(path))
    assert not ADDRESS.findall(texts(path))


@notebooks
def test_its_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", "\n".join(cell.source for cell in cells(path, "markdown")))
    assert links
    assert not [link for link in links if not re.match(r"https?:", link) and not (FOLDER / link).exists()]


def imported(path: Path) -> set[str]:
    """The packages that the cells import."""
    found = set()
    for cell in cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found - sys.stdlib_module_names


def declared() -> set[str]:
    """The distribution, what it needs, and what its extra for notebooks brings."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|notebooks) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert len(lists) == 2, "pyproject.toml must have an extra `notebooks`"
    return {"pycl-kernels", *re.findall(r'"([\w-]+)', " ".join(lists))}


@notebooks
def test_the_extra_has_what_it_imports(path: Path) -> None:
    names = {DISTRIBUTIONS.get(name, name) for name in imported(path)}
    assert {name.replace("_", "-") for name in names} <= {name.replace("_", "-") for name in declared()}


# ---- what runs them


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_runner", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, *sources: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(notebook, path)
    return path


def test_a_cell_that_raises_fails_the_run(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.ipynb", "import os\nassert os.listdir() == []", "print(2)")
    bad = write(tmp_path / "bad.ipynb", "1 / 0")
    before = good.read_bytes()
    monkeypatch.setattr(runner, "NOTEBOOKS", {"good": good, "bad": bad})
    assert runner.main([]) == 1
    shown = capsys.readouterr().out
    assert "good: ran" in shown
    assert "bad: FAILED, ZeroDivisionError: division by zero" in shown
    assert good.read_bytes() == before  # without --write
    assert runner.main(["good", "--write"]) == 0
    assert [output.text for output in outputs(good)] == ["2\n"]
    with pytest.raises(SystemExit):
        runner.main(["none"])
    assert "no notebook none: there are good, bad" in capsys.readouterr().err


def test_what_is_written_is_clean(runner: ModuleType) -> None:
    file = io.BytesIO()
    Image.effect_noise((1400, 70), 90).save(file, format="PNG")
    noisy = b64encode(file.getvalue()).decode()
    cell = nbformat.v4.new_code_cell("x", execution_count=7, metadata={"execution": {"start": "today"}})
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="lib.py: UserWarning"),
        nbformat.v4.new_output("stream", name="stdout", text="kept"),
        nbformat.v4.new_output(
            "execute_result", data={"image/png": noisy, "text/plain": "<Figure>"}, execution_count=7
        ),
    ]
    notebook = runner.clean(nbformat.v4.new_notebook(cells=[cell], metadata={"author": "me"}))
    (cell,) = notebook.cells
    assert notebook.metadata == runner.METADATA
    assert (cell.execution_count, cell.metadata) == (None, {})
    text, picture = cell.outputs
    assert text.text == "kept"
    assert picture.data.keys() == {"image/png"}
    assert picture.execution_count is None
    image = Image.open(io.BytesIO(b64decode(picture.data["image/png"])))
    assert image.width == runner.WIDEST
    assert len(image.convert("RGB").getcolors()) <= runner.COLOURS
