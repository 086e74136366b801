# SPDX-License-Identifier: Apache-2.0
"""POT's host loss GRACE: node embeddings of two augmented graphs."""

from __future__ import annotations

from torch import Tensor

from pycl.distributed.ranks import Group, of_the_batch
from pycl.functional import nt_xent
from pycl.functional._common import Scalar, check_matched


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
