# SPDX-License-Identifier: Apache-2.0
"""gCooL's two losses of communities: nodes against the centres of the other view, and modularity by sparse products."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.engine.modifiers import LabelTable, check_below, check_integers
from pycl.engine.reductions import pair_cross_entropy
from pycl.engine.validation import check_choice
from pycl.functional._common import (
    Scalar,
    as_scalar,
    check_features,
    check_matched,
    check_positive,
    check_weight,
    no_autocast,
    unit,
    widen,
)

SIMILARITIES = ("cos", "rbf")
ELEMENTS = 3 << 17  # of a strip of similarities


def gcool_community(
    h1: Tensor,
    h2: Tensor,
    centers: Tensor,
    *,
    temperature: Scalar = 0.3,
    similarity: str = "cos",
    gamma: Scalar = 5e-5,
    backend: str | None = None,
) -> Tensor:
    r"""gCooL's community loss: every node of a view finds its community among the centres of the other view.

    With ``a, b`` the unit rows of h1 and h2, and unit ``centers``::

        idx1_i = argmax_k <a_i, centers_k>            C1_k = mean of the a_i with idx1_i = k, not normalised again
        idx2_i = argmax_k <b_i, centers_k>            C2_k = mean of the b_i with idx2_i = k
        "cos": l(x, C)_k = <x, C_k> / temperature            w_jk(C) = 1
        "rbf": l(x, C)_k = -|x - C_k|^2 / temperature^2      w_jk(C) = exp(-gamma |C_j - C_k|^2)
        L(x, C, p) = log( exp l(x, C)_p + sum_{k != p} w_pk(C) exp l(x, C)_k ) - l(x, C)_p
        value = mean_i ( L(a_i, C2, idx2_i) + L(b_i, C1, idx1_i) ) / 2

    One index, ``idx2_i`` for a_i against C2 and ``idx1_i`` for b_i against C1, is the positive column, the one left out
    of the sum, and the row of ``w``: node i is expected in the community that the *other* view gave it. Assignments and
    centres are constants, and with them ``centers``, which :func:`deca` trains. An empty community has a zero centre
    and stays in the sum. Among equal similarities the first community is taken.

    In the authors' code the second direction is a copy of the first, which is then the whole loss, and the weights of
    "rbf" are never in use with the published settings; here both are as the paper has them.

    Args:
        h1, h2: ``[N, d]``, row i of both is node i.
        centers: ``[K, d]``, the learned centres; constant.
        temperature: positive number or 0-d tensor.
        similarity: ``"cos"`` or ``"rbf"``.
        gamma: number or 0-d tensor, not negative, for the weights of ``"rbf"``.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, an unknown similarity or backend, a temperature that is
            not positive, a gamma that is negative or not finite.
        RuntimeError: the backend asked for is not built.

    Li et al., "Graph Communal Contrastive Learning", arXiv 2110.14863, the cross-view community loss; its code.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    temperature, gamma = check_positive("temperature", temperature), check_weight("gamma", gamma)
    check_matched(h1=h1, h2=h2)
    check_features(h1=h1, centers=centers)
    n, k = len(h1), len(centers)
    u = unit(torch.cat([h1, h2]))
    found = [_communities(x, unit(centers.detach())) for x in u.detach().split(n)]
    own = torch.cat([found[0][0], found[1][0] + k])  # a community's number among those of both views
    means = torch.cat([found[0][1], found[1][1]])
    view, at = torch.arange(2 * n, device=u.device) // n, torch.arange(2 * k, device=u.device)
    bias, weights, scale = None, None, 1 / temperature
    if similarity == "rbf":  # |x|^2 is the same for all candidates of a row, and a softmax does not see it
        scale = 2 / temperature**2
        bias = (means * means).sum(1) * (-scale / 2)
        weights = LabelTable(_weights(means, gamma), own.roll(n), at)
    return pair_cross_entropy(
        Points(u, own.roll(n), 1 - view),  # row i of a view, with the community of the other view
        Points(means, at, at // k),
        scale,
        denominator=Pairs.POS_SAME_VIEW | Pairs.NEG_SAME_VIEW,
        positives=Pairs.POS_SAME_VIEW,
        col_bias=bias,
        offset=None,
        reduction="mean",
        backend=backend,
        modifiers=() if weights is None else (weights,),
    )


def deca(assignment: Tensor, edge_index: Tensor, *, resolution: Scalar = 1.0) -> Tensor:
    r"""DeCA, gCooL's modularity of soft communities in one view of a graph, by sparse products.

    With ``R`` the assignment, ``A`` the 0/1 matrix of the edges and ``F = R^T A R``::

        value = ( resolution sum(F) - (N - 1 + resolution) tr(F) ) / (N (N - 1)) + tr(R^T R) / (2 N)

    One node has the second term alone. Neither A nor F is stored: of ``Y = A R`` only ``sum_ik Y_ik sum_l R_il`` and
    ``sum_ik R_ik Y_ik`` are needed. The authors' code stores A in full, and averages the values of two views.

    Args:
        assignment: ``[N, K]``, as given: the authors take a softmax of :func:`gcool_community`'s similarities.
        edge_index: integers ``[2, E]``, an edge from row 0 to row 1; one that is repeated counts once. An undirected
            graph has both directions.
        resolution: number or 0-d tensor, the paper's lambda.

    Returns:
        A float32 scalar (float64 for float64 input); half types are summed in float32.

    Raises:
        TypeError: an assignment that is not floating point, edges that are not integers.
        ValueError: shapes that do not fit, an empty assignment, different devices, an edge to a node that is not there.

    Li et al., "Graph Communal Contrastive Learning", arXiv 2110.14863, equation of DeCA; its code.
    """
    resolution = as_scalar("resolution", resolution)
    check_features(assignment=assignment)
    n = len(assignment)
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or len(edge_index) != 2:
        given = tuple(edge_index.shape) if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise ValueError(f"edge_index must have shape [2, E], got {given}")
    edges = check_integers("edge_index", edge_index, assignment, edge_index.shape, "[2, E]")
    check_below("edge_index", edges, n, "the number of nodes")
    r = widen(assignment)
    spread = (r * r).sum() / (2 * n)
    if n == 1:
        return spread
    edges = torch.unique(edges[0] * n + edges[1])
    ones = torch.ones_like(edges, dtype=r.dtype)
    at = torch.stack([edges // n, edges % n])
    adjacency = torch.sparse_coo_tensor(at, ones, (n, n), is_coalesced=True, check_invariants=False)
    with no_autocast(r):
        y = torch.sparse.mm(adjacency, r)
    inside = (r * y).sum()
    between = (y.sum(1) * r.sum(1)).sum() - inside
    value: Tensor = (resolution * between / (n - 1) - inside) / n + spread
    return value


def _communities(u: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar centre of every node, and the mean of every centre's nodes; in strips, as there may be many."""
    own, sums, numbers = [], u.new_zeros(centers.shape), u.new_zeros(len(centers))
    centers, at = centers.to(u.dtype), torch.arange(len(centers), device=u.device)
    with no_autocast(u):
        for x in u.split(max(1, ELEMENTS // len(centers))):
            own.append((x @ centers.T).argmax(1))
            members = (own[-1][:, None] == at).to(u.dtype)
            sums += members.T @ x  # a sum by index would be in no fixed order on a GPU
            numbers += members.sum(0)
    return torch.cat(own), sums / numbers.clamp_min(1)[:, None]


def _weights(means: Tensor, gamma: Scalar) -> Tensor:
    """``exp(-gamma |C_j - C_k|^2)`` of all centres; exactly 1 for a centre and itself. NaN is left to the logits."""
    square = (means * means).sum(1)
    with no_autocast(means):
        distance = square[:, None] + square - 2 * means @ means.T
    return torch.exp(-gamma * distance.clamp_min(0).fill_diagonal_(0).nan_to_num(0))
