# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's ``ProxyAnchorLoss``: samples against a learnt vector of every class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pycl.compat._peer import Hooks, find_peer
from pycl.core.pairs import Pairs, Points
from pycl.engine.reductions import pair_stats

from ._classes import why_no_classes
from ._fused import LOSSES, FusedLoss, by_anchor, scalar, under_autocast, why_several
from ._logits import logits, why_no_logits
from ._pairs import Compared, lse_by_anchor

_LISTS: Any = find_peer("pytorch_metric_learning.utils.loss_and_miner_utils")


class ProxyAnchorLoss(FusedLoss, LOSSES.ProxyAnchorLoss):
    r"""pytorch-metric-learning's ``ProxyAnchorLoss``: proxies of the classes are the anchors, samples their candidates.

    With s_ic the cosine of sample i and proxy c, over the C proxies, C+ of which have a sample of their class::

        loss = sum_c log( 1 + sum_{i in c}     exp(-alpha (s_ic - margin)) ) / C+
             + sum_c log( 1 + sum_{i not in c} exp( alpha (s_ic + margin)) ) / C

    One sweep over the n x C similarities, none of which is stored, and O(n + C) numbers beside the proxies. Of an
    ``indices_tuple`` each sample's weight less 1 is added to its exponents, as in the library. Half embeddings are
    summed in float32.

    The cosine similarity and the dot product, any ``p``, every reducer and regularizer are fused. Other distances,
    labels that are no int64 in 0 ... C - 1, ``collect_stats`` of the distance and a ``get_logits`` that a subclass
    overrides run the library's code, with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n]; a scalar.

    Raises:
        ValueError: labels of another length or shape or none, references.

    Kim et al., "Proxy Anchor Loss for Deep Metric Learning", arXiv 2003.13911.
    """

    proxies: nn.Parameter  # [C, d]
    _formula = Hooks(LOSSES.ProxyAnchorLoss, "get_logits")

    def _why_option(self) -> str:
        return why_several(alpha=self.alpha, margin=self.margin) or why_no_logits(self.distance)

    def _why_not(self, embeddings: Tensor, labels: Tensor) -> str:
        n_classes = self.num_classes if self.num_classes == len(self.proxies) else 0
        return why_no_classes(labels, n_classes)

    def _fused(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> dict[str, Any]:
        self.cast_types(embeddings.dtype, embeddings.device)
        of_miner = _LISTS.convert_to_weights(indices_tuple, labels, dtype=embeddings.dtype) - 1
        n_classes, alpha = len(self.proxies), scalar(self.alpha)
        far = alpha * scalar(self.margin)
        classes = torch.arange(n_classes, device=labels.device)
        problem = Compared(Points(embeddings, labels), Points(self.proxies, classes), None)
        sweep = logits(problem, self.distance, alpha) | {"row_bias": None if indices_tuple is None else of_miner}
        of_samples, of_proxies = pair_stats(denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, sides="both", **sweep)
        own = far - of_samples.pos_sum + 2 * of_miner  # the sum has the weight, too, with the other sign
        positives, negatives = lse_by_anchor(own, labels, n_classes), of_proxies.lse + far
        divisors = len(labels.unique()), n_classes
        found = {}
        for name, lse, divisor in zip(self._sub_loss_names(), (positives, negatives), divisors, strict=True):
            terms = under_autocast(-logsigmoid(-lse), embeddings, self.distance, "both")
            found[name] = by_anchor(terms) | {"divisor": divisor}
        self.add_weight_regularization_to_loss_dict(found, self.proxies)
        return found
