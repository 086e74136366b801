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
from lightly_cases import CASES, LIBRARY, MODULE, class_of, masked, pair, scores
from parity import Largest, assert_same, declare_torchvision, golden, measure, peer
from torch import Tensor
from torch.nn.functional import normalize

from pycl.compat import FallbackWarning

declare_torchvision()

from pycl.compat import lightly as ours  # noqa: E402

PEER = "lightly"
FUSED = {name: case for name, case in CASES.items() if "fallback" not in case.tags}
NAMES = ("NTXentLoss", "DCLLoss", "DCLWLoss", "SwaVLoss", "DirectCLRLoss", "MACLLoss", "HypersphereLoss", "KoLeoLoss")
NAMES += ("MSNLoss", "PMSNLoss")


@pytest.mark.filterwarnings("ignore:To copy construct")  # lightly's prior of PMSNLoss
@pytest.mark.parametrize("name", FUSED)
def test_golden(name: str) -> None:
    if CASES[name].tags == LIBRARY:
        peer(MODULE)
    assert_same(measure(CASES[name], ours), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.filterwarnings("ignore:To copy construct")  # lightly's weights
@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    expected = measure(CASES[name], peer(MODULE))
    assert_same(measure(CASES[name], ours), expected, CASES[name].tolerance)


def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", NAMES)
def test_stands_for_the_class(name: str) -> None:
    library = peer(MODULE)
    mine, theirs = getattr(ours, name), class_of(library, name)
    assert mine.__name__ == theirs.__name__
    assert isinstance(mine(), theirs)
    assert mine().state_dict().keys() == theirs().state_dict().keys()
    for parent, child in (("DCLLoss", "DCLWLoss"), ("NTXentLoss", "DirectCLRLoss"), ("MSNLoss", "PMSNCustomLoss")):
        assert issubclass(getattr(ours, child), getattr(ours, parent))
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
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("NTXentLoss", {"memory_bank_size": size}) for size in SIZES),
    *(("NTXentLoss", {"temperature": t}) for t in (0, 0.0, 1e-9)),
    ("DirectCLRLoss", {"temperature": 0}),
    *(("MACLLoss", options) for options in ({"temperature": 0}, {"alpha": 1.5}, {"alpha": -0.1}, {"A_0": 2})),
]


@pytest.mark.parametrize(("name", "options"), [*REFUSED, ("MSNLoss", {"temperature": 0.0})])
def test_options_that_lightly_refuses(name: str, options: dict[str, Any]) -> None:
    for module in (peer(MODULE), ours):
        with pytest.raises(ValueError, match=r"."):
            getattr(module, name)(**options)


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
        for name in ("NTXentLoss", "DCLLoss", "DCLWLoss", "DirectCLRLoss", "MACLLoss", "HypersphereLoss"):
            for out in (zero, huge):
                inputs = [out.to(dtype).requires_grad_() for _ in range(2)]
                options = {} if name == "HypersphereLoss" else {"temperature": 0.01}
                loss = getattr(ours, name)(**options)(*inputs)
                loss.backward()
                assert loss.isfinite()
                assert all(x.grad.isfinite().all() for x in inputs)
    assert ours.SwaVLoss(sinkhorn_epsilon=0.001)([torch.eye(6, 4).half() * 20] * 2, []).isfinite()
    assert ours.sinkhorn(torch.eye(6, 4).half() * 20).isfinite().all()


@pytest.mark.filterwarnings("ignore:To copy construct")  # lightly's prior of PMSNLoss
@pytest.mark.parametrize("name", [name for name in NAMES if name != "SwaVLoss"])
def test_no_matrix_of_all_pairs(name: str) -> None:
    """No operator of torch's makes one, forward or backward; of the 512 targets' codes there are [64, 512]."""
    inputs = pair(512, 4, torch.float32)
    if "MSN" in name:
        peer(MODULE)
        inputs = (inputs[0], inputs[1][:64], inputs[1])
    leaves = [x.requires_grad_() for x in inputs[: 1 if name == "KoLeoLoss" else None]]
    with Largest() as found:
        getattr(ours, name)()(*leaves).backward()
    assert found.numel <= 512 * 512 / 8


@pytest.mark.parametrize(
    ("name", "inputs", "error"),
    [
        ("MSNLoss", masked(1, 5, 7)[:1] + masked(1, 2, 7)[1:], "whole views"),
        ("MACLLoss", (torch.ones(3, 4), torch.ones(2, 4)), "shape"),
        ("HypersphereLoss", (torch.ones(4), torch.ones(4)), "shape"),
        ("KoLeoLoss", (torch.ones(4),), "shape"),
    ],
)
def test_bad_input(name: str, inputs: tuple[Tensor, ...], error: str) -> None:
    if "MSN" in name:
        peer(MODULE)
    with pytest.raises(ValueError, match=error):
        getattr(ours, name)()(*inputs)


def test_what_has_no_pair_gives_nothing() -> None:
    """Where lightly raises, and returns NaN."""
    a, b = (x.requires_grad_() for x in pair(1, 4))
    assert ours.MACLLoss()(a, b).item() == 0
    torch.testing.assert_close(ours.HypersphereLoss()(a, b), (normalize(a) - normalize(b)).square().sum())


def test_two_functions_of_one_name_stay_two() -> None:
    library = peer("lightly.loss.msn_loss")
    from pycl.compat.lightly import msn_loss, swav_loss

    assert msn_loss.sinkhorn is library.sinkhorn
    assert msn_loss.MSNLoss is ours.MSNLoss
    assert swav_loss.sinkhorn is ours.sinkhorn


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
    if not case.tags:
        assert_same(measure(case, tests.ours), golden("lightly")[name], case.tolerance)
for name in ("NTXentLoss", "DCLLoss", "DCLWLoss", "DirectCLRLoss", "HypersphereLoss"):
    options = {"t": -1.0} if name == "HypersphereLoss" else {"temperature": -1.0}
    try:
        getattr(tests.ours, name)(**options)(*tests.pair(4, 3))
    except ImportError as error:
        assert "pip install lightly" in str(error)
    else:
        raise AssertionError(name)
for name, options in tests.REFUSED:
    try:
        getattr(tests.ours, name)(**options)
    except ValueError:
        continue
    raise AssertionError(options)
assert not tests.ours.NTXentLoss(memory_bank_size=(3, 2)).state_dict()
try:
    tests.ours.MSNLoss
except AttributeError as error:
    assert "pip install lightly" in str(error)
else:
    raise AssertionError("MSNLoss")
"""
    folder = str(sys.modules["parity"].__file__).rpartition("/")[0]
    subprocess.run([sys.executable, "-c", script, folder], check=True)
