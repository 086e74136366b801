# SPDX-License-Identifier: Apache-2.0
"""The operators and their gradients under PyTorch's machinery: opcheck, compile, autocast, scaling, strides, modes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import pycl
import pycl.functional as F
from pycl import Pairs, Points, pair_stats, pair_sum
from pycl.backends import registry
from pycl.core.problem import Gradients, Needs, Problem
from pycl.testing.table import LOSSES

SETS = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}


def problem(kind: str, dtype: torch.dtype = torch.float32) -> Problem:
    """Arguments of an operator: symmetric, columns without labels, or everything at once."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, cols = torch.randn(7, 4).to(dtype), None if kind == "itself" else torch.randn(9, 4).to(dtype)
    labels: list[Tensor | None] = [None, None] if kind == "columns" else [torch.arange(7) % 3, torch.arange(7) % 2]
    labels += [torch.arange(9) % 3, torch.arange(9) % 2] if kind == "everything" else [None, None]
    scale, bias = torch.tensor(2.0, dtype=wide), (None, None)
    if kind == "everything":
        scale, bias = torch.rand(7, dtype=wide), (torch.randn(7, dtype=wide), torch.randn(9, dtype=wide))
    offset = {"itself": 0, "columns": None, "everything": 2}[kind]
    return Problem(
        rows, cols, *labels, scale, *bias, int(Pairs.OTHERS), int(Pairs.POSITIVE), offset, kind == "everything"
    )


@pytest.mark.parametrize(
    ("kind", "dtype", "both"),
    [
        ("itself", torch.float32, False),
        ("columns", torch.bfloat16, False),
        ("everything", torch.float64, True),
    ],
    ids=str,
)
def test_opcheck(kind: str, dtype: torch.dtype, both: bool, backend: str) -> None:
    p, ops = problem(kind, dtype), torch.ops.pycl
    torch.library.opcheck(ops.pair_stats.default, (*p, (), both, True, backend))
    weight = torch.rand(7, dtype=p.logit_scale.dtype) if kind == "everything" else None
    torch.library.opcheck(ops.pair_sum.default, (*p, "softplus", weight, both, False, backend))
    stats, d_sum = ops.pair_stats(*p, (), both, False, backend), torch.randn(7, dtype=p.logit_scale.dtype)
    of_rows, none = [torch.randn_like(d_sum), None, torch.randn_like(d_sum)], [None] * 3
    of_cols = [torch.randn(9, dtype=d_sum.dtype), None, None] if both else none
    needs = Needs(rows=kind != "columns", cols=kind != "itself", bias=kind == "everything")
    torch.library.opcheck(ops.pair_stats_backward.default, (*p, (), *stats, *of_rows, *of_cols, needs, backend))
    torch.library.opcheck(ops.pair_sum_backward.default, (*p, "softplus", weight, stats[2], d_sum, needs, backend))


@pytest.mark.parametrize("kind", ["itself", "columns", "everything"])
def test_opcheck_of_means(kind: str, backend: str) -> None:
    p, ops = problem(kind).as_rectangular(), torch.ops.pycl
    values, d_out, along = torch.randn(p.n_cols(), 3), torch.randn(7, 3), torch.randn(7)
    torch.library.opcheck(ops.pair_average.default, (*p, values, backend))
    needs = Needs(rows=kind != "columns", cols=True, bias=kind == "everything")
    for of_values, wanted in ((True, needs), (False, needs), (True, Needs(False, False, False))):
        args = (*p, values, d_out, along, of_values, wanted, backend)
        torch.library.opcheck(ops.pair_average_backward.default, args)


def test_import_leaves_the_compiler_alone() -> None:
    """``torch._dynamo`` takes as long to import as torch itself; the mark that needs none of it is still its own."""
    code = "import sys, pycl; sys.exit('torch._dynamo' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120, env=environment).returncode == 0
    marked = vars(torch.compiler.assume_constant_result(lambda: None))
    assert marked.items() <= vars(registry.choose).items()
    assert marked


def compiled_is_eager(function: Callable[..., Tensor], leaves: list[Tensor], **options: Any) -> None:
    def run(f: Callable[..., Tensor]) -> list[Tensor]:
        fresh = [x.clone().requires_grad_(x.is_floating_point()) for x in leaves]
        value = f(*fresh)
        return [
            value.detach(),
            *torch.autograd.grad(value, [x for x in fresh if x.requires_grad], materialize_grads=True),
        ]

    torch.compiler.reset()
    compiled = run(torch.compile(function, fullgraph=True, **options))
    for got, wanted in zip(compiled, run(function), strict=True):
        assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.engine and row.traced])
def test_compile(name: str, backends: list[str]) -> None:
    """One graph, forward and backward, a tensor for every scalar so that the temperature learns."""
    loss = LOSSES[name]
    inputs = [x.float() if x.is_floating_point() else x for x in loss.make(2, 9, 5)]
    scalars = [torch.tensor(value) for value in loss.scalars.values()]

    def function(*leaves: Tensor) -> Tensor:
        named = dict(zip(loss.scalars, leaves[len(inputs) :], strict=True))
        return loss(list(leaves[: len(inputs)]), named, backend=backends[0])

    compiled_is_eager(function, [*inputs, *scalars], backend="aot_eager")


def test_compile_with_inductor(backends: list[str]) -> None:
    def function(views: Tensor, temperature: Tensor) -> Tensor:
        return F.nt_xent(torch.tanh(views), temperature=temperature.exp(), backend=backends[0])

    compiled_is_eager(function, [torch.randn(2, 9, 5), torch.tensor(-1.0)])


def test_compile_for_any_batch_size(backends: list[str]) -> None:
    torch.compiler.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda x, y: F.clip(x, y, 5.0), fullgraph=True, backend=graphs, dynamic=True)
    for n in (5, 9, 14):
        x, y = torch.randn(2, n, 4)
        assert_close(function(x, y), F.clip(x, y, 5.0))
    assert graphs.frame_count == 1


def test_compile_module_with_learnable_temperature() -> None:
    torch.compiler.reset()
    loss = pycl.NTXentLoss(learnable_temperature=True)
    views = torch.randn(2, 6, 4)
    loss(views).backward()
    wanted, loss.log_temperature.grad = loss.log_temperature.grad, None  # type: ignore[union-attr]
    torch.compile(loss, fullgraph=True, backend="aot_eager")(views).backward()
    assert_close(loss.log_temperature.grad, wanted)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["nt_xent", "clip", "siglip"])
def test_autocast_around_encoder_and_loss(name: str, backend: str) -> None:
    encoder, data = torch.nn.Linear(12, 6), torch.randn(2, 9, 12)
    function = {
        "nt_xent": lambda z: F.nt_xent(z, backend=backend),
        "clip": lambda z: F.clip(z[0], z[1], 5.0, backend=backend),
        "siglip": lambda z: F.siglip(z[0], z[1], 5.0, -3.0, backend=backend),
    }[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = encoder(data)
        assert z.dtype == torch.bfloat16
        loss = function(z)
    assert loss.dtype == torch.float32
    loss.backward()
    got, encoder.weight.grad = encoder.weight.grad, None
    assert got.dtype == torch.float32
    function(encoder(data)).backward()
    assert_close(got, encoder.weight.grad, rtol=0.05, atol=0.02 * encoder.weight.grad.abs().max().item())


@pytest.mark.parametrize("name", ["nt_xent", "clip"])
def test_grad_scaler_with_half_inputs(name: str, backend: str) -> None:
    """Unscaled gradients are those without scaling, up to float16, though the upstream gradient is 2^16."""
    encoder, data = torch.nn.Linear(12, 6), torch.randn(2, 9, 12)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def loss(z: Tensor) -> Tensor:
        return F.nt_xent(z, backend=backend) if name == "nt_xent" else F.clip(z[0], z[1], 1.0, backend=backend)

    loss(encoder(data)).backward()
    wanted = encoder.weight.grad.clone()
    optimizer.zero_grad()
    scaled = scaler.scale(loss(encoder(data).half()))
    assert scaled.isfinite()
    scaled.backward()
    scaler.unscale_(optimizer)
    found = encoder.weight.grad.clone()
    assert_close(found, wanted, rtol=0.02, atol=2e-3)
    before = encoder.weight.detach().clone()
    scaler.step(optimizer)
    assert_close(encoder.weight.detach(), before - 0.1 * found)


LEAVES = ("x", "y", "scale", "row_bias", "col_bias")


def leaves_that_want(wanted: tuple[str, ...]) -> dict[str, Tensor]:
    sizes: dict[str, tuple[int, ...]] = {"x": (5, 3), "y": (6, 3), "scale": (5,), "row_bias": (5,), "col_bias": (6,)}
    return {name: torch.rand(size).requires_grad_(name in wanted) for name, size in sizes.items()}


def statistics(leaves: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    rows, cols, options = Points(leaves["x"]), Points(leaves["y"]), {"offset": None, "backend": backend}
    options |= {name: leaves[name] for name in ("row_bias", "col_bias")}
    of_rows, of_cols = pair_stats(rows, cols, leaves["scale"], sides="both", **SETS, **options)
    total = pair_sum(rows, cols, leaves["scale"], negatives=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **options)
    return {"stats": of_rows.lse.sum() + of_cols.lse.sum(), "sum": total.sum()}


@pytest.mark.parametrize("wanted", [*((name,) for name in LEAVES), LEAVES], ids=" ".join)
@pytest.mark.parametrize("what", ["stats", "sum"])
def test_second_derivatives_are_refused(what: str, wanted: tuple[str, ...], backend: str) -> None:
    leaves = leaves_that_want(wanted)
    value = statistics(leaves, backend)[what]
    gradients = torch.autograd.grad(value, [leaves[name] for name in wanted], create_graph=True)
    penalty = sum(g.square().sum() for g in gradients)
    with pytest.raises(RuntimeError, match="differentiated once"):
        (value + penalty).backward()


@pytest.mark.parametrize("wanted", LEAVES)
def test_only_what_is_wanted_is_computed(wanted: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry.load(backend)
    seen: list[tuple[Needs, Gradients]] = []
    for name in ("pair_stats_backward", "pair_sum_backward"):
        original = getattr(module, name)

        def spy(*arguments: Any, original: Callable[..., Gradients] = original) -> Gradients:
            seen.append((arguments[-1], original(*arguments)))
            return seen[-1][1]

        monkeypatch.setattr(module, name, spy)
    leaves = leaves_that_want((wanted,))
    sum(statistics(leaves, backend).values()).backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [wanted]
    needs = Needs(rows=wanted in ("x", "scale"), cols=wanted == "y", bias="bias" in wanted)
    assert [n for n, _ in seen] == [needs] * 2
    for _, found in seen:
        assert (found.rows.numel() > 0) == (found.logit_scale.numel() > 0) == needs.rows
        assert (found.cols.numel() > 0) == needs.cols
        assert (found.row_bias.numel() > 0) == (found.col_bias.numel() > 0) == needs.bias


def test_no_graph_where_no_gradient_is_wanted(backend: str) -> None:
    wanted = leaves_that_want(LEAVES)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not any(value.requires_grad for value in statistics(wanted, backend).values())
    assert not any(value.requires_grad for value in statistics(leaves_that_want(()), backend).values())
    stats = pair_stats(Points(wanted["x"]), backend=backend, **SETS)
    assert not stats.pos_count.requires_grad


def test_backward_twice(backend: str) -> None:
    leaves = leaves_that_want(LEAVES)
    total = sum(statistics(leaves, backend).values())
    first = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, list(leaves.values())), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_a_leaf_changed_in_place_is_noticed(backend: str) -> None:
    x = torch.randn(5, 3)
    z = x.clone().requires_grad_()
    value = pair_stats(Points(z), backend=backend, **SETS).lse.sum()
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "every_other_row": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
    "every_other_feature": lambda x: torch.stack([x, -x], 2).flatten(1, 2)[:, ::2],
    "slice": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 1), value=9.0)[1:-1, 3:-2],
    "one_row": lambda x: x[:1].expand_as(x),
    "one_feature": lambda x: x[:, :1].expand_as(x),
    "one_number": lambda x: x[:1, :1].expand_as(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_strides(strides: str, dtype: torch.dtype, backend: str) -> None:
    """What contiguous copies give, for embeddings, scale, biases and labels; bitwise, but for products by torch."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (STRIDES[strides](torch.randn(n, 5).to(dtype)) for n in (53, 60))
    vectors = [STRIDES[strides](torch.randn(n, 2, dtype=wide))[:, 0] for n in (53, 53, 60)]
    labels = [torch.randint(0, 9, (2 * n,), dtype=torch.int32)[::2] for n in (53, 60)]

    def run(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        rows, cols, scale, row_bias, col_bias = (change(t.detach()).requires_grad_() for t in (x, y, *vectors))
        of_rows, of_cols = pair_stats(
            *(Points(rows, change(labels[0])), Points(cols, change(labels[1])), scale),
            **SETS, row_bias=row_bias, col_bias=col_bias, sides="both", backend=backend,
        )  # fmt: skip
        itself = pair_stats(Points(rows, change(labels[0])), normalize=True, backend=backend, **SETS)
        finite = [t.masked_fill(t == -torch.inf, 0) for t in (*of_rows, *of_cols, *itself)]
        gradients = torch.autograd.grad(sum(t.sum() for t in finite), [rows, cols, scale, row_bias, col_bias])
        return [*finite, *gradients]

    for got, wanted in zip(run(lambda t: t), run(lambda t: t.contiguous()), strict=True):
        assert torch.equal(got, wanted) if backend != "reference" else torch.allclose(got, wanted, 1e-3, 1e-4)
