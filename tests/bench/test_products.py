# SPDX-License-Identifier: Apache-2.0
"""The rates of the products alone: all of them measured, in a table, or a word why not."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from pycl.backends.registry import why_not
from pycl.bench import products

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu

ISA = "avx512" if cpu.ISA.startswith(("avx512", "amx")) else cpu.ISA
compiles = pytest.mark.skipif(
    ISA not in products.FLAGS or not shutil.which(os.environ.get("CXX", "g++")), reason="nothing to compile them with"
)


@compiles
def test_every_product_of_every_provider_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "N", 2 * products.BLOCK)
    monkeypatch.setattr(products, "ROUNDS", 1)
    before = torch.get_num_threads()
    try:
        found = products.rates(ISA, 64)
    finally:
        torch.set_num_threads(before)
    assert {*found} == {"pycl", "torch", "numpy"}
    assert all(len(rates) == 3 and min(rates) > 0.1 for rates in found.values())


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    products.compiled.cache_clear()
    monkeypatch.setenv("CXX", "no-compiler-has-this-name")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # main() sets them
    monkeypatch.setattr(products, "table", lambda isa: products.compiled(isa) and "")
    assert products.main([]) == 2
    assert "compiler" in capsys.readouterr().err or ISA not in products.FLAGS
