# SPDX-License-Identifier: Apache-2.0
"""Soft InfoNCE: what its teacher may be, and the two ends between which it lies."""

from __future__ import annotations

import pytest
import torch
from helpers.oracle import FLOOR
from torch import Tensor

import pycl.functional as F

N, D = 9, 6
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "both"])


def make(*shape: int, n: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*(shape or (N, D)), dtype=dtype, requires_grad=True) for _ in range(n)]


@SYMMETRIC
def test_a_student_that_is_its_teacher_has_learnt(symmetric: bool, backend: str) -> None:
    query, key = make(n=2)
    value = F.soft_info_nce(
        query, key, query, key, symmetric=symmetric, temperature=0.2, teacher_temperature=0.2, backend=backend
    )
    s = F.similarity(query, key).detach() / 0.2
    sides = (s, s.T) if symmetric else (s,)
    entropies = [torch.distributions.Categorical(logits=side).entropy().mean() for side in sides]
    torch.testing.assert_close(value, torch.stack(entropies).mean())
    for gradient in torch.autograd.grad(value, (query, key)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


@SYMMETRIC
def test_a_teacher_that_is_sure_of_the_own_key_is_info_nce(symmetric: bool, backend: str) -> None:
    query, key = make(n=2)
    sure = torch.eye(N)
    value = F.soft_info_nce(query, key, sure, sure, teacher_temperature=0.01, symmetric=symmetric, backend=backend)
    torch.testing.assert_close(value, F.info_nce(query, key, temperature=0.07, symmetric=symmetric, backend=backend))


@SYMMETRIC
def test_the_teacher_is_a_constant(symmetric: bool, backend: str) -> None:
    inputs = [*make(n=2), *make(N, 11, n=2)]
    temperatures = [torch.tensor(0.1, requires_grad=True) for _ in range(2)]
    options = {"temperature": temperatures[0], "teacher_temperature": temperatures[1], "backend": backend}
    value = F.soft_info_nce(*inputs, symmetric=symmetric, **options)
    found = torch.autograd.grad(value, [*inputs, *temperatures], allow_unused=True)
    assert [gradient is None for gradient in found] == [False, False, True, True, False, True]
    student, teacher = inputs[:2], [5 * x for x in inputs[2:]]
    torch.testing.assert_close(F.soft_info_nce(*student, *teacher, symmetric=symmetric, **options), value)


@pytest.mark.parametrize("teacher", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("student", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_student_has_the_say_over_precision(student: torch.dtype, teacher: torch.dtype) -> None:
    inputs = [x.detach().to(dtype) for x, dtype in zip(make(), [student] * 2 + [teacher] * 2, strict=True)]
    wide = torch.float64 if student == torch.float64 else torch.float32
    found = F.soft_info_nce(*inputs)
    assert found.dtype == wide
    wanted = F.soft_info_nce(*(x.double() for x in inputs))
    rounded = torch.bfloat16 if torch.bfloat16 in (student, teacher) and wide == torch.float32 else wide
    torch.testing.assert_close(found, wanted.to(wide), rtol=FLOOR[rounded], atol=0)
