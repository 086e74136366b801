# SPDX-License-Identifier: Apache-2.0
"""SimLAP: edges, identities of its forms, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from helpers.objective_cases import cast, changed, values_and_gradients
from torch import Tensor

from pycl.objectives import simlap
from pycl.testing.objectives.simlap import gated
from pycl.testing.objectives.simlap import simlap as formula

FORMS = pytest.mark.parametrize("form", ["query", "cosine"])
PER = pytest.mark.parametrize("per", ["pair", "anchor"])
N, D = 12, 6


def found(function: Any, given: dict[str, Any], **options: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    temperature = {"temperature": torch.tensor(0.2, dtype=torch.float64)}
    return values_and_gradients(lambda x, s: (function(**x, **s, **options),), given, temperature)


@FORMS
@PER
@pytest.mark.parametrize("missing", ["positives", "negatives"])
def test_without_positives_or_negatives_there_is_nothing(form: str, per: str, missing: str) -> None:
    given = gated(N, D)
    own, partner = given["partners"]
    if missing == "positives":
        given["partners"] = own, torch.full_like(own, 77)
    else:
        given["labels"], given["partners"] = torch.arange(len(given["labels"])) % 2, (own * 0, partner * 0 + 1)
    values, gradients = found(simlap, given, form=form, per=per)
    assert values == [0]
    assert all(x is None or not x.any() for x in gradients.values())


@FORMS
@PER
def test_anchors_without_negatives_add_nothing_and_count(form: str, per: str) -> None:
    """Two classes: an anchor of one whose partner is the other has no negatives, and one paired with itself has."""
    given = gated(N, D)
    given["labels"] = torch.arange(len(given["labels"])) % 2
    own = torch.arange(N) % 2
    given["partners"] = own, torch.where(torch.arange(N) < N // 2, own, 1 - own)
    torch.testing.assert_close(
        found(simlap, given, form=form, per=per), found(formula, given, form=form, per=per), rtol=1e-10, atol=1e-12
    )


def test_cosines_per_anchor() -> None:
    given = gated(N, D)
    options = {"form": "cosine", "per": "anchor"}
    torch.testing.assert_close(
        found(simlap, given, **options), found(formula, given, **options), rtol=1e-10, atol=1e-12
    )


def test_an_open_gate_makes_both_forms_one() -> None:
    given = gated(N, D)
    given["gate"] = torch.ones_like(given["gate"])
    torch.testing.assert_close(simlap(**given), simlap(**given, form="cosine"), rtol=1e-12, atol=0)


def test_cosines_do_not_see_the_length_of_a_gate_and_products_see_its_square() -> None:
    given = gated(N, D)
    shorter = {**given, "gate": given["gate"] / 2}
    tiny = {**given, "gate": given["gate"] * 1e-200}
    of_cosines = simlap(**given, form="cosine")
    torch.testing.assert_close(simlap(**tiny, form="cosine"), of_cosines, rtol=1e-12, atol=0)
    torch.testing.assert_close(simlap(**shorter), simlap(**given, temperature=0.4), rtol=1e-12, atol=0)


def test_cosines_run_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    given = gated(N, D)
    whole = found(simlap, given, form="cosine")
    monkeypatch.setattr(sys.modules["pycl.objectives.simlap"], "ELEMENTS", 5 * len(given["key"]))  # the last is shorter
    torch.testing.assert_close(found(simlap, given, form="cosine"), whole, rtol=1e-12, atol=1e-14)


@FORMS
def test_autocast_changes_nothing(form: str) -> None:
    given = cast(gated(N, D), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = simlap(**given, form=form)
    assert torch.equal(value, simlap(**given, form=form))


EXTREMES = {
    "zero_row": lambda x: x.index_fill(0, torch.tensor([1]), 0.0),
    "identical": lambda x: x[:1].expand_as(x).contiguous(),
    "huge": lambda x: x * 2e4 / x.abs().max(),  # squares leave float16
    "tiny": lambda x: x * 3e-3 / x.abs().max(),  # squares vanish in float16
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_extreme_embeddings_are_finite(extreme: str, dtype: torch.dtype) -> None:
    given = gated(N, D)
    given.update({name: changed(given[name], EXTREMES[extreme]) for name in ("query", "key")})
    temperature = {"temperature": torch.tensor(0.01)}
    values, gradients = values_and_gradients(lambda x, s: (simlap(**x, **s),), cast(given, dtype), temperature)
    assert values[0].isfinite()
    assert all(x is not None and x.isfinite().all() for x in gradients.values())


LABELS = torch.zeros(N).long()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "dot"}, ValueError, "form must be one of 'query', 'cosine', got 'dot'"),
        ({"per": "class"}, ValueError, "per must be one of 'pair', 'anchor', got 'class'"),
        ({"partners": LABELS}, TypeError, "partners must be a pair of tensors"),
        ({"partners": (LABELS, LABELS[1:])}, ValueError, r"partners must have shape \[12\] each"),
        ({"partners": (LABELS, LABELS / 2)}, TypeError, "partners must be an integer tensor"),
        ({"labels": LABELS}, ValueError, r"labels must have shape \[16\], one per key, got \(12,\)"),
        ({"labels": torch.zeros(16)}, TypeError, "labels must be an integer tensor"),
        ({"gate": torch.ones(N, 1)}, ValueError, "gate must have 6 features"),
        ({"gate": torch.ones(N - 1, D)}, ValueError, "query and gate must have one and the same shape"),
        ({"key": torch.ones(16, D + 1)}, ValueError, "key must have 6 features"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simlap(**{**gated(N, D), **options})
