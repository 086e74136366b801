# SPDX-License-Identifier: Apache-2.0
"""Measures of a representation, on point sets whose answer is known on paper."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from pycl import metrics

INT = torch.int64


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(per_class: int, classes: int = 4, d: int = 8, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around orthogonal directions: every class is far from every other."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    return torch.eye(d, dtype=torch.float64)[labels] + noise * points(len(labels), d, seed), labels


# effective rank


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_effective_rank_of_orthonormal_points_is_their_number(n: int, scale: float) -> None:
    basis = torch.linalg.qr(points(8, 8)).Q[:n]
    assert metrics.effective_rank(scale * basis) == pytest.approx(n, rel=1e-9)


def test_effective_rank_of_points_on_a_line_is_one() -> None:
    line = points(50, 1) * points(1, 6, seed=1)
    assert metrics.effective_rank(line) == pytest.approx(1.0, abs=1e-6)


def test_effective_rank_of_a_known_spectrum() -> None:
    # singular values 3 and 1: p = (3/4, 1/4)
    spectrum = torch.diag(torch.tensor([3.0, 1.0]))
    assert metrics.effective_rank(spectrum) == pytest.approx(4 / 3**0.75, rel=1e-9)


def test_effective_rank_does_not_turn_with_the_points() -> None:
    z, turn = points(30, 5), torch.linalg.qr(points(5, 5, seed=1)).Q
    assert metrics.effective_rank(z @ turn) == pytest.approx(metrics.effective_rank(z), rel=1e-9)


def test_effective_rank_of_nothing_but_zeros_is_zero() -> None:
    assert metrics.effective_rank(torch.zeros(4, 3)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_effective_rank_takes_every_float(dtype: torch.dtype) -> None:
    assert metrics.effective_rank(torch.eye(5, dtype=dtype)) == pytest.approx(5.0, rel=1e-6)


# kNN


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_knn_on_separate_blobs_makes_no_mistake(k: int) -> None:
    bank, bank_labels = blobs(12)
    queries, query_labels = blobs(7, seed=1)
    assert metrics.knn_accuracy(bank, bank_labels, queries, query_labels, k=k) == 1.0


def test_knn_vote_is_weighted_by_similarity() -> None:
    query, answer = torch.tensor([[1.0, 0.0]]), torch.tensor([7])
    angles = torch.tensor([0.1, 1.0, 1.0])  # one close point of class 7, two far ones of class 3
    bank, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([7, 3, 3])
    # exp((cos 0.1 - cos 1) / T) = exp(0.4547 / T) against two votes of 1: the balance tips at T = 0.656
    assert metrics.knn_accuracy(bank, labels, query, answer, k=3, temperature=0.6) == 1.0
    assert metrics.knn_accuracy(bank, labels, query, answer, k=3, temperature=0.7) == 0.0
    assert metrics.knn_accuracy(bank, labels, query, answer, k=1, temperature=0.7) == 1.0
    assert metrics.knn_accuracy(bank, labels, query, answer, k=3, temperature=1e-4) == 1.0  # exp(1 / T) is infinite


def test_knn_equals_the_vote_written_out() -> None:
    bank, queries = points(300, 6), points(40, 6, seed=1)
    bank_labels = torch.arange(300) % 5
    query_labels = torch.arange(40) % 5
    cosine = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(bank).T
    right = 0
    for row, label in zip(cosine, query_labels.tolist(), strict=True):
        votes = [0.0] * 5
        for j in row.argsort(descending=True)[:20].tolist():
            votes[int(bank_labels[j])] += math.exp(row[j].item() / 0.1)
        right += votes.index(max(votes)) == label
    assert metrics.knn_accuracy(bank, bank_labels, queries, query_labels) == pytest.approx(right / 40)


def test_knn_does_not_care_how_the_classes_are_called() -> None:
    bank, queries, name = points(60, 4), points(20, 4, seed=1), torch.tensor([-7, 40, 1000])
    plain = metrics.knn_accuracy(bank, torch.arange(60) % 3, queries, torch.arange(20) % 3)
    assert metrics.knn_accuracy(bank, name[torch.arange(60) % 3], queries, name[torch.arange(20) % 3]) == plain


def test_knn_counts_a_class_the_bank_does_not_know_as_wrong() -> None:
    bank, labels = blobs(3)
    assert metrics.knn_accuracy(bank, labels, bank[:4], torch.full((4,), 99)) == 0.0


# linear probe


def test_linear_probe_separates_blobs() -> None:
    assert metrics.linear_probe_accuracy(*blobs(12), *blobs(7, seed=1)) == 1.0


def test_linear_probe_ignores_constant_features_and_units() -> None:
    (train, train_y), (test, test_y) = blobs(12, noise=0.5), blobs(25, noise=0.5, seed=1)
    plain = metrics.linear_probe_accuracy(train, train_y, test, test_y)
    stretch, shift = torch.logspace(-3, 3, 8, dtype=torch.float64), 5.0
    train, test = (torch.cat([z * stretch + shift, torch.full((len(z), 1), 3.0)], dim=1) for z in (train, test))
    assert 0.5 < plain <= 1.0
    assert metrics.linear_probe_accuracy(train, train_y, test, test_y) == pytest.approx(plain, abs=0.011)


def test_linear_probe_cannot_solve_xor() -> None:
    corner = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(10, 1)
    xor = torch.tensor([0, 1, 1, 0]).repeat(10)
    assert metrics.linear_probe_accuracy(corner, xor, corner, xor) <= 0.75


def test_linear_probe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match="linear_probe_accuracy needs scikit-learn"):
        metrics.linear_probe_accuracy(*blobs(3), *blobs(3))


# alignment, uniformity, histogram


def test_alignment_and_uniformity_in_closed_form() -> None:
    x = 3.0 * torch.eye(4)[:3]
    assert metrics.alignment(x, 5.0 * x) == pytest.approx(0.0, abs=1e-6)
    assert metrics.alignment(x, -x) == pytest.approx(4.0, rel=1e-6)
    assert metrics.alignment(x, x.roll(1, 0)) == pytest.approx(2.0, rel=1e-6)
    # every pair of orthonormal points is sqrt(2) apart: log exp(-2 t)
    assert metrics.uniformity(x) == pytest.approx(-4.0, rel=1e-5)
    assert metrics.uniformity(x, t=0.5) == pytest.approx(-1.0, rel=1e-5)
    assert metrics.uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-5)


def test_histogram_of_orthogonal_classes() -> None:
    z, ids = torch.eye(2).repeat_interleave(3, 0), torch.tensor([0, 0, 0, 1, 1, 1])
    positives, negatives, edges = metrics.similarity_histogram(z, bins=4, ids=ids)
    assert positives.tolist() == [0, 0, 0, 12]
    assert negatives.tolist() == [0, 0, 18, 0]
    assert edges.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_measures_are_floats_without_gradient() -> None:
    z = points(8, 4).requires_grad_()
    labels = torch.arange(8) % 2
    values = (
        metrics.knn_accuracy(z, labels, z, labels),
        metrics.linear_probe_accuracy(z, labels, z, labels),
        metrics.effective_rank(z),
        metrics.alignment(z, z),
        metrics.uniformity(z),
    )
    assert all(type(value) is float for value in values)


# bad input


GOOD = {"bank": torch.ones(4, 3), "bank_labels": torch.zeros(4, dtype=INT)}
GOOD |= {"queries": torch.ones(2, 3), "query_labels": torch.zeros(2, dtype=INT)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bank": torch.ones(4, 3, dtype=INT)}, TypeError, "bank must be floating point"),
        ({"bank": torch.ones(4)}, ValueError, "bank must have shape"),
        ({"bank": torch.ones(0, 3), "bank_labels": torch.zeros(0, dtype=INT)}, ValueError, "bank must have shape"),
        ({"queries": torch.ones(2, 5)}, ValueError, "queries must have 3 features"),
        ({"queries": torch.full((2, 3), torch.nan)}, ValueError, "queries must be finite"),
        ({"bank_labels": torch.zeros(4)}, TypeError, "bank_labels"),
        ({"bank_labels": torch.zeros(5, dtype=INT)}, ValueError, "bank_labels"),
        ({"query_labels": [0, 0]}, TypeError, "query_labels"),
        ({"query_labels": torch.zeros(2, 1, dtype=INT)}, ValueError, "query_labels"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": torch.inf}, ValueError, "temperature must be positive"),
    ],
)
def test_knn_names_the_bad_argument(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        metrics.knn_accuracy(**(GOOD | change))


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, torch.full((6, 8), torch.inf), ValueError, "train_z must be finite"),
        (1, torch.zeros(6, dtype=INT), ValueError, "train_y must hold at least two classes"),
        (1, torch.arange(5), ValueError, "train_y"),
        (2, torch.ones(6, 3), ValueError, "test_z must have 8 features"),
        (3, torch.zeros(6), TypeError, "test_y"),
    ],
)
def test_linear_probe_names_the_bad_argument(
    position: int, value: Tensor, error: type[Exception], message: str
) -> None:
    arguments = [*blobs(3, classes=2), *blobs(3, classes=2)]
    arguments[position] = value
    with pytest.raises(error, match=message):
        metrics.linear_probe_accuracy(*arguments)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.ones(4, dtype=torch.float32), ValueError, "z must have shape"),
        (torch.ones(4, 2, dtype=INT), TypeError, "z must be floating point"),
        (torch.tensor([[1.0, torch.nan]]), ValueError, "z must be finite"),
    ],
)
def test_effective_rank_names_the_bad_argument(z: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        metrics.effective_rank(z)
