# SPDX-License-Identifier: Apache-2.0
"""POT: a bound on how compact nodes stay under augmentations of a graph, and its host loss GRACE."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.core.tracing import observed
from pycl.distributed.ranks import Group, of_the_batch
from pycl.functional import nt_xent
from pycl.functional._common import Scalar, check_features, check_matched, no_autocast, unit


@of_the_batch
def grace(
    h1: Tensor, h2: Tensor, *, temperature: Scalar = 0.5, group: Group | None = None, backend: str | None = None
) -> Tensor:
    r"""GRACE: every node of two augmented graphs finds itself in the other one.

    With ``a, b`` the unit rows of h1 and h2, over the temperature::

        l(a_i) = log( sum_j exp <a_i, b_j> + sum_{j != i} exp <a_i, a_j> ) - <a_i, b_i>
        value  = mean_i ( l(a_i) + l(b_i) ) / 2

    That is NT-Xent on two views. The authors' code removes the self term by subtracting it from a sum, which costs
    three digits of float32 at a temperature of 0.05; here it is never in the sum.

    Args:
        h1, h2: ``[N, d]``, row i of both is node i.
        temperature: positive number or 0-d tensor.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, a temperature that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zhu et al., "Deep Graph Contrastive Representation Learning", arXiv 2006.04131, equation 1; the loss that POT's
    "Provable Training for Graph Contrastive Learning", arXiv 2309.13944, regularises.
    """
    check_matched(h1=h1, h2=h2)
    return nt_xent((h1, h2), temperature=temperature, group=group, backend=backend)


def node_compactness(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    h2: Tensor,
    edge_index: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    last_relu: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""A lower bound on how much closer a node is to itself than to the others, whatever the augmentation drops.

    A graph convolutional network embeds the first graph, whose adjacency A is known up to bounds::

        h1 = A relu(A x weight1 + bias1) weight2 + bias2      0 <= lower_e <= A_e <= upper_e on the edges e, else 0

    With ``last_relu`` h1 is the relu of that. With n2 the unit rows of h2, the embeddings of the second graph::

        w_i     = n2_i - mean_{j != i} n2_j        bound_i <= <h1_i, w_i> for every such A
        value   = mean_i softplus(-bound_i)        the binary cross entropy of the bound with the label 1

    The bound: both relus are monotone and A is at least 0, so every hidden unit lies between those of the two ends, and
    so does what a node gathers of them; a linear function of that is least at one end of each unit, by the sign of its
    weight. Where ``lower`` is ``upper`` it is ``<h1_i, w_i>`` itself. It takes four sparse products, O(E) memory for
    the graph and never N x N.

    Args:
        x: ``[N, f]``, the features of the nodes, as given.
        weight1, bias1: ``[f, h]``, ``[h]``.
        weight2, bias2: ``[h, d]``, ``[d]``.
        h2: ``[N, d]``, normalised inside.
        edge_index: integers ``[2, E]``: edge e is the entry A[edge_index[0, e], edge_index[1, e]]. Self loops are edges
            like others; entries named twice add up.
        lower, upper: ``[E]``, constant; of a normalised adjacency, with whatever it may become when edges are dropped.
        last_relu: whether the second layer has a relu, as the encoder of GRACE.

    Returns:
        ``(bound, value)``: ``[N]`` and a scalar, in float32 (float64 for float64 input). All but the adjacency gets
        gradients, h2 through w. The mean over the others of a lone node is 0.

    Raises:
        TypeError: inputs that are not floating point, an edge_index that is not of integers.
        ValueError: shapes or devices that do not fit, an edge outside of the graph, bounds that are negative or where
            lower is greater than upper.

    After Yu et al., "Provable Training for Graph Contrastive Learning", arXiv 2309.13944. Shared with the paper: what
    is bounded, the direction w, the loss on the bound; h1 and h2 are the encoder's, before a projection. Not shared:
    the paper relaxes the relu linearly and propagates backwards (CROWN), with coefficients that this does not
    reproduce; here intervals are propagated forwards, which is sound, cheaper, and may be looser. The authors' code
    stores dense N x N bounds and another N x N for a diagonal, and may take a batch of nodes; this takes all nodes.
    """
    _check_network(x, weight1, bias1, weight2, bias2, h2)
    _check_edges(x, edge_index, lower, upper)
    network = x, weight1, bias1, weight2, bias2, h2
    dtype = reduce(torch.promote_types, (t.dtype for t in (*network, lower, upper)), torch.float32)
    x, weight1, bias1, weight2, bias2, h2 = (t.to(dtype) for t in network)
    n = len(x)
    lo, up = (
        torch.sparse_coo_tensor(edge_index, a.detach().to(dtype), (n, n), check_invariants=False).coalesce()
        for a in (lower, upper)
    )
    n2 = unit(h2)
    w = n2 - (n2.sum(0) - n2) / max(n - 1, 1)
    with no_autocast(x):
        y = x @ weight1
        y = torch.cat([y.relu(), (-y).relu()], 1)
        (lo_plus, lo_minus), (up_plus, up_minus) = ((a @ y).chunk(2, 1) for a in (lo, up))
        low, high = lo @ (lo_plus - up_minus + bias1).relu(), up @ (up_plus - lo_minus + bias1).relu()
        if last_relu:
            plus, minus = weight2.relu(), (-weight2).relu()
            low, high = low @ plus - high @ minus + bias2, high @ plus - low @ minus + bias2
            bound = (w.relu() * low.relu() - (-w).relu() * high.relu()).sum(1)
        else:
            v = w @ weight2.T
            bound = (v.relu() * low - (-v).relu() * high).sum(1) + w @ bias2
    return bound, -logsigmoid(bound).mean()


def _check_network(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, h2: Tensor) -> None:
    for name, matrix in (("x", x), ("weight1", weight1), ("weight2", weight2), ("h2", h2)):
        check_features(**{name: matrix})
    (n, f), h, d = x.shape, weight1.shape[1], weight2.shape[1]
    given = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2, "h2": h2}
    for (name, t), shape in zip(given.items(), ((f, h), (h,), (h, d), (d,), (n, d)), strict=True):
        if not isinstance(t, Tensor) or not t.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(t, 'dtype', type(t).__name__)}")
        if t.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {tuple(t.shape)}")
        if t.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x is, got {t.device}")


def _check_edges(x: Tensor, edge_index: Tensor, lower: Tensor, upper: Tensor) -> None:
    if not isinstance(edge_index, Tensor) or edge_index.is_floating_point() or edge_index.dtype == torch.bool:
        given = getattr(edge_index, "dtype", type(edge_index).__name__)
        raise TypeError(f"edge_index must be an integer tensor, got {given}")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must have shape [2, E], got {tuple(edge_index.shape)}")
    for name, t in (("lower", lower), ("upper", upper)):
        if not isinstance(t, Tensor) or not t.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(t, 'dtype', type(t).__name__)}")
        if t.shape != edge_index.shape[1:]:
            raise ValueError(f"{name} must have shape [{edge_index.shape[1]}], got {tuple(t.shape)}")
    if not all(t.device == x.device for t in (edge_index, lower, upper)):
        raise ValueError(f"edge_index, lower and upper must be on {x.device} as x is")
    if x.device.type == "cpu" and not observed():
        if not ((edge_index >= 0) & (edge_index < len(x))).all():
            raise ValueError(f"edge_index must be from 0 to {len(x) - 1}, the nodes of x")
        if not ((lower >= 0) & (lower <= upper)).all():
            raise ValueError("lower must be at least 0 and at most upper on every edge")
