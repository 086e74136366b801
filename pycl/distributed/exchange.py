# SPDX-License-Identifier: Apache-2.0
"""How columns reach the ranks that compute with them, and how what belongs to columns gets home.

``Gathered`` fetches all columns at once and computes with them in one go; ``Passed`` fetches those of one rank while
it computes with another's. Both carry bytes: a ``Parcel`` lays tensors with one row per column end to end, so that a
move is one message whatever the dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from pycl.distributed.ranks import Ranks, gather_single

ALIGNMENT = 16  # bytes, what kernels ask of the start of a tensor


class Span(NamedTuple):
    """Points ``start .. stop - 1`` of a rank."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def of(self, x: Tensor) -> Tensor:
        return x[self.start : self.stop]


class Block(NamedTuple):
    """The pairs of some of a rank's rows with some of the columns of ``owner``."""

    owner: int
    rows: Span
    cols: Span


class Stop(NamedTuple):
    """Blocks that are computed in one go: the same rows, and the columns of all of them one after the other."""

    rows: Span
    blocks: list[Block]
    columns: list[Tensor]


Deliver: TypeAlias = Callable[[Span, list[Tensor]], None]  # takes what another rank computed for these columns of mine


def blocks_of(rank: int, sizes: Sequence[Sequence[int]], symmetric: bool) -> list[Block]:
    """What ``rank`` computes besides its own rows with its own columns, one block for each step round the circle.

    ``sizes`` are the numbers of rows and of columns of each rank.

    Of a symmetric matrix each rank takes the ranks on the half circle after it. Two that are opposite each other, where
    the number of ranks is even, share: one takes half of the lower one's points, the other the other half.
    """
    size, found = len(sizes), []
    for step in range(1, size // 2 + 1 if symmetric else size):
        owner = (rank + step) % size
        rows, cols = Span(0, sizes[rank][0]), Span(0, sizes[owner][1])
        if symmetric and 2 * step == size:
            if rank < owner:
                rows = Span(0, rows.stop // 2)
            else:
                cols = Span(cols.stop // 2, cols.stop)
        found.append(Block(owner, rows, cols))
    return found


class Parcel:
    """Tensors of one length as bytes, and back."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.kinds = [(x.dtype, x.shape[1:], x.shape[1:].numel() * x.dtype.itemsize) for x in like]

    def size(self, n: int) -> int:
        return sum(_aligned(n * width) for *_, width in self.kinds)

    def pack(self, tensors: Sequence[Tensor], out: Tensor) -> Tensor:
        for x, place in zip(tensors, self.unpack(out, len(tensors[0])), strict=True):
            place.copy_(x)
        return out

    def unpack(self, data: Tensor, n: int) -> list[Tensor]:
        """The tensors of n rows that ``data`` holds, as views of it."""
        found, start = [], 0
        for dtype, shape, width in self.kinds:
            found.append(data[start : start + n * width].view(dtype).view(n, *shape))
            start += _aligned(n * width)
        return found


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Transport:
    """What the ranks compute, and the moves that takes."""

    def __init__(self, ranks: Ranks, sizes: Sequence[Sequence[int]], symmetric: bool) -> None:
        self.ranks, self.sizes = ranks, [n_cols for _, n_cols in sizes]
        self.plan = [blocks_of(rank, sizes, symmetric) for rank in range(ranks.size)]
        self.blocks = self.plan[ranks.rank]
        self.visitors = {  # who computes with this rank's columns, and with which of them
            rank: block.cols
            for rank, blocks in enumerate(self.plan)
            for block in blocks
            if block.owner == ranks.rank and block.rows.size and block.cols.size
        }

    def fetch(self, mine: Sequence[Tensor]) -> Iterator[Stop]:
        """Begin to send this rank's columns. The iterator that returns waits for those of others."""
        raise NotImplementedError

    def returns(self, like: Sequence[Tensor], deliver: Deliver) -> Returns:
        """A way home for tensors ``like`` these, one row for each column of a stop."""
        raise NotImplementedError


class Returns:
    def give(self, stop: Stop, tensors: Sequence[Tensor]) -> None:
        """What belongs to the columns of a stop, for their owners."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait until all that belongs to this rank's columns was delivered."""
        raise NotImplementedError


class Gathered(Transport):
    def fetch(self, mine: Sequence[Tensor]) -> Iterator[Stop]:
        parcel, size = Parcel(mine), self.ranks.size
        width = parcel.size(max(self.sizes))
        sent = parcel.pack(mine, torch.empty(width, dtype=torch.uint8, device=mine[0].device))
        arriving = sent.new_empty(size * width)
        work = gather_single(arriving, sent, self.ranks.group, async_op=True)

        def stops() -> Iterator[Stop]:
            work.wait()
            shares = [parcel.unpack(data, n) for data, n in zip(arriving.view(size, width), self.sizes, strict=True)]
            for rows in dict.fromkeys(block.rows for block in self.blocks):
                blocks = [block for block in self.blocks if block.rows == rows and block.cols.size]
                if rows.size and blocks:
                    columns = zip(*([b.cols.of(x) for x in shares[b.owner]] for b in blocks), strict=True)
                    yield Stop(rows, blocks, [torch.cat(parts) for parts in columns])

        return stops()

    def returns(self, like: Sequence[Tensor], deliver: Deliver) -> Returns:
        return _AtOnce(self, like, deliver)


class _AtOnce(Returns):
    def __init__(self, transport: Transport, like: Sequence[Tensor], deliver: Deliver) -> None:
        self.transport, self.parcel, self.deliver = transport, Parcel(like), deliver
        size = transport.ranks.size
        self.outgoing = [torch.empty(0, dtype=torch.uint8, device=like[0].device) for _ in range(size)]

    def give(self, stop: Stop, tensors: Sequence[Tensor]) -> None:
        pieces = zip(*(x.split([block.cols.size for block in stop.blocks]) for x in tensors), strict=True)
        for block, piece in zip(stop.blocks, pieces, strict=True):
            out = self.outgoing[block.owner]
            self.outgoing[block.owner] = self.parcel.pack(piece, out.new_empty(self.parcel.size(block.cols.size)))

    def finish(self) -> None:
        ranks, visitors = self.transport.ranks, self.transport.visitors
        incoming = [self.parcel.size(visitors[rank].size) if rank in visitors else 0 for rank in range(ranks.size)]
        sizes = [len(data) for data in self.outgoing]
        sent = torch.cat(self.outgoing)
        self.outgoing.clear()
        arrived = sent.new_empty(sum(incoming))
        dist.all_to_all_single(arrived, sent, incoming, sizes, ranks.group)
        for rank, data in enumerate(arrived.split(incoming)):
            if rank in visitors:
                self.deliver(visitors[rank], self.parcel.unpack(data, visitors[rank].size))


class Passed(Transport):
    def fetch(self, mine: Sequence[Tensor]) -> Iterator[Stop]:
        parcel = Parcel(mine)
        sent = torch.empty(parcel.size(len(mine[0])), dtype=torch.uint8, device=mine[0].device)
        parcel.pack(mine, sent)

        def move(step: int) -> tuple[Tensor, list[Any]]:
            arriving = sent.new_empty(parcel.size(self.sizes[self.blocks[step].owner]))
            return arriving, self.move(sent, self.visitor(step), arriving, self.blocks[step].owner)

        first = move(0)

        def stops() -> Iterator[Stop]:
            coming = first
            for step, block in enumerate(self.blocks):
                data, works = coming
                for work in works:
                    work.wait()
                if step + 1 < len(self.blocks):
                    coming = move(step + 1)
                if block.rows.size and block.cols.size:
                    shares = parcel.unpack(data, self.sizes[block.owner])
                    yield Stop(block.rows, [block], [block.cols.of(x) for x in shares])

        return stops()

    def returns(self, like: Sequence[Tensor], deliver: Deliver) -> Returns:
        return _StepByStep(self, like, deliver)

    def visitor(self, step: int) -> int:
        """Who computes with this rank's columns in a step."""
        return (self.ranks.rank - step - 1) % self.ranks.size

    def move(self, sent: Tensor, to: int, arriving: Tensor, source: int) -> list[Any]:
        """Begin to send to one rank of the group and to receive from another."""
        group = self.ranks.group
        moves = []
        if len(sent):
            moves.append(dist.P2POp(dist.isend, sent, group=group, group_peer=to))
        if len(arriving):
            moves.append(dist.P2POp(dist.irecv, arriving, group=group, group_peer=source))
        return dist.batch_isend_irecv(moves) if moves else []


class _StepByStep(Returns):
    """One step's return is under way while the next step is computed."""

    def __init__(self, transport: Passed, like: Sequence[Tensor], deliver: Deliver) -> None:
        self.transport, self.parcel, self.deliver = transport, Parcel(like), deliver
        self.nothing = torch.empty(0, dtype=torch.uint8, device=like[0].device)
        self.step = 0
        self.under_way: tuple[int, Tensor, list[Any], Tensor] | None = None

    def give(self, stop: Stop, tensors: Sequence[Tensor]) -> None:
        self._move(self.parcel.pack(tensors, self.nothing.new_empty(self.parcel.size(stop.blocks[0].cols.size))))

    def finish(self) -> None:
        if self.step < len(self.transport.blocks):  # the last block was empty
            self._move(self.nothing)
        self._land()

    def _move(self, sent: Tensor) -> None:
        visitor = self.transport.visitor(self.step)
        span = self.transport.visitors.get(visitor)
        arriving = self.nothing.new_empty(self.parcel.size(span.size) if span else 0)
        works = self.transport.move(sent, self.transport.blocks[self.step].owner, arriving, visitor)
        self._land()
        self.under_way, self.step = (visitor, arriving, works, sent), self.step + 1

    def _land(self) -> None:
        if self.under_way is not None:
            visitor, data, works, _ = self.under_way
            for work in works:
                work.wait()
            if len(data):
                span = self.transport.visitors[visitor]
                self.deliver(span, self.parcel.unpack(data, span.size))
            self.under_way = None
