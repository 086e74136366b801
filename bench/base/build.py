# SPDX-License-Identifier: Apache-2.0
"""Builds another commit of the checkout, once: neither its files nor the installed package change.

A build lies in ``$XDG_CACHE_HOME/pycl/bench``, by default ``~/.cache/pycl/bench``, in a folder with the name of its
commit, the interpreter and what of the environment changes a build. Deleting the folder has it built again. Its sources
are a git worktree that is removed when it is done.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

CHANGES_A_BUILD = ("PYCL_CPU", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS")
NO_COMPILER = re.compile(
    "CMAKE_CXX_COMPILER (?:not set|could be found)|C\\+\\+ compiler.{,300}is not able to compile", re.DOTALL
)
REASONS = (  # what a line of a failed build says, the cause before what follows from it
    re.compile(r": (?:fatal )?error: "),  # the compiler
    re.compile(r"^pycl: backend="),  # CMakeLists.txt
    re.compile(r"^ERROR: |No module named"),  # pip
)


class CannotBuild(RuntimeError):
    """The commit cannot be found or built; the message is one line."""


class Build(NamedTuple):
    """A commit that can be imported."""

    ref: str  # as it was asked for
    commit: str
    folder: Path  # that has the package ``pycl``


def built(ref: str, root: Path) -> Build:
    """The build of a commit, from the cache where it is there.

    Args:
        ref: anything that git resolves to a commit.
        root: of the checkout.

    Raises:
        CannotBuild: no checkout, no such commit, no compiler, or the build fails.
    """
    commit = commit_of(ref, root)
    folder = cache() / folder_name(commit)
    if not (folder / "pycl").is_dir():
        print(f"pycl.bench: building {ref} ({commit[:10]}) into {folder}: minutes, but once", file=sys.stderr)
        _build(commit, root, folder)
    return Build(ref, commit, folder)


def commit_of(ref: str, root: Path) -> str:
    """The hash of a commit; raises ``CannotBuild``."""
    if not (root / ".git").exists():
        raise CannotBuild(f"pycl is imported from {root}, which is not a git checkout")
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError as error:
        said = _last_line(error.stderr)
        raise CannotBuild(f"git knows no such commit{f': {said}' if said else ''}") from None


def cache() -> Path:
    """The folder of all builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pycl" / "bench"


def folder_name(commit: str) -> str:
    """What tells builds apart."""
    set_here = "\n".join(f"{name}={os.environ[name]}" for name in CHANGES_A_BUILD if name in os.environ)
    variant = f"-{hashlib.sha256(set_here.encode()).hexdigest()[:8]}" if set_here else ""
    return f"{commit[:12]}-{sys.implementation.cache_tag}-{platform.machine()}{variant}"


def _build(commit: str, root: Path, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=folder.parent) as temporary:
            tree, site = Path(temporary, "tree"), Path(temporary, "site")
            _git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
            try:
                _install(tree, site, folder.with_name(f"{folder.name}.log"))
            finally:
                _git(root, "worktree", "remove", "--force", str(tree))
            if not (folder / "pycl").is_dir():  # another run may have been faster
                site.rename(folder)
    except OSError as error:
        raise CannotBuild(f"it cannot be built in {folder.parent}: {error}") from None
    except subprocess.CalledProcessError as error:
        raise CannotBuild(f"its sources cannot be checked out: {_last_line(error.stderr)}") from None


def _install(tree: Path, site: Path, log: Path) -> None:
    """As ``make`` does, but a compiled part that cannot be built is an error: plain torch would be compared."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps")
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), "."]
    environment = {"PYCL_CPU": "ON"} | os.environ | {"PYCL_CUDA": "OFF"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        output = done.stdout + done.stderr
        log.write_text(output)
        raise CannotBuild(f"its build failed: {reason_in(output)} (the whole output: {log})")


def reason_in(output: str) -> str:
    """Why a build failed, in a line."""
    if NO_COMPILER.search(output):
        return "there is no C++ compiler that works"
    lines = [line.strip() for line in output.splitlines()]
    telling = (line for reason in REASONS for line in lines if reason.search(line))
    return next(telling, _last_line(output) or "it said nothing")[:200]


def _git(root: Path, *arguments: str) -> str:
    # hooks of the checkout are about its own files
    command = ["git", "-C", str(root), "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        raise CannotBuild("git is not installed") from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
