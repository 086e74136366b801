# SPDX-License-Identifier: Apache-2.0
"""Wrong calls raise an error that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pycl
import pycl.functional as F
from pycl.backends import registry
from pycl.modules.base import Loss
from pycl.testing.table import LOSSES, LossRow

ON_VIEWS = {
    "nt_xent": F.nt_xent,
    "pairwise_nt_xent": F.pairwise_nt_xent,
    "dcl": F.dcl,
    "dclw": F.dclw,
    "dhel": F.dhel,
    "mv_dhel": F.mv_dhel,
    "mv_info_nce": F.mv_info_nce,
    "poly_view": F.poly_view,
    "sup_con": lambda views, **options: F.sup_con(views, torch.arange(4), **options),
}
ON_PAIRS = {
    "info_nce": F.info_nce,
    "clip": lambda x, y, **options: F.clip(x, y, 10.0, **options),
    "siglip": lambda x, y, **options: F.siglip(x, y, 10.0, -10.0, **options),
    "alignment": F.alignment,
}
MODULES = [module for name in pycl.modules.__all__ if issubclass(module := getattr(pycl, name), Loss)]
views_losses = pytest.mark.parametrize("loss", ON_VIEWS.values(), ids=ON_VIEWS)
pair_losses = pytest.mark.parametrize("loss", ON_PAIRS.values(), ids=ON_PAIRS)
with_temperature = pytest.mark.parametrize(
    "loss", [row for row in LOSSES.values() if "temperature" in row.scalars], ids=lambda row: row.name
)

A, B = torch.randn(2, 4, 3)
IDS = torch.arange(4)


def on_meta(n: int = 4, d: int = 3) -> torch.Tensor:
    return torch.empty(n, d, device="meta")


@views_losses
@pytest.mark.parametrize(
    ("views", "error", "message"),
    [
        ([A, B[:3]], ValueError, "view.* shape"),
        ([A, B[:, :2]], ValueError, "view.* shape"),
        (A, ValueError, "views.* shape"),
        ([A[0], B[0]], ValueError, "view.* shape"),
        (torch.zeros(2, 0, 3), ValueError, "views"),
        (torch.zeros(2, 4, 0), ValueError, "d >= 1"),
        ([], ValueError, "two views"),
        ([A.long(), B.long()], TypeError, "floating"),
        ([A, B.double()], ValueError, "dtype"),
        ([A, on_meta()], ValueError, "device"),
        ([A.tolist(), B.tolist()], TypeError, "tensor"),
    ],
    ids=[
        "instances",
        "features",
        "matrix",
        "vectors",
        "empty",
        "no_features",
        "none",
        "integers",
        "dtypes",
        "devices",
        "lists",
    ],
)
def test_views(loss: Callable[..., Any], views: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss(views)


@views_losses
def test_one_view(loss: Callable[..., Any]) -> None:
    if loss is ON_VIEWS["sup_con"]:
        assert loss([A]) == 0  # classes take the place of views; here every class is met once
        return
    for views in (A[None], [A]):
        with pytest.raises(ValueError, match="two views"):
            loss(views)


@pytest.mark.parametrize("name", ["dcl", "dclw", "dhel"])
def test_three_views(name: str) -> None:
    with pytest.raises(ValueError, match=r"views.* two"):
        ON_VIEWS[name](torch.randn(3, 4, 3))


@pair_losses
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (A, B[:3], ValueError, "shape"),
        (A, B[:, :2], ValueError, "features"),
        (A[0], B[0], ValueError, "shape"),
        (A[:0], B[:0], ValueError, "shape"),
        (A.long(), B, TypeError, "floating"),
        (A, B.long(), TypeError, "floating"),
        (A, on_meta(), ValueError, "on cpu"),
        (A.tolist(), B, TypeError, "tensor"),
    ],
    ids=["instances", "features", "vectors", "empty", "integer_x", "integer_y", "devices", "list"],
)
def test_pairs(loss: Callable[..., Any], x: Any, y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss(x, y)


@with_temperature
@pytest.mark.parametrize(
    ("temperature", "error"),
    [
        (0.0, ValueError),
        (-0.1, ValueError),
        (torch.nan, ValueError),
        (torch.inf, ValueError),
        (torch.tensor(0.0), ValueError),
        (torch.tensor(-1.0, requires_grad=True), ValueError),
        (torch.ones(2), ValueError),
        (torch.tensor(1j), TypeError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
    ids=str,
)
def test_temperature(loss: LossRow, temperature: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="temperature"):
        loss(loss.make(2, 4, 3), {"temperature": temperature})


@pytest.mark.parametrize("loss", [row for row in LOSSES.values() if row.reducible], ids=lambda r: r.name)
def test_reduction(loss: LossRow) -> None:
    with pytest.raises(ValueError, match=r"reduction.*'mean', 'sum', 'none'.*'average'"):
        loss(loss.make(2, 4, 3), loss.scalars, reduction="average")


@pytest.mark.parametrize("loss", [row for row in LOSSES.values() if row.engine], ids=lambda r: r.name)
def test_backend(loss: LossRow) -> None:
    inputs = loss.make(2, 4, 3)
    with pytest.raises(ValueError, match=r"backend.*'magma'"):
        loss(inputs, loss.scalars, backend="magma")
    absent = next(name for name in registry.BACKENDS if name not in registry.installed("cpu"))
    with pytest.raises(RuntimeError, match=f"backend='{absent}'"):
        loss(inputs, loss.scalars, backend=absent)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_group(loss: LossRow) -> None:
    with pytest.raises(TypeError, match="group"):
        loss(loss.make(2, 4, 3), loss.scalars, group=object())


def guided(**options: Any) -> torch.Tensor:
    return F.guided_info_nce(A, B, **{"guide_query": A, "guide_key": B, **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.mv_info_nce([A, B], denominator="some"), ValueError, "denominator.*'all', 'cross_view'"),
        (lambda: F.poly_view([A, B], mean="harmonic"), ValueError, "mean.*'geometric', 'arithmetic'"),
        (lambda: F.sup_con([A, B], torch.arange(4), form="inside"), ValueError, "form.*'out', 'in'"),
        (lambda: F.sup_con([A, B], torch.arange(3)), ValueError, r"labels.*\[4\]"),
        (lambda: F.sup_con([A], torch.arange(3)), ValueError, r"labels.*\[4\]"),
        (lambda: F.sup_con([A, B], torch.arange(8).view(4, 2)), ValueError, "labels"),
        (lambda: F.sup_con([A, B], torch.arange(4.0)), TypeError, "labels"),
        (lambda: F.sup_con([A, B], [0, 1, 2, 3]), TypeError, "labels"),  # type: ignore[arg-type]
        (lambda: F.sup_con([A, B], torch.empty(4, dtype=torch.long, device="meta")), ValueError, "labels.* on cpu"),
        (lambda: F.info_nce(A, B, torch.randn(5, 2, 3)), ValueError, r"negatives .* \[4, M, 3\], of each query's own"),
        (lambda: F.info_nce(A, B, torch.randn(4, 0, 3)), ValueError, "negatives .* M >= 1"),
        (lambda: F.info_nce(A, B, torch.randn(4, 2, 5)), ValueError, "negatives.* features"),
        (lambda: F.info_nce(A, B, torch.ones(4, 2, 3).long()), TypeError, "negatives.* floating"),
        (lambda: F.info_nce(A, B, label_smoothing=1.5), ValueError, "label_smoothing"),
        (lambda: F.info_nce(A, B, label_smoothing=None), TypeError, "label_smoothing"),  # type: ignore[arg-type]
        (lambda: F.info_nce(A, B, symmetric=True, in_batch=True), ValueError, "symmetric"),
        (lambda: F.info_nce(A, B, torch.randn(0, 3)), ValueError, "negatives"),
        (lambda: F.info_nce(A, B, torch.randn(5, 2)), ValueError, "negatives.* features"),
        (lambda: F.info_nce(A, B, on_meta()), ValueError, "negatives.* on cpu"),
        (lambda: F.info_nce(A, B, B, symmetric=True), ValueError, "symmetric"),
        (lambda: F.clip(A, B, torch.ones(4)), ValueError, "logit_scale"),
        (lambda: F.clip(A, B, None), TypeError, "logit_scale"),  # type: ignore[arg-type]
        (lambda: F.clip(A, B, 10.0, torch.zeros(4)), ValueError, "logit_bias"),
        (lambda: F.clip(A, B, 10.0, label_smoothing=-0.1), ValueError, "label_smoothing"),
        (lambda: F.siglip(A, B, 10.0, 0.0, ids=IDS), TypeError, "ids must be a pair"),  # type: ignore[arg-type]
        (lambda: F.siglip(A, B, 10.0, 0.0, ids=(IDS, IDS[:3])), ValueError, r"ids\[1\] must have shape \[4\]"),
        (lambda: F.siglip(A, B, 10.0, 0.0, ids=(IDS, IDS / 2)), TypeError, r"ids\[1\] must be an integer tensor"),
        (lambda: F.siglip(A, B, 10.0, None), TypeError, "logit_bias"),  # type: ignore[arg-type]
        (lambda: F.soft_info_nce(A, B[:3], A, B), ValueError, "student_query and student_key"),
        (lambda: F.soft_info_nce(A, B, A, B[:, :2]), ValueError, "teacher_key .*features"),
        (lambda: F.soft_info_nce(A, B, A[:3], B[:3]), ValueError, "teacher_query must have 4 rows as student_query"),
        (lambda: F.soft_info_nce(A, B, A, B, teacher_temperature=0.0), ValueError, "teacher_temperature"),
        (lambda: F.guided_info_nce(A, B, guide_query=A), ValueError, "got guide_query alone"),
        (lambda: F.guided_info_nce(A, B, B, guide_negatives=B), ValueError, "got guide_negatives alone"),
        (lambda: F.guided_info_nce(A, B, B, guide_query=A, guide_key=B), ValueError, "guide_negatives must be given"),
        (lambda: guided(guide_negatives=B), ValueError, "negatives must be given where guide_negatives are"),
        (lambda: guided(negatives=A, guide_negatives=B[:3]), ValueError, "guide_negatives must have a row for each"),
        (lambda: guided(negatives=A, guide_negatives=B[:, :2]), ValueError, "guide_negatives.* features"),
        (lambda: guided(guide_query=A[:3], guide_key=B[:3]), ValueError, "guide_query must have 4 rows as query has"),
        (lambda: guided(guide_key=B[:, :2]), ValueError, "guide_key .*features"),
        (lambda: guided(negatives=torch.randn(3, 2, 3), guide_negatives=B), ValueError, "negatives must have shape"),
        (lambda: guided(margin=torch.nan), ValueError, "margin"),
        (lambda: guided(margin="relative"), TypeError, "margin"),
        (lambda: F.dclw([A, B], sigma=0.0), ValueError, "sigma"),
        (lambda: F.uniformity(A, t=-1.0), ValueError, "t must be positive"),
        (lambda: F.uniformity(A[0]), ValueError, "x must have shape"),
        (lambda: F.similarity(A, B[:, :2]), ValueError, "y .*features"),
        (lambda: F.similarity_topk(A, B, 5), ValueError, "k must be"),
        (lambda: F.similarity_topk(A, B, 0), ValueError, "k must be"),
        (lambda: F.similarity_topk(A, B, 1.0), TypeError, "k must be"),  # type: ignore[arg-type]
        (lambda: F.similarity_histogram(A, bins=0), ValueError, "bins"),
        (lambda: F.similarity_histogram(A, ids=torch.arange(3)), ValueError, r"labels|ids"),
    ],
)
def test_arguments_of_one_loss(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_modules_check_at_construction(module: type[torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match="reduction"):
        module(reduction="average")
    with pytest.raises(ValueError, match="backend"):
        module(backend="magma")
    with pytest.raises(TypeError, match="group"):
        module(group=object())
    if module not in (pycl.CLIPLoss, pycl.SigLIPLoss):
        with pytest.raises(ValueError, match="temperature"):
            module(temperature=0.0)


def test_modules_check_their_own_arguments() -> None:
    with pytest.raises(ValueError, match="denominator"):
        pycl.MVInfoNCELoss(denominator="some")
    with pytest.raises(ValueError, match="mean"):
        pycl.PolyViewLoss(mean="harmonic")
    with pytest.raises(ValueError, match="form"):
        pycl.SupConLoss(form="inside")
    with pytest.raises(ValueError, match="sigma"):
        pycl.DCLWLoss(sigma=-1.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        pycl.CLIPLoss(label_smoothing=2.0)
    with pytest.raises(TypeError, match="labels"):
        pycl.SupConLoss()(torch.stack([A, B]))
