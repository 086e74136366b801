# SPDX-License-Identifier: Apache-2.0
"""A queue of earlier features, as MoCo keeps one: negatives, neighbours or samples of the steps before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pycl.core.tracing import observed
from pycl.distributed.exchange import gather_rows
from pycl.distributed.ranks import Group, agree, check_group, named, together
from pycl.engine.validation import check_count
from pycl.engine.views import check_labels
from pycl.functional._common import check_features, unit

__all__ = ["FeatureQueue"]

NO_ID = -1  # of rows that nothing was written to


class FeatureQueue(nn.Module):
    """The last rows that were written to it, and an id of each: a first-in, first-out memory of constants.

    Called, it returns its rows [size, dim]: a copy, so that writing to the queue before the backward of a loss does
    no harm. ``features`` are the rows themselves, for a loss whose backward is over before the queue is written to.
    Until they are written, rows are random unit vectors, as in MoCo's code, and their ids are -1::

        queue = FeatureQueue(65536, 128)
        loss = pycl.functional.info_nce(query, key, queue())       # nearest_neighbour_nce, hiclr, feature_transform ...
        queue.write(key)

    ``features``, ``ids`` and ``pointer``, the number of rows written so far, are buffers: they move with the module and
    are part of its ``state_dict``. The next row goes to ``pointer % size``.

    Args:
        size: rows kept.
        dim: width of the features.
        normalize: L2-normalise what is written.
        group: ranks whose rows all go into the queue, in the order of the ranks, so that all ranks hold the same one.
            None writes this rank's rows alone: keep such a queue out of what DistributedDataParallel wraps, which would
            copy the first rank's buffers to all.
        dtype: of the features; None for torch's default.

    Raises:
        TypeError: a size or dim that is no integer, a group that is none.
        ValueError: a size or dim below 1.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722, section 3.2.
    """

    features: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        normalize: bool = True,
        group: Group | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_group(group)
        self.normalize, self.group = normalize, group
        shape = check_count("size", size), check_count("dim", dim)
        self.register_buffer("features", torch.empty(shape, dtype=dtype))
        self.register_buffer("ids", torch.empty(shape[0], dtype=torch.int64))
        self.register_buffer("pointer", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget everything: random unit vectors in all rows."""
        nn.init.normal_(self.features)
        self.features.copy_(unit(self.features))
        self.ids.fill_(NO_ID)
        self.pointer.zero_()

    def forward(self) -> Tensor:
        return self.features.clone()

    def written(self) -> tuple[Tensor, Tensor]:
        """Features and ids of the rows that were written so far, a view; on a GPU it waits for the device."""
        n = min(int(self.pointer), len(self.features))
        return self.features[:n], self.ids[:n]

    @torch.no_grad()
    def write(self, features: Tensor, ids: Tensor | None = None) -> None:
        """Replace the oldest rows.

        Args:
            features: [n, dim], floating point. Of more than ``size`` rows the last ones are kept.
            ids: integers [n], such as instance numbers or labels, one for each row; None for -1.

        Raises:
            TypeError: features that are not floating point, ids that are not integers.
            ValueError: another width, length or device; a number format or width that differs between ranks.
            RuntimeError: another rank of the group failed; a backward pass that calls again, as checkpoints do.
        """
        if not observed() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "write was called by a backward pass, as torch.utils.checkpoint does: write outside of it"
            )
        check_features(queue=self.features, features=features)
        if ids is None:
            ids = torch.full((len(features),), NO_ID, device=features.device)
        rows = unit(features, self.normalize).to(self.features.dtype)
        rows, ids = _of_all_ranks(rows, check_labels(ids, len(features), features, "ids"), group=self.group)
        at = places(self.pointer, len(rows), len(self.features))
        self.features[at], self.ids[at] = rows[-len(at) :], ids[-len(at) :]
        self.pointer.add_(len(rows))

    def extra_repr(self) -> str:
        size, dim = self.features.shape
        return f"{size}, {dim}, normalize={self.normalize}, group={self.group}"

    def __getstate__(self) -> dict[str, object]:
        """For copies and files: a process group goes by its name."""
        return self.__dict__ | {"group": named(self.group)}


def places(pointer: Tensor, n: int, size: int) -> Tensor:
    """Where the next n rows go in a queue of ``size``: of more rows than that, the last ones."""
    return (pointer + torch.arange(max(0, n - size), n, device=pointer.device)) % size


@together
def _of_all_ranks(rows: Tensor, ids: Tensor, *, group: Group | None) -> tuple[Tensor, Tensor]:
    """The rows and ids of all ranks, in the order of the ranks; this rank's own without a group."""
    everyone = agree(group, rows.device, [len(rows)], operator="queue", dtype=str(rows.dtype), dim=rows.shape[1])
    if everyone is None:
        return rows, ids
    sizes = [size for (size,) in everyone.sizes]
    of_ranks = gather_rows([rows, ids], sizes, everyone.group)()
    return torch.cat([part[0] for part in of_ranks]), torch.cat([part[1] for part in of_ranks])
