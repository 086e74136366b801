# SPDX-License-Identifier: Apache-2.0
"""MEOW and AdaMEOW: node embeddings of a heterogeneous graph, with negatives weighted by clusters or by a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, of_the_batch
from pycl.engine.modifiers import Agreement, Modifier, PairMLP, check_below, check_holds, check_integers
from pycl.engine.reduction import reduce
from pycl.engine.reductions import pair_cross_entropy
from pycl.engine.validation import check_count
from pycl.functional._common import Scalar, check_features, check_matched, no_autocast, to_logit_scale, unit, widen


@of_the_batch
def meow(
    anchor: Tensor,
    key: Tensor,
    clusters: Tensor,
    *,
    temperature: Scalar = 0.9,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""MEOW: a negative counts as often as there are clusterings that part it from the anchor.

    With ``s_ij = <a_i, k_j> / temperature`` of unit rows and T clusterings::

        w_ij  = T - number of t with clusters[t, i] = clusters[t, j]
        value = mean_i ( -s_ii + log sum_j w_ij exp s_ij )

    ``w_ii`` is 0, so the own key is the positive and not in the sum, as in the decoupled loss. One direction only, and
    a gradient for both. A node that shares all its clusters with everyone has weights of 0 alone: its sum counts as 1,
    where the authors' code is infinite. Their loss adds :func:`proto_nce` of the same anchors.

    Args:
        anchor: ``[N, d]``, the nodes' embeddings from the coarse view.
        key: ``[N, d]``, from the fine-grained view; row i of both is node i.
        clusters: integers ``[T, N]``, T >= 1: the cluster of each node in each clustering.
        temperature: positive number or 0-d tensor; the authors take 0.4 for ACM and 0.9 for the others.
        group: ranks that share the batch, each with nodes of its own and clusters that all ranks number alike.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings that are not floating point, clusters that are not integers.
        ValueError: differing shapes or devices, an empty batch, no clustering, a temperature that is not positive, an
            unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Yu et al., "Heterogeneous Graph Contrastive Learning with Meta-path Contexts and Adaptively Weighted Negative
    Samples", arXiv 2212.13847, the loss of MEOW; its code.
    """
    scale = to_logit_scale(temperature)
    check_matched(anchor=anchor, key=key)
    if not isinstance(clusters, Tensor) or clusters.dim() != 2 or clusters.shape[0] == 0:
        given = tuple(clusters.shape) if isinstance(clusters, Tensor) else type(clusters).__name__
        raise ValueError(f"clusters must have shape [T, {len(anchor)}] with T >= 1, got {given}")
    clusters = check_integers("clusters", clusters, anchor, (len(clusters), len(anchor)), "[T, N]")
    weights = torch.arange(len(clusters), -1, -1, dtype=widen(anchor).dtype, device=anchor.device)
    modifier = Agreement(clusters, clusters, weights)
    return _weighted(anchor, key, unit(anchor), unit(key), scale, modifier, group, backend)


class PairWeight(nn.Module):
    """AdaMEOW's weight of a pair, ``sigmoid(w2 . tanh(w1 (u + k) + b1) + b2)``.

    Parameters, in this order: ``w1`` [hidden, dim], ``b1`` [hidden], ``w2`` [hidden], ``b2`` []; drawn like those of
    ``nn.Linear``.

    Args:
        dim: features of the embeddings.
        hidden: width of the hidden layer; the authors' is 16.
    """

    def __init__(self, dim: int, hidden: int = 16) -> None:
        super().__init__()
        dim, hidden = check_count("dim", dim), check_count("hidden", hidden)
        self.w1 = nn.Parameter(torch.empty(hidden, dim))
        self.b1 = nn.Parameter(torch.empty(hidden))
        self.w2 = nn.Parameter(torch.empty(hidden))
        self.b2 = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        hidden, dim = self.w1.shape
        for parameter, inputs in ((self.w1, dim), (self.b1, dim), (self.w2, hidden), (self.b2, hidden)):
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, u: Tensor, k: Tensor) -> Tensor:
        """The weights of pairs of unit vectors ``[..., dim]`` whose leading axes broadcast."""
        hidden = torch.tanh(nn.functional.linear(u + k, self.w1, self.b1))
        return torch.sigmoid((hidden * self.w2).sum(-1) + self.b2)

    def extra_repr(self) -> str:
        return f"dim={self.w1.shape[1]}, hidden={self.w1.shape[0]}"


@of_the_batch
def ada_meow(
    anchor: Tensor,
    key: Tensor,
    weight: PairWeight,
    *,
    temperature: Scalar = 0.9,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""AdaMEOW: MEOW with a network, trained along, that weighs every pair.

    With ``s_ij = <a_i, k_j> / temperature`` of unit rows::

        w_ij  = sigmoid( w2 . tanh( w1 (a_i + k_j) + b1 ) + b2 )
        value = mean_i ( -s_ii + log sum_j w_ij exp s_ij )

    Unlike in :func:`meow` the own key is in the sum, with its weight. The first layer splits into a part of the anchor
    and one of the key, so a pair costs one tanh for each hidden unit; the authors' code stores ``[N, N, d]`` three
    times. Anchor is the fine-grained view here and key the coarse one, as in that code.

    Args:
        anchor: ``[N, d]``, the nodes' embeddings from the fine-grained view.
        key: ``[N, d]``, from the coarse view; row i of both is node i.
        weight: the network, whose parameters get gradients; the ranks of a group have the same.
        temperature: positive number or 0-d tensor; the authors take 1.0 for ACM and 0.9 for the others.
        group: ranks that share the batch, each with nodes of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings that are not floating point, a weight that is no ``PairWeight``.
        ValueError: differing shapes or devices, a weight for another number of features, an empty batch, a temperature
            that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Yu et al., arXiv 2212.13847, the loss of AdaMEOW; its code.
    """
    scale = to_logit_scale(temperature)
    check_matched(anchor=anchor, key=key)
    if not isinstance(weight, PairWeight):
        raise TypeError(f"weight must be a PairWeight, got {type(weight).__name__}")
    if weight.w1.shape[1] != anchor.shape[1]:
        raise ValueError(f"weight must be for {anchor.shape[1]} features as anchor has, got {weight.w1.shape[1]}")
    u, k = unit(anchor), unit(key)
    dtype = torch.promote_types(u.dtype, k.dtype)
    w1, b1, w2, b2 = (parameter.to(dtype) for parameter in weight.parameters())
    with no_autocast(u):
        modifier = PairMLP(u.to(dtype) @ w1.T, nn.functional.linear(k.to(dtype), w1, b1), w2, b2)
    return _weighted(anchor, key, u, k, scale, modifier, group, backend)


def _weighted(
    anchor: Tensor, key: Tensor, u: Tensor, k: Tensor, scale: Scalar, modifier: Modifier, group: Any, backend: Any
) -> Tensor:
    """``mean_i ( log sum_j w_ij exp s_ij - s_ii )``: the modifier weighs the sum, not the own key's logit."""
    sums = pair_cross_entropy(
        Points(anchor),
        Points(key),
        scale,
        denominator=Pairs.ALL,
        positives=Pairs.NONE,
        offset=None,
        normalize=True,
        reduction="mean",
        modifiers=(modifier,),
        group=group,
        backend=backend,
    )
    return sums - reduce((u * k).sum(1) * scale, "mean", group)


def proto_nce(
    anchor: Tensor,
    centroids: Sequence[Tensor],
    assignments: Sequence[Tensor],
    concentrations: Sequence[Tensor],
    *,
    backend: str | None = None,
) -> Tensor:
    r"""ProtoNCE: every node finds its cluster's centroid, each with a temperature of its own, in T clusterings.

    With ``l_ik = <u_i, c_k> / phi_k`` for the K_t centroids of clustering t, ``u`` the unit anchors::

        value = mean over t and i of ( -l_own + log sum_k exp l_ik + log(N / K_t) )

    Centroids are taken as given, not normalised; they and the concentrations are constant. ``log(N / K_t)`` is a
    constant too: the authors multiply the sum by it.

    Args:
        anchor: ``[N, d]``.
        centroids: T tensors ``[K_t, d]``, T >= 1.
        assignments: T tensors of integers ``[N]``, the row in ``centroids[t]`` of each anchor's cluster.
        concentrations: T tensors ``[K_t]``, positive. The authors' ``phi`` is the mean root of similarities over
            ``log(size + 5)``, scaled to the mean temperature: made for distances, it is larger for tighter clusters.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings, centroids or concentrations that are not floating point, assignments that are not
            integers.
        ValueError: lists of differing lengths or without a clustering, shapes or devices that do not fit, a cluster
            that is not there, a concentration that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built.

    Li et al., "Prototypical Contrastive Learning of Unsupervised Representations", arXiv 2005.04966, equation 11
    without its first part, as MEOW, arXiv 2212.13847, takes it.
    """
    check_features(anchor=anchor)
    lists = {"centroids": centroids, "assignments": assignments, "concentrations": concentrations}
    lengths = {name: len(given) for name, given in lists.items()}
    if isinstance(centroids, Tensor) or len(set(lengths.values())) != 1 or not lengths["centroids"]:
        raise ValueError(f"centroids, assignments and concentrations must be lists of one length T >= 1, got {lengths}")
    n, u = len(anchor), unit(anchor)
    terms = []
    for t, (rows, own, phi) in enumerate(zip(centroids, assignments, concentrations, strict=True)):
        check_features(**{"anchor": anchor, f"centroids[{t}]": rows})
        k = len(rows)
        own = check_integers(f"assignments[{t}]", own, anchor, (n,), f"[{n}], one per anchor")
        check_below(f"assignments[{t}]", own, k, "the number of centroids")
        _check_concentrations(f"concentrations[{t}]", phi, rows)
        cross_entropy = pair_cross_entropy(
            Points(u, own),
            Points(widen(rows.detach()), torch.arange(k, device=u.device)),
            denominator=Pairs.ALL,
            positives=Pairs.POSITIVE,
            offset=None,
            reduction="mean",
            col_scale=1 / widen(phi.detach()),
            backend=backend,
        )
        terms.append(cross_entropy + math.log(n / k))
    return terms[0] if len(terms) == 1 else torch.stack(terms).mean()


def _check_concentrations(name: str, phi: Tensor, centroids: Tensor) -> None:
    if not isinstance(phi, Tensor) or not phi.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {getattr(phi, 'dtype', type(phi).__name__)}")
    if phi.shape != centroids.shape[:1]:
        raise ValueError(f"{name} must have shape [{len(centroids)}], one per centroid, got {tuple(phi.shape)}")
    if phi.device != centroids.device:
        raise ValueError(f"{name} must be on {centroids.device} as the centroids are, got {phi.device}")
    check_holds(((phi > 0) & (phi < torch.inf)).all(), f"{name} must be positive and finite", phi)
