# SPDX-License-Identifier: Apache-2.0
"""Whether an installed wheel works: ``python release/smoke.py [--pure]``, beside any torch, without the sources' tests.

NT-Xent and CLIP, value and gradients, on every instruction set of this CPU, against the dense formula in float64. With
``--pure`` the wheel must have no compiled part, and the reference backend is what computes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import pycl
from pycl.backends import compiled, registry

TOLERANCE = 1e-5  # float32, of the largest entry


def nt_xent(z: Tensor) -> Tensor:
    points = F.normalize(z.flatten(0, 1), dim=-1)
    n = z.shape[1]
    logits = (points @ points.T / 0.5).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def clip(z: Tensor) -> Tensor:
    logits, own = 10 * z[0] @ z[1].T, torch.arange(z.shape[1])
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


LOSSES = {
    "nt_xent": (lambda z: pycl.functional.nt_xent(z, temperature=0.5), nt_xent),
    "clip": (lambda z: pycl.functional.clip(z[0], z[1], 10.0), clip),
}


def error(name: str, z: Tensor) -> float:
    """The largest difference of value and gradient from float64, relative to the largest entry."""
    found = []
    for loss, x in zip(LOSSES[name], (z, z.double()), strict=True):
        x = x.clone().requires_grad_()
        value = loss(x)
        found.append(torch.cat([value.detach().double().view(1), torch.autograd.grad(value, x)[0].double().flatten()]))
    ours, dense = found
    return float((ours - dense).abs().max() / dense.abs().max())


def isas(pure: bool) -> list[str | None]:
    """The instruction sets to try; fails where the wheel is not of the kind that is asked for."""
    why_not = registry.why_not("cpu", "cpu")
    if pure:
        assert why_not is not None, "the wheel should have no compiled part"
        return [None]
    assert why_not is None, why_not
    return list(compiled.extension().supported_isas())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--pure", action="store_true", help="the wheel is the one of Python alone")
    pure = parser.parse_args().pure
    package = Path(pycl.__file__).resolve().parent
    assert package.parent != Path(__file__).resolve().parent.parent, f"{package} is the checkout, not the wheel"
    assert pycl.__version__ == importlib.metadata.version("pycl-kernels")
    torch.manual_seed(0)
    z = F.normalize(torch.randn(2, 37, 24), dim=-1)
    failed = False
    for isa in isas(pure):
        if isa is not None:
            compiled.extension().select_isa(isa)
        for name in LOSSES:
            apart = error(name, z)
            failed |= not apart <= TOLERANCE
            print(f"{name:8} {isa or 'reference':14} {apart:.1e} from float64")
    print(f"pycl {pycl.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}, {package}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
