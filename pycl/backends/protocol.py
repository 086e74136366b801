# SPDX-License-Identifier: Apache-2.0
"""What a backend is: a module with the functions of ``PairBackend``, of ``SinkhornBackend``, or of both, or of more.

Functions get tensors on one device, checked, in the form that :mod:`pycl.core.problem` describes, and return new
tensors there. They know neither autograd nor process groups. :mod:`pycl.backends.reference` is the specification: a
function may be imported from it. Where a compiled part is missing the module raises ``BackendUnavailable`` when it is
imported, with the way to get it. One row of ``BACKENDS`` in :mod:`pycl.backends.registry` adds a backend, and the tests
run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pycl.core.problem import Gradients, Needs, PrefixGradients, Problem, SinkhornProblem


class _Backend(Protocol):
    @property
    def DEVICES(self) -> tuple[str, ...] | None:
        """Types of devices whose tensors it takes; None for all."""

    @property
    def DTYPES(self) -> Iterable[torch.dtype]:
        """Of the embeddings or the scores."""


class PairBackend(_Backend, Protocol):
    """The operators on the logits of all pairs of points."""

    def pair_stats(
        self, problem: Problem, slopes: Sequence[float], both_sides: bool, save: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The statistics of the rows [6, m] (``StatsRow``), those of the columns [6, n] or [6, 0], and residuals.

        With slopes both are a block of six rows for each slope s, with the log-sum-exps of s times the logits.

        Statistics of the columns are wanted with ``both_sides``, unless the problem is symmetric. With ``save`` a
        backward may follow. Residuals are an empty tensor; a backend may leave in its storage what the backward reuses.
        """

    def pair_stats_backward(
        self,
        problem: Problem,
        slopes: Sequence[float],
        row_stats: Tensor,
        col_stats: Tensor,
        residuals: Tensor,
        d_row_stats: list[Tensor | None],
        d_col_stats: list[Tensor | None],
        needs: Needs,
    ) -> Gradients:
        """Gradients from those of lse, pos_lse and pos_sum of each side, None for 0.

        They are contiguous, [n] each. With slopes those of the log-sum-exps are [slopes, n].

        The statistics are those of this problem over more columns, where ranks share a batch; residuals may be empty.
        """

    def pair_sum(
        self, problem: Problem, map: str, positive_weight: Tensor | None, counted: bool, save: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``sum over pairs map(l) + w sum over positives map(-l)`` [m], how many terms are not 0, and residuals.

        The map is one of ``pycl.core.problem.MAPS``. A logit of -inf is in no sum. The weight ``w`` of the positives is
        contiguous, [m] in the accumulation dtype, or None for 1. A row whose weight is 0 has no positives: 0 times an
        infinite term is 0. The counts have the accumulation dtype and are empty unless ``counted``.
        """

    def pair_sum_backward(
        self,
        problem: Problem,
        map: str,
        positive_weight: Tensor | None,
        residuals: Tensor,
        d_sum: Tensor,
        needs: Needs,
    ) -> Gradients:
        """Gradients from those of the sums [m]; the weight has none."""

    def pair_logits(self, problem: Problem) -> Tensor:
        """The logits [m, n] in the dtype of the embeddings, -inf outside of ``pairs``."""

    def pair_logits_backward(self, problem: Problem, d_logits: Tensor, needs: Needs) -> Gradients:
        """Gradients from those of the logits, of any strides; entries outside of ``pairs`` are ignored."""

    def pair_top(self, problem: Problem, k: int, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The k largest logits of every row over ``pairs``, and their columns, int64; else -inf and -1.

        Then, with ``both_sides``, those of every column and their rows; [0, k] without.
        """

    def pair_extremes(self, problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The largest logit of every row over ``pairs`` and the smallest over ``positives``, [2, m], and their columns.

        Without one: -inf, inf and -1. A logit of -inf is no candidate. A NaN comes first in both; of equals the lowest
        column. Then, with ``both_sides``, those of every column, [2, n], and their rows; [2, 0] without.
        """

    def pair_extremes_backward(
        self,
        problem: Problem,
        row_index: Tensor,
        col_index: Tensor,
        d_rows: list[Tensor | None],
        d_cols: list[Tensor | None],
        needs: Needs,
    ) -> Gradients:
        """Gradients from those of the logits of the chosen pairs; those where there is none are ignored.

        The indices are those of the forward. Of each side: the gradients of the negatives and of the positives, None
        for zero.
        """

    def pair_average(self, problem: Problem, values: Tensor | None) -> tuple[Tensor, Tensor]:
        """Means [m, dv] of the values under every row's softmax, and its log-sum-exps [m]; 0 and -inf without pairs.

        Without values the logits are averaged, [m, 1]. Both have the accumulation dtype.
        """

    def pair_average_backward(
        self, problem: Problem, values: Tensor, d_out: Tensor, along: Tensor, of_values: bool, needs: Needs
    ) -> tuple[Tensor, ...]:
        """The values' gradient [n, dv] in the accumulation dtype, empty without ``of_values``; then ``Gradients``.

        Of the softmax means ``o``: the problem's row bias holds minus the log-sum-exps, so that ``exp(l)`` is the
        weight. ``d_out`` [m, dv], contiguous, is their gradient ``g``, and ``along`` [m] is ``<g_i, o_i>``. Logit
        ``l_ij`` has the gradient ``exp(l_ij) (<g_i, v_j> - along_i)``, in which that of the log-sum-exp is contained.
        """


class FusedPairBackend(PairBackend, Protocol):
    """One that returns a loss and its gradients from one call. These are no operators: what is traced has none."""

    def pair_cross_entropy_fused(
        self, problem: Problem, both_sides: bool, lse: float, pos_sum: float, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The total over the rows, or over both sides, of lse and pos_sum times their weights.

        Then its gradients: one for each of ``problem.used_leaves()``, maybe None where none is wanted.
        """

    def pair_sum_fused(
        self, problem: Problem, map: str, positive_weight: Tensor | None, weight: float, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The total of ``pair_sum`` times a weight; then its gradients likewise."""


class PrefixBackend(PairBackend, Protocol):
    """One for which statistics over several prefixes of the features cost what the longest does.

    Of a backend without it :func:`pycl.engine.prefix_stats` makes one pass for each prefix.
    """

    def prefix_stats(
        self, problem: Problem, row_factor: Tensor, col_factor: Tensor, ends: Sequence[int], both_sides: bool
    ) -> tuple[Tensor, Tensor]:
        """The statistics as of ``pair_stats``, a block of six rows for each of the ascending ends of prefixes.

        The logits of prefix k are ``row_factor[k, i] col_factor[k, j] <x_i, y_j>`` over the features before
        ``ends[k]``. The last end is the number of features, the others are multiples of ``PREFIX_UNIT``, at most
        ``MAX_PREFIXES``. The problem is not normalised, and has a scale of 1, neither biases nor modifiers. In a
        symmetric one the two factors of a pair may change places.
        """

    def prefix_stats_backward(
        self,
        problem: Problem,
        row_factor: Tensor,
        col_factor: Tensor,
        ends: Sequence[int],
        row_stats: Tensor,
        col_stats: Tensor,
        d_row_stats: list[Tensor | None],
        d_col_stats: list[Tensor | None],
        needs: Needs,
    ) -> PrefixGradients:
        """Gradients from those of lse, pos_lse and pos_sum of each side, contiguous [ends, n], None for 0.

        In a symmetric problem a pair's part of a factor's gradient is counted in either of the two.
        """


class SinkhornBackend(_Backend, Protocol):
    """Sinkhorn on stored scores in one call; outside of process groups that is all it takes."""

    def sinkhorn(self, t: SinkhornProblem) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, K], and the potentials of the samples [B] and of the prototypes [K].

        :func:`pycl.core.sinkhorn.solve` makes it of the two steps of ``SinkhornStepBackend``.
        """


class SinkhornStepBackend(SinkhornBackend, Protocol):
    """Sinkhorn step by step: process groups need this."""

    def sinkhorn_columns(self, t: SinkhornProblem, potential: Tensor | None) -> Tensor:
        """``log sum_b exp(L_bk + u_b)`` [K]; ``u`` is the sample step's, or 0 where there is no potential yet."""

    def sinkhorn_codes(self, t: SinkhornProblem, potential: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, K] and the samples' potential [B] from the prototypes' potential [K]."""


class SinkhornFeatureBackend(SinkhornStepBackend, Protocol):
    """One for which small problems on features compute their scores once, instead of in every iteration."""

    def sinkhorn_scores(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """``<z_b, c_k>`` [B, K] in the accumulation dtype."""

    def sinkhorn_samples(self, t: SinkhornProblem, potential: Tensor) -> Tensor:
        """``log sum_k exp(L_bk + v_k)`` [B]."""


class UnitBackend(_Backend, Protocol):
    """One for which rows at unit length are one pass; elsewhere they are :func:`pycl.core.unit.unit`."""

    def unit(self, z: Tensor) -> Tensor:
        """``z`` [..., d], d >= 1, of any strides, L2-normalised along d, contiguous in the accumulation dtype."""

    def unit_backward(self, z: Tensor, d_unit: Tensor) -> Tensor:
        """From the gradient of that to the one of ``z``, in its dtype."""
