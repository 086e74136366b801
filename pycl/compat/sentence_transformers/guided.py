# SPDX-License-Identifier: Apache-2.0
"""``GISTEmbedLoss`` and its cached form: in-batch negatives that a guide model picks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import all_gather_with_grad, batch_to_device, get_rank
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from pycl.compat._common import as_input
from pycl.compat._peer import fall_back
from pycl.functional._common import no_autocast, widen

_TILE = 1 << 19  # scores computed at a time: 2 MiB of float32, and as much for the guide's
_FEWEST = 32  # rows of a tile


class GISTEmbedLoss(losses.GISTEmbedLoss):
    r"""sentence-transformers' ``GISTEmbedLoss``: a guide model says which candidates are no negatives.

    With anchors ``a_i``, positives ``p_j``, negatives ``n_j`` and cosines divided by ``temperature``, the candidates
    of anchor i are the positives, the negatives and, as ``contrast_anchors`` and ``contrast_positives`` ask for,
    ``<a_i, a_j>`` and ``<p_i, p_j>``; those whose similarity to the guide exceeds the guide's ``<a_i, p_i> - margin``
    (``"relative"``: ``- |<a_i, p_i>| * margin``) leave, except for the own positive::

        loss = mean_i [ log( sum over i's candidates exp s ) - s(a_i, p_i) ]

    Arguments, errors, attributes and value are the library's. Every embedding is normalised once and the scores are
    products of matrices, made, masked, and turned into gradients a few hundred rows at a time, so that the memory is
    O(N d); the library broadcasts [B, N, d]. A guide's similarity within rounding of the threshold, as that of a
    duplicate of the positive, counts as equal to it and stays. Half embeddings are compared in float32, and the loss
    is rounded to their dtype (outside autocast). Differentiable once.

    A subclass with a ``sim_matrix`` of its own, another ``similarity_fct`` and flattened inputs that must be tokenised
    again run the library's code.

    Shape:
        Two or three columns of embeddings [B, d]; a scalar.
    """

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        columns = list(sentence_features)
        why = _why_not(self, losses.GISTEmbedLoss)
        if self.must_retokenize and any("cu_seq_lens_q" in column for column in columns):
            why = why or "flattened inputs that the guide tokenises in its own way"
        if why:
            fall_back("GISTEmbedLoss", why)
            return cast("Tensor", super().forward(columns, labels))
        for_guide = [dict(column) for column in columns]  # models write into what they are given
        embeddings = embed_columns(self.model, columns)
        with torch.no_grad():
            if self.must_retokenize:
                for_guide = [self._tokenize_again(column) for column in columns]
            guides = embed_columns(self.guide, for_guide)
        if len(embeddings) not in (2, 3):
            raise ValueError(f"Expected 2 or 3 embeddings, got {len(embeddings)}")
        return _guided_loss(self, embeddings, guides)

    def _tokenize_again(self, column: dict[str, Tensor]) -> dict[str, Tensor]:
        texts = self.tokenizer.batch_decode(column["input_ids"], skip_special_tokens=True)
        return cast("dict[str, Tensor]", batch_to_device(self.guide.preprocess(texts), self.guide.device))


class CachedGISTEmbedLoss(losses.CachedGISTEmbedLoss):
    """sentence-transformers' ``CachedGISTEmbedLoss``: :class:`GISTEmbedLoss` with gradient caching.

    Takes any number of columns of negatives. ``mini_batch_size`` is for the models; the loss has tiles of its own.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], reps_guided: list[list[Tensor]], *, with_backward: bool = False
    ) -> Tensor:
        if why := _why_not(self, losses.CachedGISTEmbedLoss):
            fall_back("CachedGISTEmbedLoss", why)
            return cast("Tensor", super().calculate_loss(reps, reps_guided, with_backward=with_backward))
        if len(reps) != len(reps_guided):
            raise ValueError(f"reps and reps_guided must have the same length, got {len(reps)} and {len(reps_guided)}")
        embeddings, guides = ([torch.cat(parts) for parts in columns] for columns in (reps, reps_guided))
        loss = _guided_loss(self, embeddings, guides)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def _why_not(loss: Any, library: Any) -> str:
    """Why the loss cannot be fused, or nothing."""
    if getattr(loss.sim_matrix, "__func__", None) is not library.sim_matrix:
        return f"{type(loss).__name__} has a sim_matrix of its own"
    if type(loss.similarity_fct) is not nn.CosineSimilarity:
        return f"similarity_fct={loss.similarity_fct!r}"
    return ""


def _guided_loss(loss: Any, embeddings: list[Tensor], guides: list[Tensor]) -> Tensor:
    eps = loss.similarity_fct.eps
    offset = 0
    if loss.gather_across_devices:  # the candidates; anchors meet those of their own process
        embeddings, guides = ([x[0], *map(all_gather_with_grad, x[1:])] for x in (embeddings, guides))
        offset = get_rank() * len(embeddings[0])
    units = [normalize(widen(x), dim=-1, eps=eps) for x in embeddings]
    of_guide = [normalize(widen(x.detach()), dim=-1, eps=eps) for x in guides]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in units)
    found = cast("Tensor", _Guided.apply(loss, of_guide, offset, wanted, *units))
    return as_input(found, embeddings[0])


class _Guided(torch.autograd.Function):
    """The loss of unit vectors, and its gradients in the same pass: no score is computed twice."""

    @staticmethod
    def forward(ctx: Any, loss: Any, guides: list[Tensor], offset: int, wanted: bool, *units: Tensor) -> Tensor:
        with no_autocast(units[0]):
            mine, seen = (_factors(loss, list(x), offset) for x in (units, guides))
            terms, gradients = _sweep(loss, mine, seen, offset, wanted)
        if wanted:
            ctx.save_for_backward(*_by_input(loss, units, gradients, offset))
        return terms.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> Any:
        return None, None, None, None, *(gradient * d_loss for gradient in ctx.saved_tensors)


def _factors(loss: Any, x: list[Tensor], offset: int) -> list[tuple[Tensor, Tensor]]:
    """What the score matrix is a product of: anchors with their candidates, positives first; own with all positives."""
    anchors, positives, *negatives = x
    found = [(anchors, torch.cat([positives, *[anchors] * loss.contrast_anchors, *negatives]))]
    if loss.contrast_positives:
        found.append((positives[offset : offset + len(anchors)], positives))
    return found


def _sweep(
    loss: Any, mine: list[tuple[Tensor, Tensor]], seen: list[tuple[Tensor, Tensor]], offset: int, wanted: bool
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Terms of the anchors, and the gradients of their mean at all factors, tile by tile."""
    n, width = len(mine[0][0]), sum(len(cols) for _, cols in mine)
    step = min(n, max(_FEWEST, _TILE // width))
    terms = mine[0][0].new_empty(n)
    gradients = [(torch.empty_like(rows), torch.zeros_like(cols)) for rows, cols in mine if wanted]
    scores, similar = (x[0][0].new_empty(step, width) for x in (mine, seen))
    edges = [0, len(mine[0][1]), width][: len(mine) + 1]
    for start in range(0, n, step):
        at = slice(start, min(start + step, n))
        own = torch.arange(at.start, at.stop, device=terms.device)[:, None] + offset
        s, g = scores[: len(own)], similar[: len(own)]
        for (rows, cols), (guide_rows, guide_cols), a, b in zip(mine, seen, edges, edges[1:], strict=False):
            torch.mm(rows[at], cols.T, out=s[:, a:b])
            torch.mm(guide_rows[at], guide_cols.T, out=g[:, a:b])
        false = g > _limit(loss, g.gather(1, own))
        s.masked_fill_(false.scatter_(1, own, False), -torch.inf).div_(loss.temperature)
        best, peak = s.gather(1, own), s.amax(1, keepdim=True)
        total = s.sub_(peak).exp_().sum(1, keepdim=True)
        terms[at] = (total.log() + peak - best).squeeze(1)
        if wanted:  # s becomes the gradient at the cosines
            s.mul_(1 / (total * (n * loss.temperature)))
            s.scatter_add_(1, own, s.new_full(own.shape, -1 / (n * loss.temperature)))
            for (rows, cols), (d_rows, d_cols), a, b in zip(mine, gradients, edges, edges[1:], strict=False):
                torch.mm(s[:, a:b], cols, out=d_rows[at])
                d_cols.addmm_(s[:, a:b].T, rows[at])
    return terms, gradients


def _limit(loss: Any, own: Tensor) -> Tensor:
    """The guide's similarity above which a candidate is no negative, with room for the rounding of equal products."""
    margin: Tensor | float = loss.margin if loss.margin_strategy == "absolute" else own.abs() * loss.margin
    return own - margin + 8 * torch.finfo(own.dtype).eps


def _by_input(
    loss: Any, units: tuple[Tensor, ...], gradients: list[tuple[Tensor, Tensor]], offset: int
) -> list[Tensor]:
    """Gradients at the anchors, the positives and the negatives from those at the factors."""
    n, (d_anchors, d_candidates) = len(units[0]), gradients[0]
    sizes = [len(units[1]), *[n] * loss.contrast_anchors, *map(len, units[2:])]
    d_positives, *d_rest = d_candidates.split(sizes)
    if loss.contrast_anchors:
        d_anchors += d_rest.pop(0)
    for d_rows, d_cols in gradients[1:]:
        d_positives += d_cols
        d_positives[offset : offset + n] += d_rows
    return [d_anchors, d_positives, *d_rest]
