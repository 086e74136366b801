# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.lightly against lightly: recorded numbers, the live library, its errors."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, assert_same, declare_torchvision, embeddings, golden, measure, peer
from torch import Tensor
from torch.nn.functional import normalize

from pycl.compat import FallbackWarning

declare_torchvision()

from pycl.compat import lightly as ours  # noqa: E402

PEER, MODULE = "lightly", "lightly.loss"
HALF = 4e-2  # of lightly in bfloat16, whose every step is rounded


def pair(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return embeddings(n, d, 1, dtype), embeddings(n, d, 2, dtype)


def loss_of(name: str, *args: Any, **options: Any) -> Callable[..., Tensor]:
    return lambda module, *inputs: getattr(module, name)(*args, **options)(*inputs)


def lopsided(out0: Tensor, out1: Tensor) -> Tensor:
    return (out0**2 * out1).sum(1)  # tells the views apart, and has a gradient


def with_bank(temperature: float, keys: int, steps: int = 1) -> Callable[..., Tensor]:
    """The sum of the losses of some steps on the same views, with a bank of known keys."""

    def run(module: Any, out0: Tensor, out1: Tensor) -> Tensor:
        loss = module.NTXentLoss(temperature, memory_bank_size=(keys, out0.shape[1])).to(out0.dtype)
        loss.memory_bank.bank.copy_(normalize(embeddings(keys, out0.shape[1], 7, out0.dtype), dim=1))
        return torch.stack([loss(out0 + 0.1 * k, out1 - 0.2 * k) for k in range(steps)]).sum()

    return run


def swav(n_high: int, n_low: int, n_queue: int = 0, **options: Any) -> Callable[..., Tensor]:
    def run(module: Any, *scores: Tensor) -> Tensor:
        high, low, queue = scores[:n_high], scores[n_high : n_high + n_low], scores[n_high + n_low :]
        loss = module.SwaVLoss(**options)
        return loss(list(high), list(low), list(queue)) if n_queue else loss(list(high), list(low))

    return run


def scores(*rows: int, k: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(embeddings(n, k, seed, dtype) for seed, n in enumerate(rows))


def sinkhorn(module: Any, out: Tensor) -> Tensor:
    codes = sys.modules[f"{MODULE}.swav_loss"].sinkhorn if module.__name__ == MODULE else module.sinkhorn
    return codes(out, 2, 0.1) + 0 * out


CASES: dict[str, Case] = {
    "NTXentLoss": Case(loss_of("NTXentLoss"), pair(7, 5)),
    "NTXentLoss two samples": Case(loss_of("NTXentLoss", 0.1), pair(2, 3)),
    "NTXentLoss float32": Case(loss_of("NTXentLoss", temperature=0.07), pair(12, 8, torch.float32)),
    "NTXentLoss bfloat16": Case(loss_of("NTXentLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "NTXentLoss gathering alone": Case(loss_of("NTXentLoss", gather_distributed=True), pair(5, 4)),
    "NTXentLoss negative temperature": Case(loss_of("NTXentLoss", -0.5), pair(5, 4), tags=frozenset({"fallback"})),
    "NTXentLoss bank": Case(with_bank(0.2, 11), pair(7, 5)),
    "NTXentLoss bank float32": Case(with_bank(0.1, 9), pair(4, 8, torch.float32)),
    "NTXentLoss bank over its end": Case(with_bank(0.2, 11, steps=4), pair(4, 5)),
    "NTXentLoss bank filled exactly": Case(with_bank(0.2, 8, steps=3), pair(4, 5)),
    "NTXentLoss bank smaller than the batch": Case(with_bank(0.2, 3, steps=3), pair(7, 5)),
    "DCLLoss": Case(loss_of("DCLLoss"), pair(7, 5)),
    "DCLLoss float32": Case(loss_of("DCLLoss", temperature=0.07), pair(12, 8, torch.float32)),
    "DCLLoss bfloat16": Case(loss_of("DCLLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "DCLLoss weighted": Case(loss_of("DCLLoss", 0.3, lopsided), pair(7, 5)),
    "DCLLoss negative temperature": Case(loss_of("DCLLoss", -0.5), pair(5, 4), tags=frozenset({"fallback"})),
    "DCLWLoss": Case(loss_of("DCLWLoss"), pair(7, 5)),
    "DCLWLoss sigma": Case(loss_of("DCLWLoss", 0.2, 0.9), pair(3, 5)),
    "DCLWLoss bfloat16": Case(loss_of("DCLWLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "SwaVLoss": Case(swav(2, 0), scores(7, 7)),
    "SwaVLoss crops": Case(swav(2, 3, temperature=0.2, sinkhorn_iterations=5), scores(*[7] * 5)),
    "SwaVLoss three code crops": Case(swav(3, 1, sinkhorn_epsilon=0.1), scores(*[6] * 4)),
    "SwaVLoss one code crop": Case(swav(1, 2), scores(*[6] * 3)),
    "SwaVLoss queue": Case(swav(2, 1, 2), scores(7, 7, 7, 4, 4)),
    "SwaVLoss float32": Case(swav(2, 1), scores(7, 7, 7, dtype=torch.float32)),
    "SwaVLoss bfloat16": Case(swav(2, 1, sinkhorn_epsilon=0.5), scores(7, 7, 7, dtype=torch.bfloat16), HALF),
    "SwaVLoss no iterations": Case(swav(2, 0, sinkhorn_iterations=0), scores(5, 5), tags=frozenset({"fallback"})),
    "subloss": Case(lambda module, z, q: module.SwaVLoss(0.3).subloss(z, q), scores(7, 7)),
    "sinkhorn": Case(sinkhorn, scores(7)),
}
FUSED = {name: case for name, case in CASES.items() if "fallback" not in case.tags}


@pytest.mark.parametrize("name", FUSED)
def test_golden(name: str) -> None:
    assert_same(measure(CASES[name], ours), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.filterwarnings("ignore:To copy construct")  # lightly's weights
@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    expected = measure(CASES[name], peer(MODULE))
    assert_same(measure(CASES[name], ours), expected, CASES[name].tolerance)


def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss", "SwaVLoss"])
def test_stands_for_the_class(name: str) -> None:
    library = peer(MODULE)
    mine, theirs = getattr(ours, name), getattr(library, name)
    assert mine.__name__ == theirs.__name__
    assert isinstance(mine(), theirs)
    assert isinstance(ours.DCLWLoss(), ours.DCLLoss)
    for method in ("__init__", "forward"):
        assert parameters(getattr(mine, method)) == parameters(getattr(theirs, method))
    assert vars(theirs()).keys() <= vars(mine()).keys()


def test_functions_have_the_signatures_of_lightly() -> None:
    peer(MODULE)
    for mine, module in ((ours.sinkhorn, "swav_loss"), (ours.negative_mises_fisher_weights, "dcl_loss")):
        assert parameters(mine) == parameters(getattr(sys.modules[f"{MODULE}.{module}"], mine.__name__))


def test_other_names_are_those_of_lightly() -> None:
    assert peer(MODULE).VICRegLoss is ours.VICRegLoss
    with pytest.raises(AttributeError, match="NoSuchLoss"):
        ours.NoSuchLoss  # noqa: B018


SIZES = (-1, (-1, 4), (3, -4), 5, (5,), (5, 4, 3))
REFUSED = [{"memory_bank_size": size} for size in SIZES] + [{"temperature": t} for t in (0, 0.0, 1e-9)]


@pytest.mark.parametrize("options", REFUSED)
def test_options_that_lightly_refuses(options: dict[str, Any]) -> None:
    for module in (ours, peer(MODULE)):
        with pytest.raises(ValueError, match=r"."):
            module.NTXentLoss(**options)


def test_state_dicts_go_both_ways() -> None:
    library = peer(MODULE)
    for size in (0, (6, 4)):
        mine, theirs = ours.NTXentLoss(memory_bank_size=size), library.NTXentLoss(memory_bank_size=size)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        mine.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(mine.state_dict())


def test_a_bank_holds_still_without_a_gradient() -> None:
    loss, (out0, out1) = ours.NTXentLoss(memory_bank_size=(8, 5)), pair(4, 5, torch.float32)
    before = loss.memory_bank.bank.clone()
    loss(out0, out1)
    with torch.no_grad():
        loss(out0.requires_grad_(), out1)
    assert torch.equal(loss.memory_bank.bank, before)
    loss(out0, out1).backward()
    torch.testing.assert_close(loss.memory_bank.bank, torch.cat([normalize(out1, dim=1), before[4:]]))
    assert int(loss.memory_bank.bank_ptr) == 4


def test_dtypes_are_those_of_lightly() -> None:
    library = peer(MODULE)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for name in ("NTXentLoss", "DCLLoss", "SwaVLoss"):
            inputs = pair(6, 4, dtype)
            inputs = ([*inputs], []) if name == "SwaVLoss" else inputs
            options = {"sinkhorn_epsilon": 0.5} if name == "SwaVLoss" else {}
            mine, theirs = getattr(ours, name)(**options)(*inputs), getattr(library, name)(**options)(*inputs)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.NTXentLoss()(*pair(6, 4, torch.bfloat16)).dtype == torch.float32


def test_extremes_are_finite() -> None:
    zero, huge = torch.zeros(6, 4), 1e4 * torch.eye(6, 4)
    for dtype in (torch.float16, torch.float32):
        for name in ("NTXentLoss", "DCLLoss", "DCLWLoss"):
            for out in (zero, huge):
                inputs = [out.to(dtype).requires_grad_() for _ in range(2)]
                loss = getattr(ours, name)(temperature=0.01)(*inputs)
                loss.backward()
                assert loss.isfinite()
                assert all(x.grad.isfinite().all() for x in inputs)
    assert ours.SwaVLoss(sinkhorn_epsilon=0.001)([torch.eye(6, 4).half() * 20] * 2, []).isfinite()
    assert ours.sinkhorn(torch.eye(6, 4).half() * 20).isfinite().all()


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
def test_no_matrix_of_all_pairs(name: str) -> None:
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        getattr(ours, name)()(*(x.requires_grad_() for x in pair(512, 4, torch.float32)))
    assert max(sizes) < 512 * 512 / 8


def test_a_negative_temperature_runs_lightly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    peer(MODULE)
    monkeypatch.setattr("pycl.compat._peer._warned", set())
    for name in ("NTXentLoss", "DCLLoss", "DCLWLoss"):
        loss = getattr(ours, name)(temperature=-0.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                loss(*pair(4, 3))
        assert [w.category for w in caught if "temperature" in str(w.message)] == [FallbackWarning]
    monkeypatch.setenv("PYCL_STRICT", "1")
    with pytest.raises(RuntimeError, match="negative temperature"):
        ours.NTXentLoss(-0.5)(*pair(4, 3))


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
def test_a_subloss_of_its_own_is_heard() -> None:
    library = peer(MODULE)

    def doubled(self: Any, z: Tensor, q: Tensor) -> Tensor:
        return 2 * (q * z).mean()

    crops = list(scores(6, 6, 6))
    mine, theirs = (type("Own", (m.SwaVLoss,), {"subloss": doubled})() for m in (ours, library))
    torch.testing.assert_close(mine(crops[:2], crops[2:]), theirs(crops[:2], crops[2:]))


def test_the_library_warns_and_the_drop_in_does_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.DCLWLoss()(*pair(4, 3))


def test_without_lightly() -> None:
    """Every class works where lightly cannot be imported, and says what it needs where it would run lightly's code."""
    script = """
import sys
sys.path[:0] = sys.argv[1:]
sys.modules["lightly"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "lightly" else find(name, package)
from parity import assert_same, golden, measure
import test_lightly as tests
for name, case in tests.FUSED.items():
    assert_same(measure(case, tests.ours), golden("lightly")[name], case.tolerance)
for name in ("NTXentLoss", "DCLLoss", "DCLWLoss"):
    try:
        getattr(tests.ours, name)(temperature=-1.0)(*tests.pair(4, 3))
    except ImportError as error:
        assert "pip install lightly" in str(error)
    else:
        raise AssertionError(name)
for options in tests.REFUSED:
    try:
        tests.ours.NTXentLoss(**options)
    except ValueError:
        continue
    raise AssertionError(options)
assert not tests.ours.NTXentLoss(memory_bank_size=(3, 2)).state_dict()
"""
    folder = str(sys.modules["parity"].__file__).rpartition("/")[0]
    subprocess.run([sys.executable, "-c", script, folder], check=True)
