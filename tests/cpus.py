# SPDX-License-Identifier: Apache-2.0
"""The tests that see how a CPU rounds, as on CPUs with less than this one has: ``python tests/cpus.py [OPTION ...]``.

Triton's interpreter computes with NumPy, the reference backend and the tests' own formulas with torch. Both choose
their loops by the CPU, NumPy's OpenBLAS its products, and these differ in more than the last bit of a sum: one gives a
tile and its transpose the same product, another does not. ``pytest`` alone has run everything as this CPU does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WIDEST = "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"  # of all NumPy's versions
CPUS = {
    "avx2": {
        "PYCL_CPU_ISA": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",  # a tile and its transpose differ: Zen's kernels, too
        "NPY_DISABLE_CPU_FEATURES": WIDEST,
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "generic": {
        "PYCL_CPU_ISA": "generic",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": f"{WIDEST} X86_V3 AVX2 FMA3",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
}
# those of test_cpu*.py go through every instruction set by themselves
TESTS = [
    "autograd", "average", "cross_entropy", "engine", "features", "losses", "maps", "matrix", "matrix_autograd",
    "mean_logit", "metrics", "properties", "similarity", "sinkhorn", "swav", "triton", "triton_average", "triton_group",
    "triton_logistic", "triton_sinkhorn",
]  # fmt: skip
# A kernel that the CPU lacks an instruction for ends its process.
PROBE = """
import numpy, threadpoolctl, torch
from pycl.backends import cpu
assert numpy.ones((99, 99), "f").dot(numpy.ones((99, 99), "f")).sum() == torch.ones(99, 99).mm(torch.ones(99, 99)).sum()
print(*(lib["architecture"] for lib in threadpoolctl.threadpool_info() if lib["internal_api"] == "openblas"), cpu.ISA)
"""


def python(*arguments: str, variables: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, text=True, check=False, **options)


def kernels(variables: dict[str, str]) -> str:
    """Those of OpenBLAS and of pycl that run under these variables."""
    done = python("-c", PROBE, variables=variables, capture_output=True)
    return done.stdout.strip() if done.returncode == 0 else "nothing"


def main(options: list[str]) -> int:
    """1 where a test failed."""
    own, failed = kernels({}), False
    tests = [str(path) for name in TESTS for path in (ROOT / "tests").glob(f"*/test_{name}.py")]
    for name, variables in CPUS.items():
        wanted = f"{variables['OPENBLAS_CORETYPE']} {variables['PYCL_CPU_ISA']}"
        if wanted == own:
            print(f"tests as on a CPU with {name}: skipped, this is one", flush=True)
        elif (found := kernels(variables)) != wanted:
            print(f"tests as on a CPU with {name}: skipped, {found} runs here where {wanted} should", flush=True)
        else:
            print(f"tests as on a CPU with {name}: {wanted} (this one's: {own})", flush=True)
            with tempfile.TemporaryDirectory() as cache:
                # of another CPU Inductor takes kernels from its cache that return something else, or do not compile
                variables = variables | {"TORCHINDUCTOR_CACHE_DIR": cache}
                failed |= python("-m", "pytest", *tests, *options, variables=variables).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
