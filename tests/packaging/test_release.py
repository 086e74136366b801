# SPDX-License-Identifier: Apache-2.0
"""What an index gets: versions and addresses that agree, a README without relative links, a workflow that is valid."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCE, VERSION = "https://host/owner/project", "1.2.3"
SDIST = """
import sys
from scikit_build_core.build import build_sdist
print(build_sdist(sys.argv[1], {}))
"""
pytestmark = pytest.mark.skipif(not (ROOT / "release").exists(), reason="runs in a checkout")


@pytest.fixture
def index_readme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "release")
    return importlib.import_module("index_readme")


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "release")
    return importlib.import_module("ready")


# ---- versions and addresses


def test_files_agree(ready: ModuleType) -> None:
    """On the version: pycl, CITATION.cff and the changelog. On the repository: project.urls, CITATION.cff."""
    assert ready.disagreements() == []
    assert ready.main([]) == 0


def copied(ready: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: tuple[str, str]) -> None:
    """The files that are looked at, with replacements, in place of the checkout."""
    (folder / "pycl").mkdir()
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "pycl/__init__.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        old, new = changes.get(Path(name).stem.strip("_"), ("", ""))
        assert old in text
        (folder / name).write_text(text.replace(old, new) if old else text, encoding="utf-8")
    monkeypatch.setattr(ready, "ROOT", folder)
    monkeypatch.setattr(importlib.import_module("index_readme"), "ROOT", folder)
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("CITATION", "version: 0", "version: 7", "CITATION.cff has version 7"),
        ("CITATION", 'code: "https://', 'code: "https://other.', "CITATION.cff has the repository https://other."),
        ("CHANGELOG", "This will be 0", "This will be 7", "CHANGELOG.md has no section"),
        ("pyproject", 'Issues = "https://', 'Issues = "https://other.', "is not below https://"),
        ("init", '__version__ = "0', '__version__ = "7', "CITATION.cff has version 0"),
    ],
)
def test_a_file_that_disagrees(
    file: str, old: str, new: str, said: str, ready: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(ready, tmp_path, monkeypatch, **{file: (old, new)})
    assert any(said in line for line in ready.disagreements())


def test_what_may_be_published(ready: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = ready.version()
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = ("## [Unreleased]", f"## [{version}] - 2030-01-01\n\nFirst.\n\n## [0.0.1]")
    changes = {} if f"## [{version}]" in text else {"CHANGELOG": heading}
    copied(ready, tmp_path, monkeypatch, **changes)
    for name in ("pyproject.toml", "CITATION.cff"):
        path = tmp_path / name
        path.write_text(path.read_text(encoding="utf-8").replace("/OWNER/", "/somebody/"), encoding="utf-8")
    assert ready.obstacles(f"v{version}") == []
    assert ready.main([f"v{version}"]) == 0
    assert (tmp_path / "release-notes.md").read_text(encoding="utf-8") == f"{ready.section(version)}\n"
    assert ready.obstacles("v7.0.0") == [f"the tag is v7.0.0, the version {version}"]
    assert ready.main(["v7.0.0"]) == 1


def test_an_owner_and_a_section_are_missing(ready: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(ready, tmp_path, monkeypatch)
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        text = re.sub(r"github\.com/[^/\"]+/", "github.com/OWNER/", text).replace(f"## [{ready.version()}]", "## [x]")
        (tmp_path / name).write_text(text, encoding="utf-8")
    said = ready.obstacles(f"v{ready.version()}")
    assert any("names no owner" in line for line in said)
    assert f"CHANGELOG.md has no section {ready.version()}" in said


# ---- the README


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[a](docs/a.md)", "[a]({source}/blob/v{version}/docs/a.md)"),
        ("[a](./docs/a.md#part)", "[a]({source}/blob/v{version}/docs/a.md#part)"),
        ("![a](docs/a.png)", "![a]({source}/raw/v{version}/docs/a.png)"),
        (
            "[![a](docs/a.png)](docs/a.md)",
            "[![a]({source}/raw/v{version}/docs/a.png)]({source}/blob/v{version}/docs/a.md)",
        ),
        ('<img src="docs/a.png">', '<img src="{source}/raw/v{version}/docs/a.png">'),
        (
            "[a\nb](LICENSE) and [c](d.md)",
            "[a\nb]({source}/blob/v{version}/LICENSE) and [c]({source}/blob/v{version}/d.md)",
        ),
        ("[a](https://b/c) [d](#e) [f](mailto:g@h)", "[a](https://b/c) [d](#e) [f](mailto:g@h)"),
        ("```python\nx[0](y)\n```\n", "```python\nx[0](y)\n```\n"),
    ],
)
def test_links_become_absolute(before: str, after: str, index_readme: ModuleType) -> None:
    expected = after.replace("{source}", SOURCE).replace("{version}", VERSION)
    assert index_readme.absolute(before, SOURCE, VERSION) == expected


def test_the_readme_of_the_index_has_no_relative_link(index_readme: ModuleType) -> None:
    readme = index_readme.dynamic_metadata("readme", {})
    assert readme["content-type"] == "text/markdown"
    prose = re.sub(r"^```.*?^```", "", readme["text"], flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert len(links) > 10
    assert not [link for link in links if not link.startswith(("https://", "#"))]


def test_the_provider_takes_its_own_field_alone(index_readme: ModuleType) -> None:
    with pytest.raises(ValueError, match="this provides readme, without settings, got version"):
        index_readme.dynamic_metadata("version", {})


def test_sdist(tmp_path: Path) -> None:
    """Made without torch, nvcc and git; with what a build needs, and nothing that version control ignores."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    command = [sys.executable, "-c", SDIST, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("pycl_kernels-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        about = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert about is not None
        metadata = about.read().decode()
    needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pycl").rglob("*.py")}
    needed |= {"pyproject.toml", "CMakeLists.txt", "LICENSE", "release/index_readme.py", "release/smoke.py"}
    needed |= {"pycl/bench/__main__.py", "pycl/triton_kernels/forward.py", "pycl/py.typed"}
    assert needed <= names
    assert not [name for name in names if re.search(r"__pycache__|\.so$|^build/|^\.git/|\.pyc$", name)]
    assert "Name: pycl-kernels" in metadata
    assert "](docs/" not in metadata


# ---- wheels


def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8"))
    return found


def test_the_workflow_publishes_tags_alone() -> None:
    jobs = workflow()["jobs"]
    assert set(jobs) == {"sdist", "wheels", "torch", "publish"}
    writes = {name for name, job in jobs.items() if "write" in json.dumps(job.get("permissions", {}))}
    assert writes == {"publish"}
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert set(jobs["publish"]["needs"]) == {"sdist", "wheels", "torch"}
    steps = [step.get("run", step.get("uses", "")) for step in jobs["publish"]["steps"]]
    checked = next(i for i, step in enumerate(steps) if "release/ready.py" in step)
    published = next(i for i, step in enumerate(steps) if "gh-action-pypi-publish" in step)
    assert checked < published


def test_the_workflow_runs_what_exists() -> None:
    for job in workflow()["jobs"].values():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            for name in re.findall(r"\b(?:release|tests)/[\w./]+", step.get("run", "")):
                assert (ROOT / name).exists(), name


def test_wheels_are_of_the_pythons_that_the_classifiers_name() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (built,) = re.findall(r'^build = "([^"]+)"', text, re.MULTILINE)
    versions = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert built.split() == [f"cp3{minor}-*" for minor in versions]
    (least,) = re.findall(r'^requires-python = ">=3\.(\d+)"', text, re.MULTILINE)
    assert versions[0] == least


def test_the_smoke_test_refuses_a_checkout(tmp_path: Path) -> None:
    """It tries an installed wheel; the sources on the path would hide a broken one."""
    command = [sys.executable, str(ROOT / "release" / "smoke.py")]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is the checkout, not the wheel" in done.stderr
