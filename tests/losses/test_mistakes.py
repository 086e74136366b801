# SPDX-License-Identifier: Apache-2.0
"""What people write first, and whether the message names the way out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import pycl
import pycl.functional as F
from pycl import Pairs, Points, pair_cross_entropy, pair_logits, pair_stats
from pycl.core import notices

Z = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) // 2


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    before = set(notices._said)
    notices._said.clear()
    yield
    notices._said.clear()
    notices._said.update(before)


MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: F.nt_xent(Z[0], Z[1]), TypeError, r"several views are one argument, \(z1, z2\)"),
    (lambda: F.nt_xent(Z, 0.5), TypeError, "nt_xent takes views by position and the rest by name, got 2"),
    (
        lambda: F.clip(Z[0], Z[1], 1.0, 0.0, "sum"),
        TypeError,
        "clip takes image, text, logit_scale, logit_bias by position",
    ),
    (
        lambda: pair_stats(Points(Z[0]), denominator=torch.eye(8, dtype=torch.bool)),  # type: ignore[call-overload]
        TypeError,
        r"got a tensor \(8, 8\): ids and views say which pairs count; a mask of pairs is for what pair_logits returns",
    ),
    (lambda: pair_stats(Z[0], denominator=Pairs.ALL), TypeError, r"rows must be pycl.Points, got Tensor: make it pycl"),  # type: ignore[call-overload]
    (lambda: pair_logits(Points(Z[0]), Z[1]), TypeError, r"cols must be pycl.Points, got Tensor: make it pycl"),  # type: ignore[arg-type]
    (
        lambda: pycl.NTXentLoss()(Z[0], LABELS),
        ValueError,
        r"\[\(8, 4\), \(8,\)\]; labels are for sup_con and SupConLoss",
    ),
    (lambda: F.nt_xent(Z.flatten(0, 1)), ValueError, r"got shape \(16, 4\): of two halves make views.view\(2, -1, d\)"),
    (lambda: F.sup_con(Z.transpose(0, 1), LABELS), ValueError, r"views come first, so of \[N, V, d\] make .*transpose"),
    (lambda: F.info_nce(Z[0], Z[1], torch.randn(3, 8, 4)), ValueError, r"\[M, 4\], shared by all .* \[8, M, 4\]"),
    (
        lambda: pycl.cached_step(pycl.NTXentLoss(), Z[0], Z[1], chunk_size=4),  # type: ignore[arg-type]
        TypeError,
        r"towers\[0\] must be a pair \(encoder, inputs\) with a callable encoder, got Tensor: it encodes",
    ),
    (
        lambda: pycl.NTXentLoss(gather_distributed=True),
        TypeError,
        "NTXentLoss takes no gather_distributed: .*group='world'",
    ),  # type: ignore[call-arg]
    (lambda: pycl.NTXentLoss(tau=0.1), TypeError, "it is called temperature"),  # type: ignore[call-arg]
    (lambda: pycl.nt_xent, AttributeError, "the function is pycl.functional.nt_xent"),
    (lambda: pycl.losses, AttributeError, "losses are in pycl and in pycl.functional"),
    (lambda: pycl.no_such_thing, AttributeError, "'pycl' has no attribute 'no_such_thing'"),
    (lambda: F.nt_xent(Z, group="gloo"), TypeError, "group must be None, 'world', 'local' or .* got 'gloo'"),
    (lambda: F.sup_con(Z, LABELS.tolist()), TypeError, "labels must be an integer tensor, got list"),
    (lambda: pair_stats(Points(Z[0], LABELS.tolist()), denominator=Pairs.ALL), TypeError, r"rows.ids .* got list"),  # type: ignore[call-overload]
]


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES, ids=[m[2][:30] for m in MISTAKES])
def test_the_message_names_the_way_out(mistake: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        mistake()
    assert len(str(raised.value)) < 300


def test_two_sets_without_ids_say_what_they_have_in_common() -> None:
    """Row i and column i are one point with offset=0, so nothing of theirs is a positive pair."""
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    with pytest.raises(ValueError, match=r"positives .* has no pair.*Of two different sets say offset=None"):
        pair_cross_entropy(Points(Z[0]), Points(Z[1]), 5.0, **sets)
    value = pair_cross_entropy(Points(Z[0]), Points(Z[1]), 5.0, **sets, offset=None)
    torch.testing.assert_close(
        value, torch.nn.functional.cross_entropy(5 * Z[0] @ Z[1].T, torch.arange(8), reduction="none")
    )
    queue = torch.randn(5, 4)
    for offset in (0, None):
        with pytest.raises(ValueError, match="leaves candidate i out for anchor i"):
            pair_stats(Points(Z[0]), Points(queue), denominator=Pairs.NEGATIVE, offset=offset)
    others = pair_stats(Points(Z[0]), Points(queue), denominator=Pairs.OTHERS, offset=None).lse
    torch.testing.assert_close(others, (Z[0] @ queue.T).logsumexp(1))


def warned(call: Callable[[], Any]) -> list[str]:
    """What is said, each time at a line of this file."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
        call()
    said = [w for w in found if w.category is UserWarning]
    assert all(w.filename == __file__ for w in said)
    return [str(w.message) for w in said]


def test_views_last_are_noticed_once() -> None:
    (message,) = warned(lambda: F.mv_dhel(torch.randn(32, 4, 16)))
    assert "32 views of 4 instances" in message
    assert "transpose(0, 1)" in message
    assert not warned(lambda: F.mv_dhel(torch.randn(4, 32, 16)))


def test_batch_norm_in_chunks_is_noticed_once() -> None:
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    step = lambda: pycl.cached_step(pycl.NTXentLoss(), (encoder, Z[0]), (encoder, Z[1]), chunk_size=4)  # noqa: E731
    (message,) = warned(step)
    assert "BatchNorm1d in training mode normalises over a chunk" in message
    notices._said.clear()
    encoder.eval()
    assert not warned(step)


def test_a_queue_is_not_checkpointed() -> None:
    loss = pycl.SwAVLoss(queue_size=8, dim=4)
    crops = nn.functional.normalize(Z, dim=-1).requires_grad_()
    for reentrant in (True, False):
        value = torch.utils.checkpoint.checkpoint(loss, crops, crops[0].detach(), use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match="Keep the loss out of what is checkpointed"):
            value.backward()
    without = pycl.SwAVLoss()
    value = torch.utils.checkpoint.checkpoint(without, crops, crops[0].detach(), use_reentrant=False)
    (gradient,) = torch.autograd.grad(value, crops)
    (expected,) = torch.autograd.grad(without(crops, crops[0].detach()), crops)
    assert torch.equal(gradient, expected)


def test_a_sharded_tensor_is_refused_with_one_wording() -> None:
    class DTensor(torch.Tensor):
        """Stands for that of torch.distributed.tensor, which needs ranks."""

    z = torch.randn(2, 8, 4).as_subclass(DTensor)
    calls = [
        lambda: F.nt_xent(z),
        lambda: F.nt_xent(list(z)),
        lambda: F.clip(z[0], z[1], 5.0),
        lambda: F.alignment(z[0], z[1]),
        lambda: pair_logits(Points(z[0])),
    ]
    for call in calls:
        with pytest.raises(
            TypeError, match=r"must be a plain tensor, got a DTensor: pass .*to_local\(\) with the group"
        ):
            call()


def test_features_that_nobody_normalised_are_noticed_once() -> None:
    unit = nn.functional.normalize(Z, dim=-1)
    for loss in (lambda z, **o: F.clip(z[0], z[1], 5.0, **o), lambda z, **o: F.siglip(z[0], z[1], 5.0, -5.0, **o)):
        notices._said.clear()
        (message,) = warned(lambda loss=loss: loss(20 * unit))
        assert "norms up to 20;" in message
        assert "normalize=True" in message
        for quiet in (lambda loss=loss: loss(unit.bfloat16()), lambda loss=loss: loss(20 * unit, normalize=True)):
            notices._said.clear()
            assert not warned(quiet)


def test_a_scale_that_is_still_a_logarithm_is_noticed_once() -> None:
    unit, scale = nn.functional.normalize(Z, dim=-1), nn.Parameter(torch.tensor(2.66))
    (message,) = warned(lambda: F.clip(unit[0], unit[1], scale))
    assert "pass logit_scale.exp()" in message
    notices._said.clear()
    assert not warned(lambda: F.clip(unit[0], unit[1], scale.exp()))
