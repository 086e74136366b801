# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of every loss against its dense float64 formula, everyday and extreme."""

from __future__ import annotations

import pytest
import torch
from helpers.oracle import FLOOR, assert_as_accurate, cast, value_and_gradients, widest
from torch import Tensor

import pycl.functional as F
from pycl.testing import formulas
from pycl.testing.table import LOSSES, LossRow, make_views

ROWS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
DTYPES = pytest.mark.parametrize("dtype", FLOOR, ids=lambda t: str(t).removeprefix("torch."))
SIZES = [  # V, N, d and why
    (2, 1, 5),  # one instance: empty negative sets
    (2, 2, 1),  # one feature
    (2, 37, 19),  # nothing is a multiple of anything
    (3, 17, 33),
    (16, 5, 8),  # many views
    (1, 11, 6),  # one view: labels only
]


def check(
    loss: LossRow,
    inputs: list[Tensor],
    dtype: torch.dtype,
    backend: str,
    scalars: dict[str, float] | None = None,
    keep: Tensor | None = None,
) -> None:
    """Terms, and gradients of a random combination of them, within the budget; ``keep`` picks rows of the gradients."""
    scalars = loss.scalars if scalars is None else scalars
    inputs = cast(inputs, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    truth_scalars = {name: torch.tensor(value, dtype=wide).double() for name, value in scalars.items()}
    cotangent = torch.randn(loss.terms(cast(inputs, torch.float64), truth_scalars).shape, dtype=torch.float64)

    def ours(x: list[Tensor], s: dict[str, Tensor]) -> Tensor:
        return loss(x, s, reduction="none", backend=backend)

    truth, d_truth = value_and_gradients(loss.terms, cast(inputs, torch.float64), truth_scalars, cotangent)
    eager, d_eager = value_and_gradients(
        loss.terms, inputs, {name: value.to(dtype) for name, value in truth_scalars.items()}, cotangent
    )
    got, d_got = value_and_gradients(
        ours, inputs, {name: value.to(wide) for name, value in truth_scalars.items()}, cotangent
    )
    assert got.dtype == wide
    steepness = max(1.0, loss.steepness(scalars))
    assert_as_accurate(got, eager, truth, dtype, magnitude=steepness)
    # a logit of size `steepness` carries that many roundings into every softmax weight; 5 is the everyday case
    conditioning = max(1.0, steepness / 5)
    floating = [x.double() for x in inputs if x.is_floating_point()]
    for i, (mine, plain, true) in enumerate(zip(d_got, d_eager, d_truth, strict=True)):
        assert mine.dtype == (dtype if true.dim() else wide)
        if true.dim():
            chosen = slice(None) if keep is None else keep
            mine, plain, true, x = (t[..., chosen, :] for t in (mine, plain, true, floating[i]))
            magnitude = steepness * conditioning / (x.norm(dim=-1).min().item() if loss.cosine else 1.0)
        else:  # summed over all terms and, where a term joins several anchors, over these: the weights of an anchor
            # share the rounding of its log-sum-exp, so that no sum over its logits cancels it
            anchors = floating[0].numel() / floating[0].shape[-1] / cotangent.numel()
            magnitude = steepness**2 * conditioning * cotangent.norm().item() * max(1.0, anchors**0.5)
        assert_as_accurate(mine, plain, true, dtype, magnitude=magnitude)


@pytest.mark.parametrize(
    ("loss", "size"),
    [
        pytest.param(loss, size, id=f"{loss.name}-{size}")
        for loss in LOSSES.values()
        for size in SIZES
        if loss.takes(size[0])
    ],
)
@pytest.mark.thorough(backend="triton", loss=LOSSES["pairwise_nt_xent"], size=(16, 5, 8))  # 120 losses
@DTYPES
def test_values_and_gradients(loss: LossRow, dtype: torch.dtype, size: tuple[int, int, int], backend: str) -> None:
    check(loss, loss.make(*size), dtype, backend)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.reducible], ids=lambda loss: loss.name)
def test_reductions(loss: LossRow, backend: str) -> None:
    dtype = widest(backend)
    inputs, options = cast(loss.make(2, 9, 4), dtype), {"backend": backend}
    terms = loss(inputs, loss.scalars, reduction="none", **options)
    assert terms.shape in {(9,), (2, 9)}
    close = {"rtol": FLOOR[dtype], "atol": 0}
    torch.testing.assert_close(loss(inputs, loss.scalars, **options), terms.mean(), **close)
    torch.testing.assert_close(loss(inputs, loss.scalars, reduction="sum", **options), terms.sum(), **close)


def collapsed(x: Tensor) -> Tensor:
    return x.flatten(0, -2)[0] + 1e-3 * torch.randn_like(x)


def with_zero_row(x: Tensor) -> Tensor:
    return x.index_fill(-2, torch.tensor([1]), 0.0)


# what is done to the embeddings, and the temperature (None: the row's own)
EXTREMES = {
    "cold": (lambda x: x, 0.005),
    "collapsed": (collapsed, None),
    "collapsed_and_cold": (collapsed, 0.02),
    "identical": (lambda x: x.flatten(0, -2)[0].expand_as(x), None),
    "zero_row": (with_zero_row, None),
    "huge": (lambda x: x * 2e4 / x.abs().max(), None),  # squares leave float16
    "tiny": (lambda x: x * 3e-3 / x.abs().max(), None),  # squares vanish in float16
}


@pytest.mark.parametrize("loss", [row for row in LOSSES.values() if row.cosine], ids=lambda row: row.name)
@DTYPES
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes(loss: LossRow, dtype: torch.dtype, extreme: str, backend: str) -> None:
    change, temperature = EXTREMES[extreme]
    inputs = [change(x) if x.is_floating_point() else x for x in loss.make(max(2, min(3, loss.n_views[1])), 12, 16)]
    scalars = loss.scalars
    if temperature is not None and "temperature" in scalars:
        scalars = {"temperature": temperature}
    keep = torch.tensor([i for i in range(12) if i != 1]) if extreme == "zero_row" else None
    check(loss, inputs, dtype, backend, scalars, keep)


@pytest.mark.parametrize("loss", [row for row in LOSSES.values() if row.cosine], ids=lambda row: row.name)
@pytest.mark.parametrize("length", [2.0**-30, 2.0**80], ids=["short", "long"])
def test_embeddings_of_any_length(loss: LossRow, length: float, backend: str) -> None:
    """Squares of these leave float32; a power of two changes no digit."""
    inputs = cast(loss.make(2, 12, 16), torch.float32)
    scaled = [x * length if x.is_floating_point() else x for x in inputs]
    scalars = {name: torch.tensor(value) for name, value in loss.scalars.items()}
    value, gradients = value_and_gradients(lambda x, s: loss(x, s, backend=backend), inputs, scalars)
    of_scaled, gradients_of_scaled = value_and_gradients(lambda x, s: loss(x, s, backend=backend), scaled, scalars)
    torch.testing.assert_close(of_scaled, value, rtol=1e-5, atol=1e-5)
    of_inputs = len(gradients) - len(scalars)
    for got, wanted in zip(gradients_of_scaled[:of_inputs], gradients[:of_inputs], strict=True):
        torch.testing.assert_close(got * length, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", ["clip", "siglip"])
@DTYPES
def test_steep_image_text_losses(name: str, scale: float, dtype: torch.dtype, backend: str) -> None:
    loss = LOSSES[name]
    check(loss, loss.make(2, 23, 8), dtype, backend, {"logit_scale": scale, "logit_bias": -10.0})


@pytest.mark.thorough(backend="triton", n_views=16)  # thousands of points
@pytest.mark.thorough(backend="triton", name="mv_info_nce")
@pytest.mark.thorough(backend="triton", name="poly_view")
@pytest.mark.parametrize(
    ("n", "n_views", "temperature", "dtype", "spread"),
    [
        (256, 16, 0.5, torch.float32, 1.0),
        (256, 8, 0.1, torch.float32, 1e-3),
        (256, 4, 0.1, torch.float16, 1.0),
    ],
    ids=["many_views", "collapsed", "half"],
)
@pytest.mark.parametrize("name", ["mv_dhel", "mv_info_nce", "poly_view"])
def test_sets_on_which_the_official_code_overflows(
    name: str, n: int, n_views: int, temperature: float, dtype: torch.dtype, spread: float, backend: str
) -> None:
    views = (torch.ones(32) + spread * torch.randn(n_views, n, 32)).to(dtype).requires_grad_()
    options = {"temperature": temperature, "backend": backend}
    loss = LOSSES[name]([views], options)
    (gradient,) = torch.autograd.grad(loss, views)
    assert gradient.isfinite().all()
    if name == "mv_dhel":
        truth = formulas.mv_dhel(views.detach().double(), temperature).mean()
        assert_as_accurate(loss.detach(), truth, truth, dtype, magnitude=n_views / temperature)


@ROWS
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_not_a_number_in_is_not_a_number_out(loss: LossRow, poison: float, backend: str) -> None:
    inputs = cast(loss.make(2, 6, 4), widest(backend))
    inputs[0].view(-1)[0] = poison
    value = loss(inputs, loss.scalars, backend=backend)
    assert not value.isfinite(), f"{loss.name} hides {poison}: {value}"


@ROWS
def test_one_instance_has_no_negatives(loss: LossRow, backend: str) -> None:
    """Value of the positive term alone, finite gradients."""
    dtype = widest(backend)
    scalars = {name: torch.tensor(number, dtype=dtype) for name, number in loss.scalars.items()}
    inputs = cast(loss.make(2, 1, 4), dtype)
    value, gradients = value_and_gradients(lambda x, s: loss(x, s, backend=backend), inputs, scalars)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in gradients)
    if "nt_xent" in loss.name or "poly_view" in loss.name:
        assert value.abs() < FLOOR[dtype]


def test_float_and_tensor_temperature_agree(backend: str) -> None:
    views = make_views(3, 7, 5).to(widest(backend))
    number = F.nt_xent(views, temperature=0.25, backend=backend)
    for temperature in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25, dtype=torch.float16)):
        torch.testing.assert_close(F.nt_xent(views, temperature=temperature, backend=backend), number)


def test_views_as_tensor_list_or_tuple(backend: str) -> None:
    views = make_views(3, 7, 5).to(widest(backend))
    wanted = F.mv_dhel(views, backend=backend)
    assert torch.equal(F.mv_dhel(list(views), backend=backend), wanted)
    assert torch.equal(F.mv_dhel(tuple(views), backend=backend), wanted)


def test_weights_of_dclw_are_constants(backend: str) -> None:
    views = make_views(2, 7, 5).to(widest(backend))
    views.requires_grad_()
    sigma = torch.tensor(0.5, requires_grad=True)
    loss = F.dclw(views, sigma=sigma, backend=backend)
    assert torch.autograd.grad(loss, [views, sigma], allow_unused=True)[1] is None


def test_sup_con_gives_nothing_to_lonely_anchors(backend: str) -> None:
    views = make_views(2, 5, 4).to(widest(backend))
    labels = torch.tensor([3, 3, 7, 8, 3])
    for form in ("out", "in"):
        single = views[:1].clone().requires_grad_()
        terms = F.sup_con(single, labels, form=form, reduction="none", backend=backend)
        assert (terms[0, 2:4] == 0).all()
        assert terms[0, 0] > 0
        mean = F.sup_con([single[0]], labels, form=form, backend=backend)
        torch.testing.assert_close(mean, terms.sum() / 5)
        lonely = F.sup_con(single, torch.arange(5), form=form, backend=backend)
        assert lonely == 0
        assert (torch.autograd.grad(lonely, single)[0] == 0).all()


def test_autocast_does_not_narrow_a_loss(backend: str) -> None:
    views = make_views(3, 9, 8).float()
    for name in ("nt_xent", "poly_view", "mv_dhel"):
        wanted = LOSSES[name]([views], {}, backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(LOSSES[name]([views], {}, backend=backend), wanted)
