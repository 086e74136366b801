# SPDX-License-Identifier: Apache-2.0
"""Fixtures of drop-ins: a fallback is an error, unless a test wants it."""

from __future__ import annotations

import pytest

from pycl.compat import _peer


@pytest.fixture
def nothing_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peer, "_warned", set())
    monkeypatch.setenv("PYCL_STRICT", "1")


@pytest.fixture
def fallbacks(nothing_falls_back: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fallbacks are warnings in this test, those said before are said again."""
    monkeypatch.delenv("PYCL_STRICT")
