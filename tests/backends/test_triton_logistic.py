# SPDX-License-Identifier: Apache-2.0
"""Binary logistic losses of Triton's kernels to float32's last digits, whatever the logit."""

from __future__ import annotations

import pytest
import torch
from helpers.global_settings import matmul_precision
from torch import Tensor

from pycl import Pairs, Points, pair_sum
from pycl.backends.registry import why_not

if reason := why_not("triton", torch.get_default_device().type):
    pytest.skip(reason, allow_module_level=True)

N = 256  # two blocks of columns: every tile is whole
PAIRS = {"negatives": Pairs.ALL, "positives": Pairs.NONE}, {"negatives": Pairs.NONE, "positives": Pairs.ALL}
SETS = pytest.mark.parametrize("sets", PAIRS, ids=("negatives", "positives"))
# A thread adds or joins up to 32 numbers one after the other, each time rounded by 2^-24 at most; the hardware's
# exponential and logarithm are 2^-22 wrong.
LAST_DIGITS = 40 * 2**-24 + 2 * 2**-22


def values() -> Tensor:
    """Logits where 1 + e loses digits of e, where it is e, where e is denormal or zero, and around all of that."""
    sizes = torch.cat([torch.logspace(-30, 2, N // 4 - 4, base=10), torch.tensor([0.0, 87.0, 300.0, 3e4])])
    near = torch.linspace(-25, 25, N - 2 * len(sizes))
    return torch.cat([sizes, -sizes, near])[torch.randperm(N)]


def losses(row_bias: Tensor, col_bias: Tensor, sets: dict[str, Pairs]) -> list[Tensor]:
    """The sum over the pairs of every row, whose logits are two biases, and the biases' gradients."""
    biases = {"row_bias": row_bias.clone().requires_grad_(), "col_bias": col_bias.clone().requires_grad_()}
    zero = torch.zeros(N, 4)
    with matmul_precision("highest"):
        sums = pair_sum(Points(zero), Points(zero), offset=None, backend="triton", **sets, **biases)
        return [sums.detach(), *torch.autograd.grad(sums.sum(), list(biases.values()))]


def softplus(logits: Tensor) -> Tensor:
    return torch.nn.functional.softplus(logits.double(), threshold=40)


def assert_close(found: Tensor, wanted: Tensor, logits: Tensor, below: float) -> None:
    """Numbers above ``below`` agree to as many digits as a rounded logit leaves, others to as many of ``below``."""
    error = (found.double() - wanted).abs() / wanted.abs().clamp_min(below)
    most = LAST_DIGITS + 2**-23 * logits.double().abs().clamp_max(1e3)  # a product with 1 / log 2, and that itself
    worst = (error / most).argmax()
    assert error[worst] <= most[worst], f"{error[worst]:.3g} of {wanted[worst]:.9g}, at most {most[worst]:.3g}"


@SETS
def test_equal_losses_of_a_row(sets: dict[str, Pairs]) -> None:
    """A sum of small terms that all round alike, and products as large as they get: softplus(0) = log 2."""
    logits = values()
    sign = 1 if sets["negatives"] else -1
    sums, *_ = losses(logits, torch.zeros(N), sets)
    assert_close(sums, N * softplus(sign * logits), logits, 1e-35)


@SETS
def test_unequal_losses_of_a_row(sets: dict[str, Pairs]) -> None:
    logits = values().clamp(-60, 60)
    sign = 1 if sets["negatives"] else -1
    rows = torch.full((N,), sign * -1e4)  # without a loss,
    rows[77] = 0.0  # but for one, which has all of the gradient
    sums, _, gradient = losses(rows, logits, sets)
    wanted = torch.zeros(N, dtype=torch.float64)
    wanted[77] = softplus(sign * logits).sum()
    assert_close(sums, wanted, torch.zeros(N), 1e-35)
    assert_close(gradient, sign * (sign * logits.double()).sigmoid(), logits, 1e-35)


@SETS
def test_infinite_logits(sets: dict[str, Pairs]) -> None:
    logits = torch.zeros(N)
    logits[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    sums, gradient, _ = losses(logits, torch.zeros(N), sets)
    wanted = N * softplus(logits if sets["negatives"] else -logits)
    wanted[1] = 0  # of -inf: such a pair was dropped
    assert torch.equal(sums[:3].nan_to_num(7.0, 9.0), wanted[:3].float().nan_to_num(7.0, 9.0))
    assert gradient[2].isnan()
    assert torch.equal(gradient[:2], N * torch.tensor([1.0, 0.0] if sets["negatives"] else [0.0, 0.0]))
    assert sums[3:].isfinite().all()
