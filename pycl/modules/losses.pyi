# SPDX-License-Identifier: Apache-2.0
# Written by `make stubs` from the signatures and docstrings of pycl.functional; tests/losses/test_modules.py compares.
from collections.abc import Sequence

from torch import Tensor

from pycl.distributed.ranks import Group
from pycl.functional._common import Scalar
from pycl.modules.base import Loss

__all__ = [
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "DHELLoss",
    "InfoNCELoss",
    "MVDHELLoss",
    "MVInfoNCELoss",
    "NTXentLoss",
    "PolyViewLoss",
    "SigLIPLoss",
    "SupConLoss",
]

class ViewsLoss(Loss):
    r"""A loss on views."""

    def forward(
        self,
        *views: Tensor | Sequence[Tensor],
    ) -> Tensor:
        r"""``forward(views)`` with all views in one tensor or sequence, or ``forward(z1, z2, ...)``."""

class NTXentLoss(ViewsLoss):
    r"""Normalised temperature-scaled cross entropy (SimCLR) over V views of N instances.

    Module of :func:`pycl.functional.nt_xent`.

    With ``s_ij = <u_i, u_j> / temperature`` over all ``V * N`` points, ``P(i)`` the other views of i's instance::

        term_i = log sum_{j != i} exp s_ij  -  mean_{p in P(i)} s_ip

    The mean runs over all ``V * N`` anchors: SimCLR's equation 1 averaged over ``2N``. (The released SimCLR code
    adds the means of the two views and so is twice as large.) More than two views give the multi-positive form:
    every positive stays in the denominator. One instance and two views give 0 with zero gradient.

    Args:
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709, equation 1.
    """

    def __init__(
        self,
        temperature: Scalar = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class InfoNCELoss(Loss):
    r"""InfoNCE: pick the own key among the candidates.

    Module of :func:`pycl.functional.info_nce`.

    With ``s_ij = <q_i, k_j> / temperature``, ``n_ij = <q_i, negative_j> / temperature`` of M shared negatives, or
    ``n_ij = <q_i, negative_ij> / temperature`` of each query's own::

        negatives None:      term_i = log sum_j exp s_ij                        -  s_ii
        negatives given:     term_i = log( exp s_ii      + sum_j exp n_ij )     -  s_ii
        and in_batch=True:   term_i = log( sum_j exp s_ij + sum_j exp n_ij )    -  s_ii

    Without ``negatives`` the other keys of the batch are the negatives. With them (a queue, a memory bank, mined hard
    negatives) the candidates are the own key and the negatives **only**, as in the package ``info-nce-pytorch`` and in
    MoCo, unless ``in_batch=True`` keeps the other keys. ``symmetric=True`` averages query-to-key and key-to-query.

    ``label_smoothing`` e takes, as torch's cross entropy does, the targets (1 - e) on the own key and e spread evenly
    over all n candidates, the own key too: ``term_i + e (s_ii - mean of the logits of all n candidates)``.

    Args:
        temperature: positive number or 0-d tensor.
        symmetric: average both directions; only without ``negatives`` and ``in_batch``.
        in_batch: beside ``negatives``, the other keys are candidates, too. Without them they always are.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: a number from 0 to 1.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        query: ``[N, d]``; float64, float32, bfloat16 or float16.
        key: ``[N, d]``; row i is the positive of query i.
        negatives: ``[M, d]``, shared by all queries; ``[N, M, d]``, of each query's own; or None.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, negatives that are neither ``[M, d]`` nor ``[N, M, d]``
            with M >= 1, ``symmetric`` with negatives or ``in_batch``, a temperature that is not positive, a label
            smoothing outside of 0 to 1, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748, equation 4;
    with a queue: He et al., "Momentum Contrast", arXiv 1911.05722, equation 1; with hard negatives beside those of the
    batch: Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", arXiv 2004.04906, equation 2.
    """

    def __init__(
        self,
        temperature: Scalar = 0.1,
        *,
        symmetric: bool = False,
        in_batch: bool = False,
        reduction: str = "mean",
        label_smoothing: float = 0,
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
    ) -> Tensor:
        r"""Queries and keys ``[N, d]``, negatives ``[M, d]`` or ``[N, M, d]``, or None for the batch's keys."""

class CLIPLoss(Loss):
    r"""Symmetric cross entropy over image-to-text and text-to-image (CLIP).

    Module of :func:`pycl.functional.clip`; the model owns the logit scale and passes it.

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``::

        term_i = ( log sum_j exp l_ij + log sum_j exp l_ji ) / 2  -  l_ii

    Features are taken **as they are given** (``normalize=False``) and ``logit_scale`` multiplies, as in open_clip:
    pass ``log_scale.exp()`` of the learnable log-scale. A constant bias does not change a softmax; it is accepted so
    that a model's parameter stays in the graph (its gradient is zero up to rounding).

    ``label_smoothing`` e takes, as torch's cross entropy does, the targets (1 - e) on the own pair and e spread evenly
    over all n candidates: ``term_i + e (l_ii - (mean_j l_ij + mean_j l_ji) / 2)``.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: a number from 0 to 1.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.

    Called with:
        image: ``[N, d]``; float64, float32, bfloat16 or float16.
        text: ``[N, d]``; row i belongs to image i.
        logit_scale: number or 0-d tensor.
        logit_bias: number, 0-d tensor or None.

    Returns:
        A scalar, or ``[N]`` with ``"none"`` (both directions of pair i averaged); float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a logit_scale that is no number.
        ValueError: differing shapes or devices, an empty batch, a label smoothing outside of 0 to 1, an unknown
            reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, figure 3.
    """

    def __init__(
        self,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0,
        normalize: bool = False,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None: ...
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        r"""Image features ``[N, d]``, text features ``[N, d]``, the scale (not its logarithm) and the bias."""

class SigLIPLoss(CLIPLoss):
    r"""Sigmoid loss over all image-text pairs (SigLIP).

    Module of :func:`pycl.functional.siglip`; called as :class:`CLIPLoss` is, with the bias a must, and with ids.

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``::

        term_i = softplus(-l_ii) + sum_{j != i} softplus(l_ij)

    The mean divides the sum over all ``N^2`` pairs by N, not by ``N^2``, as the paper and open_clip do. Features
    are taken as they are given (``normalize=False``). Usual start: ``logit_scale = 10``, ``logit_bias = -10``.

    With ``ids`` an image has several texts, or a text several images. The positives P(i) are then the texts whose id is
    that of image i, and text i whatever its id; all others are negatives::

        term_i = sum_{j in P(i)} softplus(-l_ij) + sum_{j not in P(i)} softplus(l_ij)

    ``per_anchor=True`` takes the mean over P(i) in place of the first sum: an image counts once, however many texts it
    has.

    Args:
        per_anchor: weigh the positives of an image by 1 / their number.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.

    Called with:
        image: ``[N, d]``; float64, float32, bfloat16 or float16.
        text: ``[N, d]``; row i belongs to image i.
        logit_scale: number or 0-d tensor.
        logit_bias: number or 0-d tensor.
        ids: integers ``[N]`` of the images and ``[N]`` of the texts, ``(image_ids, text_ids)``; None for pairs alone.
            With a group they are compared across ranks as they are.

    Returns:
        A scalar, or ``[N]`` with ``"none"`` (the sum over image i's pairs); float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a logit_scale or logit_bias that is no number, ids that are no
            pair of integer tensors.
        ValueError: differing shapes or devices, an empty batch, ids of another length, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343, section 3.2 and algorithm 1.
    """

    def __init__(
        self,
        *,
        per_anchor: bool = False,
        reduction: str = "mean",
        normalize: bool = False,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None: ...
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        ids: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        r"""As :class:`CLIPLoss`; ``ids`` of the images and of the texts, ``[N]`` each."""

class DCLLoss(ViewsLoss):
    r"""Decoupled contrastive loss on two views, both directions averaged.

    Module of :func:`pycl.functional.dcl`.

    With ``s`` the cosine over temperature, anchor i of view a, other view b::

        term_ai = log sum_{j != i} ( exp s(a i, a j) + exp s(a i, b j) )  -  s(a i, b i)

    The mean runs over the ``2N`` anchors, so it averages the two directions as lightly does (the training loop of
    the third-party code raminnakhli/Decoupled-Contrastive-Learning adds them). The loss may be negative. With
    one instance there is no negative: the first term is then 0, and so is its gradient.

    Args:
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[2, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: not exactly two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848, section 3 (the loss L_DC).
    """

    def __init__(
        self,
        temperature: Scalar = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class DCLWLoss(ViewsLoss):
    r"""Decoupled contrastive loss with weighted positives.

    Module of :func:`pycl.functional.dclw`.

    As :func:`dcl`, with the positive of instance i weighted by a negative von Mises-Fisher term::

        term_ai = log sum_{j != i} ( exp s(a i, a j) + exp s(a i, b j) )  -  w_i s(a i, b i)
        w_i     = 2 - N softmax_i( <z1_i, z2_i> / sigma )

    The softmax runs over the batch, so the weights average 1; a weight can be negative. **The weights are
    constants**: no gradient flows through them, as in lightly (the third-party code raminnakhli/
    Decoupled-Contrastive-Learning lets it flow; the paper does not say).

    Args:
        temperature: positive number or 0-d tensor.
        sigma: positive number or 0-d tensor (it receives no gradient).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[2, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`dcl`, and for a sigma that is not positive.

    Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848, section 3 (the loss L_DCW).
    """

    def __init__(
        self,
        temperature: Scalar = 0.1,
        sigma: Scalar = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class DHELLoss(ViewsLoss):
    r"""Decoupled hyperspherical energy loss (DHEL) on two views u, v.

    Module of :func:`pycl.functional.dhel`.

    ::

        term_i = log sum_{j != i} exp(<u_i, u_j> / temperature) + log sum_{j != i} exp(<v_i, v_j> / temperature)
                 - <u_i, v_i> / temperature

    No pair of different instances across the views takes part. With one instance both sums are empty: they count
    as 0 with zero gradient.

    Args:
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: not exactly two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "Bridging Mini-Batch and Asymptotic Analysis in Contrastive Learning", arXiv 2405.18045, the
    loss L_DHEL (the released code's form, with the energies of both views).
    """

    def __init__(
        self,
        temperature: Scalar = 0.3,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class MVDHELLoss(ViewsLoss):
    r"""Multi-view DHEL: one joint alignment term, one uniformity term per view.

    Module of :func:`pycl.functional.mv_dhel`.

    With ``s(a i, b j) = <u_ai, u_bj> / temperature``::

        term_i = sum_a log sum_{j != i} exp s(a i, a j)  -  log sum_{a < b} exp s(a i, b i)

    As the official code: the numerator runs over **unordered** pairs of views (an ordered sum would differ by
    log 2) and ``j = i`` is dropped below. Two views give :func:`dhel`. The product over views is a sum of logarithms
    here, so many views do not overflow. With one instance the sums over j are empty and count as 0 with zero gradient.

    Args:
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", arXiv 2507.06979, the loss MV-DHEL.
    """

    def __init__(
        self,
        temperature: Scalar = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class MVInfoNCELoss(ViewsLoss):
    r"""Multi-view InfoNCE: one term per instance, all views in the numerator and the denominator.

    Module of :func:`pycl.functional.mv_info_nce`.

    With ``s(a i, b j) = <u_ai, u_bj> / temperature``::

        term_i = log sum_a sum_{(b, j) in D(a, i)} exp s(a i, b j)  -  log sum_{a != b} exp s(a i, b i)

    * ``denominator="all"``: D is everything but the point itself, negatives of the own view included. This is the
      authors' released code.
    * ``denominator="cross_view"``: D is all points of the **other** views, the formula printed in its README.

    Numerator: ordered pairs of views, in both.

    Args:
        temperature: positive number or 0-d tensor.
        denominator: ``"all"`` or ``"cross_view"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown denominator, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", arXiv 2507.06979, the loss
    MV-InfoNCE.
    """

    def __init__(
        self,
        temperature: Scalar = 0.5,
        *,
        denominator: str = "all",
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class PolyViewLoss(ViewsLoss):
    r"""Poly-view contrastive loss: each pair of views against every view of the other instances.

    Module of :func:`pycl.functional.poly_view`.

    With ``P_ab = <u_ai, u_bi> / temperature`` and ``R_a = log sum_{j != i} sum_b exp( <u_ai, u_bj> / temperature )``,
    ``p_ab = sigmoid(P_ab - R_a)`` is the probability that b is a's partner::

        geometric:   term_ai = - mean_{b != a} log p_ab        arithmetic:   term_ai = - log mean_{b != a} p_ab

    **Every** view of the other instances is a negative, the anchor's own view included; the other views of the
    same instance are in no denominator but their own. With one instance there is no negative and the loss is 0. Two
    views make both means one and the same.

    Args:
        temperature: positive number or 0-d tensor.
        mean: ``"geometric"`` or ``"arithmetic"``, the mean over partner views.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown mean, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Shidani et al., "Poly-View Contrastive Learning", arXiv 2403.05490, the arithmetic and the geometric PVC loss.
    """

    def __init__(
        self,
        temperature: Scalar = 0.2,
        *,
        mean: str = "geometric",
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class SupConLoss(Loss):
    r"""Supervised contrastive loss: the points of one class attract each other.

    Module of :func:`pycl.functional.sup_con`.

    With ``s_ij = <u_i, u_j> / temperature`` over all ``V * N`` points, ``P(i)`` the other points of i's class::

        form="out":  term_i = log sum_{j != i} exp s_ij  -  mean_{p in P(i)} s_ip
        form="in":   term_i = log sum_{j != i} exp s_ij  -  log mean_{p in P(i)} exp s_ip

    The mean runs over **all** anchors; an anchor without positives (a class met once, which takes a single view)
    contributes 0 and still counts, as in the authors' code. (pytorch-metric-learning leaves such anchors out of the
    mean.) The authors' factor temperature / base_temperature is 1 here.

    Args:
        temperature: positive number or 0-d tensor.
        form: ``"out"`` (mean of logarithms) or ``"in"`` (logarithm of the mean).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
        learnable_temperature: True makes the logarithm of the temperature a parameter, ``log_temperature`` [1].

    Called with:
        views: ``[V, N, d]``, or V tensors ``[N, d]``; one view is enough here; float64, float32, bfloat16 or float16.
        labels: integers ``[N]``, one class per instance.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point, labels that are not integers.
        ValueError: no view, differing shapes, an empty batch, labels of another length or device, a temperature
            that is not positive, an unknown form, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362, equations 2 ("out") and 3 ("in").
    """

    def __init__(
        self,
        temperature: Scalar = 0.07,
        *,
        form: str = "out",
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...
    def forward(
        self,
        *views: Tensor | Sequence[Tensor],
        labels: Tensor | None = None,
    ) -> Tensor:
        r"""``forward(views, labels)`` or ``forward(z1, z2, ..., labels)``; the labels are last or given by name."""
