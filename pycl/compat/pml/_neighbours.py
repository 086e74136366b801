# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's losses of a softmax over all neighbours, and over the samples of a batch as classes."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.core.pairs import Pairs, Points
from pycl.engine.reductions import pair_stats

from ._fused import LOSSES, FusedLoss, Rounded, by_anchor, kept, scalar, under_autocast, why_several
from ._logits import as_compared, logits, why_no_logits
from ._pairs import Compared, integers

_LISTS: Any = find_peer("pytorch_metric_learning.utils.loss_and_miner_utils")


class OverNeighbours(Rounded):
    """The part of a loss that the library calls ``nca_computation``, from the engine."""

    def nca_computation(
        self,
        query: Tensor,
        reference: Tensor,
        query_labels: Tensor,
        reference_labels: Tensor,
        indices_tuple: Any,
    ) -> dict[str, Any]:
        """As the library, without the matrix of all queries and references."""
        given = query, reference, query_labels, reference_labels, indices_tuple
        if reference_labels is None or query.dim() != 2 or query.numel() == 0 or reference.numel() == 0:
            return self._as_there(*given)
        if why := self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return self._as_there(*given)
        itself = query is reference
        of_miner = _LISTS.convert_to_weights(indices_tuple, query_labels, dtype=query.dtype, using_ref=not itself)
        ids, ref_ids = integers(query_labels, reference_labels)
        problem = Compared(Points(query, ids), None if itself else kept(Points(reference, ref_ids)), None)
        problem = problem._replace(offset=0) if itself else problem
        sign = 1.0 if self.distance.is_inverted else -1.0
        sweep = logits(problem, self.distance, sign * scalar(self.softmax_scale))
        stats = pair_stats(denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **sweep)
        found = (stats.pos_count > 0).nonzero().squeeze(1)
        losses = -logsigmoid(stats.pos_lse[found] - stats.lse[found]) * of_miner[found]
        losses = under_autocast(losses, query, self.distance, "both")
        return {"loss": {"losses": losses, "indices": found, "reduction_type": "element"}}

    def _as_there(self, *given: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", super().nca_computation(*given))  # the library's

    def _pycl_why_not(self) -> str:
        """Why this loss runs the library's code whatever it is given, or nothing."""
        scale = self.softmax_scale
        if why := why_several(softmax_scale=scale):
            return why
        if not scale > 0:  # where the library's -inf of a point with itself is no longer the smallest
            return "a softmax_scale that is not positive"
        return why_no_logits(self.distance, squares=True)


class NCALoss(OverNeighbours, LOSSES.NCALoss):
    r"""pytorch-metric-learning's ``NCALoss``: the probability that a point picks a neighbour of its own class.

    With D the squared distance of the points at unit length, P(i) the other points of i's class::

        term_i = -log( sum_{p in P(i)} exp(-softmax_scale D_ip) / sum_{j != i} exp(-softmax_scale D_ij) )

    A point without others of its class has no term. The library also leaves out points whose probability rounds to 0,
    the worst of all; here they have their terms. One sweep over the distances and O(n) numbers. Half embeddings are
    summed in float32.

    ``LpDistance(power=2)``, the cosine similarity and the dot product, references, every reducer and ``indices_tuple``
    (which weights points) are fused. Other distances, a ``softmax_scale`` that is not positive and ``collect_stats`` of
    the distance run the library's code, with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n], ``ref_emb`` [m, d] and ``ref_labels`` [m]; a scalar.

    Raises:
        ValueError: labels of another length or shape or none.

    Goldberger et al., "Neighbourhood Components Analysis", 2004.
    """


class ProxyNCALoss(OverNeighbours, LOSSES.ProxyNCALoss):
    r"""pytorch-metric-learning's ``ProxyNCALoss``: :class:`NCALoss` of samples with the learnt proxies as references.

    ``-log( exp(-softmax_scale D_iy_i) / sum_c exp(-softmax_scale D_ic) )`` over the C proxies; a label without a proxy
    has no term. References are refused, as in the library.

    Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", arXiv 1703.07464.
    """


class InstanceLoss(FusedLoss, LOSSES.InstanceLoss):
    r"""pytorch-metric-learning's ``InstanceLoss``: a softmax over the batch, whose first samples stand for the classes.

    With s_ij the cosine and k_i the position of i's label among the sorted labels of the batch::

        term_i = log sum_j exp(gamma s_ij)  -  gamma s_ik_i

    over all j, i too: the target is sample number k_i, as in the library. One sweep over the similarities and O(n)
    numbers. Half embeddings are summed in float32.

    The cosine similarity with any ``p`` and every reducer are fused. Other distances and ``collect_stats`` of the
    distance run the library's code, with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n]; a scalar.

    Raises:
        ValueError: labels of another length or shape or none, references, an ``indices_tuple``.

    Zheng et al., "Dual-Path Convolutional Image-Text Embeddings with Instance Loss", arXiv 1711.05535.
    """

    _formula = Hooks(LOSSES.InstanceLoss)

    def _why_option(self) -> str:
        return why_several(gamma=self.gamma) or why_no_logits(self.distance)

    def _fused(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> dict[str, Any]:
        if indices_tuple is not None:  # which the library refuses
            return self._as_there(embeddings, labels, indices_tuple, embeddings, labels)
        z, gamma = as_compared(embeddings, self.distance), scalar(self.gamma)
        target = labels.unique(return_inverse=True)[1]
        lse = pair_stats(Points(z), None, gamma, denominator=Pairs.ALL).lse
        return {"loss": by_anchor(lse - gamma * (z * z[target]).sum(1))}
