# SPDX-License-Identifier: Apache-2.0
"""Runs the notebooks, each in a kernel and an empty folder of its own: ``make notebooks``.

    python docs/notebooks/run.py                      # all of them; 1 where a cell raised
    python docs/notebooks/run.py --write clip         # one, and its file gets what its cells showed

Without ``--write`` no file changes. What is written is small and names no machine: pictures have few colours, and there
is no standard error, where libraries warn with their paths.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
SECONDS = 600  # for a cell
COLOURS = 64  # of a picture
WIDEST = 1000  # pixels
# Lightning and transformers import torchvision, whose CUDA build does not import beside a CPU build of torch
FIRST = "from pycl.bench.workloads.baselines import declare_torchvision\n\ndeclare_torchvision()"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> NotebookNode:
    """The notebook with the outputs of a run.

    Raises:
        CellExecutionError, CellTimeoutError: a cell raised, or took too long.
        RuntimeError: the kernel did not start, or ended.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, kernel_name="python3")
        client.execute(cwd=folder)
    del notebook.cells[0]
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """What differs from machine to machine left out, and pictures made small; in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
                if "metadata" in output:
                    output.metadata = NotebookNode()
                if "image/png" in output.get("data", {}):
                    output.data = NotebookNode({"image/png": smaller(output.data["image/png"])})
    return notebook


def smaller(png: str) -> str:
    """A picture in base64, in few colours and no wider than a page."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def run(path: Path, *, write: bool) -> str | None:
    """None, or why the notebook failed, in a line."""
    try:
        notebook = execute(path)
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue.splitlines()[0] if error.evalue else ''}"
    except (CellTimeoutError, RuntimeError) as error:  # RuntimeError: of a kernel that did not start, or that ended
        return str(error).splitlines()[0]
    if write:
        nbformat.write(clean(notebook), path)
    return None


def main(argv: list[str] | None = None) -> int:
    """Runs them; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NOTEBOOKS)}; all by default")
    parser.add_argument("--write", action="store_true", help="put what the cells show into the files")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in NOTEBOOKS]:
        parser.error(f"no notebook {', '.join(unknown)}: there are {', '.join(NOTEBOOKS)}")
    failed = 0
    for name in args.names or NOTEBOOKS:
        start = time.perf_counter()
        why = run(NOTEBOOKS[name], write=args.write)
        print(
            f"{name}: ran, {time.perf_counter() - start:.0f} s" if why is None else f"{name}: FAILED, {why}", flush=True
        )
        failed += why is not None
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
