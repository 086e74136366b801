# SPDX-License-Identifier: Apache-2.0
"""The dtype of a drop-in's result is its library's, and so is what it takes: mixtures, numbers, temperatures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from parity import declare_torchvision, embeddings, peer
from torch import Tensor
from torch.nn.functional import normalize

declare_torchvision()

import pycl.compat.info_nce as info_nce  # noqa: E402
import pycl.compat.lightly as lightly  # noqa: E402
import pycl.compat.open_clip as open_clip  # noqa: E402
import pycl.compat.solo as solo  # noqa: E402
import pycl.compat.supcontrast as supcontrast  # noqa: E402

N, D = 8, 5
DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
INDEXES = torch.arange(N) // 2
Made = Callable[[Any, Tensor, Tensor], Any]


def distilled(m: Any, a: Tensor, b: Tensor) -> Tensor:
    contrastive, distill = m.DistillClipLoss()(a, b, 5.0, b, a, 3.0)
    return distill + 0 * contrastive.to(distill.dtype)


def banked(m: Any, a: Tensor, b: Tensor) -> Tensor:
    loss = m.NTXentLoss(0.3, (7, D))
    loss.memory_bank.bank = normalize(embeddings(7, D, 9, torch.float32), dim=1)
    return loss(a, b)


LIBRARIES = {"lightly": (lightly, "lightly.loss"), "open_clip": (open_clip, "open_clip.loss")} | {
    "info_nce": (info_nce, "info_nce")
}
MADE: dict[str, Made] = {
    "lightly NTXentLoss": lambda m, a, b: m.NTXentLoss(0.3)(a, b),
    "lightly DCLLoss": lambda m, a, b: m.DCLLoss(0.3)(a, b),
    "lightly DCLWLoss": lambda m, a, b: m.DCLWLoss(0.3)(a, b),
    "lightly DirectCLRLoss": lambda m, a, b: m.DirectCLRLoss(3, 0.3)(a, b),
    "lightly MACLLoss": lambda m, a, b: m.MACLLoss(0.3)(a, b),
    "lightly KoLeoLoss": lambda m, a, b: m.KoLeoLoss()(a),
    "lightly MSNLoss": lambda m, a, b: m.MSNLoss(0.5)(a, b, b),
    "lightly PMSNLoss": lambda m, a, b: m.PMSNLoss(0.5)(a, b, b),
    "lightly SwaVLoss": lambda m, a, b: m.SwaVLoss(sinkhorn_epsilon=0.5)([a, b], [a + b]),
    "open_clip ClipLoss": lambda m, a, b: m.ClipLoss()(a, b, 5.0, -1.0),
    "open_clip SigLipLoss": lambda m, a, b: m.SigLipLoss()(a, b, 5.0, -1.0),
    "open_clip DistillClipLoss": distilled,
    "info_nce InfoNCE": lambda m, a, b: m.InfoNCE()(a, b),
    "info_nce InfoNCE negatives": lambda m, a, b: m.InfoNCE()(a, b, (a + b).flip(0)),
}


def both(name: str) -> tuple[Any, Any]:
    ours, library = LIBRARIES[name.partition(" ")[0]]
    return ours, peer(library)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lightly copies a tensor by torch.tensor
        yield


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def assert_as(mine: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    assert mine.dtype == theirs.dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MADE)
def test_dtype_of_the_result(name: str, dtype: torch.dtype, half: torch.dtype | None) -> None:
    if half and dtype.itemsize == half.itemsize and dtype != half:
        pytest.skip("torch concatenates no two half types under autocast")
    a, b = (embeddings(N, D, seed, dtype) for seed in range(2))
    with autocast(half):
        mine, theirs = (MADE[name](m, a, b) for m in both(name))
    assert_as(mine, theirs, dtype if half is None or dtype == torch.float64 else half)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
@pytest.mark.parametrize("name", MADE)
def test_two_dtypes_under_autocast(name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """A student under autocast, a teacher outside."""
    a, b = (embeddings(N, D, seed, dtype) for seed, dtype in enumerate(dtypes))
    with autocast(torch.bfloat16):
        mine, theirs = (MADE[name](m, a, b) for m in both(name))
    assert_as(mine, theirs, torch.bfloat16)


MULTIPLIED = [name for name in MADE if name.split()[-1] not in ("SwaVLoss", "KoLeoLoss", "MACLLoss")]


@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)], ids=str)
@pytest.mark.parametrize("name", MULTIPLIED)
def test_two_dtypes_that_the_library_refuses(
    name: str, dtypes: tuple[torch.dtype, torch.dtype], half: torch.dtype | None
) -> None:
    if half and torch.float64 not in dtypes:
        pytest.skip("autocast makes them one")
    a, b = (embeddings(N, D, seed, dtype) for seed, dtype in enumerate(dtypes))
    for module in both(name):
        with autocast(half), pytest.raises(RuntimeError):
            MADE[name](module, a, b)


def dense_simclr(z: Tensor) -> Tensor:
    """solo-learn's operations."""
    u = normalize(z, dim=-1)
    similarity = torch.exp(torch.einsum("if, jf -> ij", u, u) / 0.3)
    same = INDEXES.unsqueeze(1) == INDEXES
    positive, negative = (similarity * (same & ~torch.eye(N, dtype=torch.bool))).sum(1), (similarity * ~same).sum(1)
    return -(positive / (positive + negative)).log().mean()


def dense_supcon(z: Tensor) -> Tensor:
    """SupContrast's operations for one view."""
    logits = torch.matmul(z, z.T) / 0.5
    logits = logits - logits.max(1, keepdim=True).values.detach()
    others = 1 - torch.eye(N)
    mask = (INDEXES.unsqueeze(1) == INDEXES).float() * others
    log_probability = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -(0.5 / 0.07) * ((mask * log_probability).sum(1) / mask.sum(1)).mean()


def dense_swav(z: Tensor) -> Tensor:
    """solo-learn's operations."""
    return -torch.mean(torch.sum(z.softmax(1) * torch.log_softmax(z.flip(0) / 0.1, dim=1), dim=1))


def dense_moco(z: Tensor) -> Tensor:
    """solo-learn's operations against a queue."""
    logits = torch.cat([torch.einsum("nc,nc->n", z, z.flip(0)).unsqueeze(1), torch.einsum("nc,kc->nk", z, 2 * z)], 1)
    return torch.nn.functional.cross_entropy(logits / 0.3, torch.zeros(N, dtype=torch.long))


def dense_moco3(z: Tensor) -> Tensor:
    """solo-learn's operations within the batch."""
    logits = torch.einsum("nc,mc->nm", normalize(z, dim=1), normalize(z.flip(0), dim=1)) / 0.3
    return torch.nn.functional.cross_entropy(logits, torch.arange(N)) * (2 * 0.3)


def dense_ressl(z: Tensor) -> Tensor:
    """solo-learn's operations for soft targets."""
    student, teacher = (torch.einsum("nc,kc->nk", x, 2 * z) for x in (z, z.flip(0)))
    return -torch.sum(torch.softmax(teacher / 0.5, dim=1) * torch.log_softmax(student / 0.3, dim=1), dim=1).mean()


@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("loss", "dense"),
    [
        (lambda z: solo.simclr_loss_func(z, INDEXES, 0.3), dense_simclr),
        (lambda z: solo.swav_loss_func([z, z.flip(0)], [z.softmax(1)]), dense_swav),
        (lambda z: solo.mocov2plus_loss_func(z, z.flip(0), 2 * z.t(), 0.3), dense_moco),
        (lambda z: solo.mocov3_loss_func(z, z.flip(0), 0.3), dense_moco3),
        (lambda z: solo.ressl_loss_func(z, z.flip(0), 2 * z, 0.3, 0.5), dense_ressl),
        (lambda z: supcontrast.SupConLoss(0.5)(z.unsqueeze(1), INDEXES), dense_supcon),
    ],
    ids=["solo simclr", "solo swav", "solo mocov2plus", "solo mocov3", "solo ressl", "SupConLoss"],
)
def test_dtype_of_what_has_no_package(
    loss: Callable[[Tensor], Tensor],
    dense: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    half: torch.dtype | None,
) -> None:
    z = embeddings(N, D, 0, dtype)
    with autocast(half):
        assert_as(loss(z), dense(z), dtype if half is None else half)


NUMBERS = [np.float32(0.5), np.float64(0.5), np.int64(1), np.array(0.5), torch.tensor(0.5), torch.tensor(1), True + 1]
TAKING: dict[str, Callable[[Any, Tensor, Tensor, Any], Tensor]] = {
    "lightly NTXentLoss": lambda m, a, b, t: m.NTXentLoss(t)(a, b),
    "lightly DCLLoss": lambda m, a, b, t: m.DCLLoss(t, lambda u, v: (u * v).sum(1))(a, b),
    "lightly DCLWLoss": lambda m, a, b, t: m.DCLWLoss(t)(a, b),
    "lightly DirectCLRLoss": lambda m, a, b, t: m.DirectCLRLoss(3, t)(a, b),
    "lightly MACLLoss": lambda m, a, b, t: m.MACLLoss(t)(a, b),
    "lightly KoLeoLoss": lambda m, a, b, t: m.KoLeoLoss(2, t)(a),
    "lightly MSNLoss": lambda m, a, b, t: m.MSNLoss(t, 3, t)(a, b, b, t),
    "lightly SwaVLoss": lambda m, a, b, t: m.SwaVLoss(t, np.int64(2), t)([a, b], []),
    "open_clip ClipLoss": lambda m, a, b, t: m.ClipLoss()(a, b, t),
    "open_clip SigLipLoss": lambda m, a, b, t: m.SigLipLoss()(a, b, t, t),
    "info_nce InfoNCE": lambda m, a, b, t: m.InfoNCE(t)(a, b),
}


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", TAKING)
def test_numbers(name: str, number: Any) -> None:
    if isinstance(number, np.ndarray) and name.startswith(("open_clip", "lightly M", "lightly K")):
        pytest.skip("NumPy's array times a tensor is no tensor, in these")
    a, b = (embeddings(N, D, seed, torch.float32) for seed in range(2))
    mine, theirs = (TAKING[name](m, a, b, number) for m in both(name))
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [-0.4, np.float32(-0.4), torch.tensor(-0.4)], ids=repr)
@pytest.mark.parametrize("name", ["info_nce InfoNCE", "lightly NTXentLoss", "lightly DCLLoss"])
def test_a_negative_temperature(name: str, temperature: Any) -> None:
    a, b = (embeddings(N, D, seed) for seed in range(2))
    mine, theirs = (TAKING[name](m, a, b, temperature) for m in both(name))
    torch.testing.assert_close(mine, theirs)


def test_a_negative_temperature_of_what_has_no_package() -> None:
    z = embeddings(N, D, 0)
    u, own = normalize(z, dim=1), torch.eye(N, dtype=torch.bool)
    s = (u @ u.T / -0.4).masked_fill(own, -torch.inf)
    positive = (INDEXES.unsqueeze(1) == INDEXES) & ~own
    found = s.logsumexp(1) - s.masked_fill(~positive, -torch.inf).logsumexp(1)
    torch.testing.assert_close(solo.simclr_loss_func(z, INDEXES, -0.4), found.mean())
    means = s.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    loss = supcontrast.SupConLoss(-0.4, base_temperature=-0.4)(u.unsqueeze(1), INDEXES)
    torch.testing.assert_close(loss, (s.logsumexp(1) - means).mean())
    logits = u @ u.flip(0).T / -0.4
    loss = solo.nnclr_loss_func(z, z.flip(0), -0.4)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.arange(N)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    """A step that overflowed is skipped by a GradScaler, which needs the NaN."""
    scores = embeddings(N, D, 0, torch.float32)
    scores[2, 3] = bad
    library = peer("lightly.loss.swav_loss")
    loss = lightly.SwaVLoss()([scores.requires_grad_(), scores.flip(0)], [])
    loss.backward()
    assert not loss.isfinite()
    assert not library.SwaVLoss()([scores, scores.flip(0)], []).isfinite()
    if bad != -torch.inf:  # which rules a pair out
        assert not scores.grad.isfinite().all()
        assert lightly.sinkhorn(scores).isnan().all()
        assert solo.SinkhornKnopp()(scores).isnan().all()
        assert library.sinkhorn(scores).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_candidate_alone_is_exactly_zero(dtype: torch.dtype) -> None:
    for seed in range(40):
        a, b = (embeddings(1, 7, seed + k, dtype).requires_grad_() for k in range(2))
        pair = torch.stack((a, b), 1)
        losses = [
            lightly.NTXentLoss(1.0)(a, b),
            lightly.DirectCLRLoss(64, 1.0)(a, b),
            lightly.MACLLoss()(a, b),
            supcontrast.SupConLoss()(pair),
            supcontrast.SupConLoss()(pair, mask=torch.tensor([[0.7]])),
            supcontrast.SupConLoss(contrast_mode="one")(pair),
            supcontrast.SupConLoss()(torch.stack((a, b)).flatten(0, 1).unsqueeze(1), torch.zeros(2)),
            solo.simclr_loss_func(torch.cat((a, b)), torch.zeros(2, dtype=torch.long)),
            open_clip.ClipLoss()(a, b, torch.tensor(5.0, requires_grad=True), 1.0),
            info_nce.info_nce(a, b),
            info_nce.info_nce(a, b, reduction="none"),
            solo.nnclr_loss_func(a, b),
            solo.mocov3_loss_func(a, b),
        ]
        assert [loss.item() for loss in losses] == [0.0] * len(losses)
        assert not any(g.any() for loss in losses for g in torch.autograd.grad(loss.sum(), (a, b)))


def test_one_pair_has_no_soft_target() -> None:
    peer("open_clip.loss")
    a, b = (embeddings(1, 7, seed, torch.float32) for seed in range(2))
    scale = torch.tensor(5.0, requires_grad=True)
    losses = open_clip.DistillClipLoss()(a, b, scale, b, a, 3.0)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert scale.grad == 0
