# SPDX-License-Identifier: Apache-2.0
"""``record.py`` takes the names of test modules and refuses others; a drop-in is wherever one has to be."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from parity import GOLDEN
from record import chosen, with_peers

import pycl.compat
from pycl.compat._explain import DROP_INS, DropIn

ROOT = Path(__file__).parent.parent.parent


def test_names_with_and_without_the_prefix() -> None:
    assert chosen(["info_nce", "test_lightly"]) == ["info_nce", "lightly"]
    assert chosen([]) == with_peers()


@pytest.mark.parametrize("name", ["nothing", "names"])  # no module, and one of ours
def test_a_wrong_name_is_an_error_that_lists_the_names(name: str) -> None:
    with pytest.raises(SystemExit, match=rf"no library is behind {name}; there are grad_cache, info_nce, "):
        chosen(["info_nce", name])


def test_every_record_has_a_module() -> None:
    peers = {importlib.import_module(f"test_{name}").PEER for name in with_peers()}
    assert peers == {path.stem for path in GOLDEN.glob("*.json")}


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="runs in a checkout")
@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda drop_in: drop_in.module)
def test_a_drop_in_is_in_every_place(drop_in: DropIn) -> None:
    """The places that CONTRIBUTING.md lists; whether it is in the bench is for its author to say."""
    library = drop_in.module.removesuffix(".losses")
    assert library in pycl.compat.__doc__
    assert any(f"`{library}`" in row or f"from {library} import" in row for row in rows("docs/drop-ins.md"))
    assert drop_in.distribution in {path.stem for path in GOLDEN.glob("*.json")}
    if drop_in.distribution not in {"SupContrast", "solo-learn"}:  # not on PyPI
        pinned = {line.split("==")[0] for line in rows("constraints.txt") if "==" in line}
        assert f'"{drop_in.distribution}' in "\n".join(rows("pyproject.toml"))
        assert drop_in.distribution in pinned


def rows(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()
