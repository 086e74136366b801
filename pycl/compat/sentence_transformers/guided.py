# SPDX-License-Identifier: Apache-2.0
"""``GISTEmbedLoss`` and its cached form: in-batch negatives that a guide model picks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from pycl.compat._common import all_ranks, as_input
from pycl.compat._peer import Hooks, fall_back
from pycl.compat._plain import is_plain
from pycl.distributed.ranks import Group, agree, together
from pycl.functional._common import no_autocast, widen

from ._card import Carded
from ._gather import gathered, replaced

_TILE = 1 << 19  # scores computed at a time: 2 MiB of float32, and as much for the guide's
_FEWEST = 128  # rows of a tile; with 32, thin products took a quarter longer at 4096 anchors


class GISTEmbedLoss(Carded, losses.GISTEmbedLoss):
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

    A ``cross_entropy_loss`` with ``reduction="sum"`` sums. Any other, a ``sim_matrix`` of a subclass's own, another
    ``similarity_fct``, a learned ``temperature`` and flattened inputs that must be tokenised again run the library's
    code. With ``gather_across_devices`` ranks may bring batches of different sizes; each has the mean of its own.

    Shape:
        Two or three columns of embeddings [B, d]; a scalar.
    """

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        columns = list(sentence_features)
        why = self._pycl_why_not()
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
        return _guided_loss(self, embeddings, guides, len(embeddings[0]))

    def _pycl_why_not(self) -> str:
        return _why_not(self, losses.GISTEmbedLoss, _HOOKS)

    def _tokenize_again(self, column: dict[str, Tensor]) -> dict[str, Tensor]:
        texts = self.tokenizer.batch_decode(column["input_ids"], skip_special_tokens=True)
        return cast("dict[str, Tensor]", batch_to_device(self.guide.preprocess(texts), self.guide.device))


class CachedGISTEmbedLoss(Carded, losses.CachedGISTEmbedLoss):
    """sentence-transformers' ``CachedGISTEmbedLoss``: :class:`GISTEmbedLoss` with gradient caching.

    Takes any number of columns of negatives. ``mini_batch_size`` is for the models; the loss has tiles of its own. With
    a ``cross_entropy_loss`` that sums, the sums of mini-batches have their shares of the batch as weights, as there.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], reps_guided: list[list[Tensor]], *, with_backward: bool = False
    ) -> Tensor:
        if why := self._pycl_why_not():
            fall_back("CachedGISTEmbedLoss", why)
            return cast("Tensor", super().calculate_loss(reps, reps_guided, with_backward=with_backward))
        if len(reps) != len(reps_guided):
            raise ValueError(f"reps and reps_guided must have the same length, got {len(reps)} and {len(reps_guided)}")
        embeddings, guides = ([torch.cat(parts) for parts in columns] for columns in (reps, reps_guided))
        loss = _guided_loss(self, embeddings, guides, self.mini_batch_size)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def _pycl_why_not(self) -> str:
        return _why_not(self, losses.CachedGISTEmbedLoss, _CACHED_HOOKS)


_HOOKS = Hooks(losses.GISTEmbedLoss, "sim_matrix")
_CACHED_HOOKS = Hooks(losses.CachedGISTEmbedLoss, "sim_matrix")


def _why_not(loss: Any, library: type, hooks: Hooks) -> str:
    """Why the loss cannot be fused, or nothing."""
    if own := hooks.replaced_in(loss):
        return own
    similarity, entropy = loss.similarity_fct, loss.cross_entropy_loss
    if not is_plain(similarity, nn.CosineSimilarity) or similarity.dim not in (-1, 2):
        return f"similarity_fct={similarity!r}"
    if not is_plain(entropy, nn.CrossEntropyLoss) or entropy.reduction not in ("mean", "sum"):
        return f"cross_entropy_loss={entropy!r}"
    if entropy.weight is not None or entropy.label_smoothing or entropy.ignore_index >= 0:
        return "a cross_entropy_loss with weights, label smoothing or an index to ignore"
    if loss.margin_strategy not in ("absolute", "relative"):
        return f"margin_strategy={loss.margin_strategy!r}"
    for name in ("temperature", "margin"):
        value = getattr(loss, name)
        if isinstance(value, Tensor) and (value.numel() != 1 or value.requires_grad):
            return f"a {name} that is learned or has several entries"
    return replaced(library) if loss.gather_across_devices else ""


def _guided_loss(loss: Any, embeddings: list[Tensor], guides: list[Tensor], part: int) -> Tensor:
    """The loss of a batch which the library would take in parts of so many anchors."""
    group = all_ranks() if loss.gather_across_devices else None
    return as_input(_compared(loss, embeddings, guides, part, group=group), embeddings[0])


@together
def _compared(loss: Any, embeddings: list[Tensor], guides: list[Tensor], part: int, *, group: Group | None) -> Tensor:
    n, eps = len(embeddings[0]), loss.similarity_fct.eps
    offset = 0
    model, guide = (str((x.shape[1], str(x.dtype))) for x in (embeddings[0], guides[0]))
    sizes = list(map(len, embeddings))
    everyone = agree(group, embeddings[0].device, sizes, columns=len(sizes), model=model, guide=guide)
    if everyone is not None:  # the candidates; anchors meet those of their own process
        of_ranks = list(zip(*everyone.sizes, strict=True))
        offset = sum(of_ranks[0][: everyone.ranks.rank])
        embeddings, guides = (
            [x[0], *(gathered(column, s) for column, s in zip(x[1:], of_ranks[1:], strict=True))]
            for x in (embeddings, guides)
        )
    units = [normalize(widen(x), dim=-1, eps=eps) for x in embeddings]
    of_guide = [normalize(widen(x.detach()), dim=-1, eps=eps) for x in guides]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in units)
    weights = _weights(loss, n, part, units[0])
    return cast("Tensor", _Guided.apply(loss, of_guide, weights, offset, wanted, *units))


def _weights(loss: Any, n: int, part: int, like: Tensor) -> Tensor:
    """Of the anchors' terms, [n, 1]: a part that the library sums has its share of the batch for a weight."""
    if loss.cross_entropy_loss.reduction == "mean":
        return like.new_full((n, 1), 1 / n)
    weights = like.new_full((n, 1), min(part, n) / n)
    weights[n - n % part :] = n % part / n
    return weights


class _Guided(torch.autograd.Function):
    """The loss of unit vectors, and its gradients in the same pass: no score is computed twice.

    The engine's statistics with a ``Limit`` compute them, or the guide's, again in the backward: with one thread they
    take 1.9 times as long at 32 anchors, 1.3 times at 512, 1.2 times at 2048, 1.1 times at 8192.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: Any, guides: list[Tensor], weights: Tensor, offset: int, wanted: bool, *units: Tensor
    ) -> Tensor:
        with no_autocast(units[0]):
            mine, seen = (_factors(loss, list(x), offset) for x in (units, guides))
            terms, gradients = _sweep(loss, mine, seen, weights, offset, wanted)
        if wanted:
            ctx.save_for_backward(*_by_input(loss, units, gradients, offset))
        return (terms * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> Any:
        return None, None, None, None, None, *(gradient * d_loss for gradient in ctx.saved_tensors)


def _factors(loss: Any, x: list[Tensor], offset: int) -> list[tuple[Tensor, Tensor]]:
    """What the score matrix is a product of: anchors with their candidates, positives first; own with all positives."""
    anchors, positives, *negatives = x
    found = [(anchors, torch.cat([positives, *[anchors] * loss.contrast_anchors, *negatives]))]
    if loss.contrast_positives:
        found.append((positives[offset : offset + len(anchors)], positives))
    return found


def _sweep(
    loss: Any,
    mine: list[tuple[Tensor, Tensor]],
    seen: list[tuple[Tensor, Tensor]],
    weights: Tensor,
    offset: int,
    wanted: bool,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Terms of the anchors [n, 1], and the gradients of their weighted sum at all factors, tile by tile."""
    n, width = len(mine[0][0]), sum(len(cols) for _, cols in mine)
    step = min(n, max(_FEWEST, _TILE // width))
    terms = torch.empty_like(weights)
    gradients = [(torch.empty_like(rows), torch.zeros_like(cols)) for rows, cols in mine if wanted]
    scores, similar = (x[0][0].new_empty(step, width) for x in (mine, seen))
    edges = [0, len(mine[0][1]), width][: len(mine) + 1]
    for start in range(0, n, step):
        at = slice(start, min(start + step, n))
        own = torch.arange(at.start, at.stop, device=terms.device)[:, None] + offset
        s, g = scores[: len(own)], similar[: len(own)]
        for (rows, cols), (guide_rows, guide_cols), a, b in zip(mine, seen, edges, edges[1:], strict=False):
            _product(rows[at], cols.T, s[:, a:b])
            _product(guide_rows[at], guide_cols.T, g[:, a:b])
        false = g > _limit(loss, g.gather(1, own))
        s.masked_fill_(false.scatter_(1, own, False), -torch.inf).div_(loss.temperature)
        best, peak = s.gather(1, own), s.amax(1, keepdim=True)
        total = s.sub_(peak).exp_().sum(1, keepdim=True)
        terms[at] = total.log() + peak - best
        if wanted:  # s becomes the gradient at the cosines
            weight = weights[at] / loss.temperature
            s.mul_(weight / total)
            s.scatter_add_(1, own, -weight)
            for (rows, cols), (d_rows, d_cols), a, b in zip(mine, gradients, edges, edges[1:], strict=False):
                _product(s[:, a:b], cols, d_rows[at])
                d_cols.addmm_(s[:, a:b].T, rows[at])
    return terms, gradients


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    if torch.compiler.is_compiling():
        out.copy_(a @ b)  # dynamo takes no view for a result
    else:
        torch.mm(a, b, out=out)


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
