# SPDX-License-Identifier: Apache-2.0
"""How columns reach the ranks that compute with them, and how statistics and gradients of columns reach their owners.

``AllGatherExchange`` fetches the columns of all ranks and computes with them in one go. ``RingExchange`` fetches the
columns of one rank while it computes with another rank's. Both move bytes. A ``TensorPacker`` lays tensors with one row
per column end to end, so a move is one message whatever the dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from pycl.distributed.ranks import Ranks, gather_single

ALIGNMENT = 16  # bytes, what kernels ask of the start of a tensor


class RowRange(NamedTuple):
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
    rows: RowRange
    cols: RowRange


class RemoteBlock(NamedTuple):
    """Blocks that are computed in one go: the same rows, and the columns of all blocks one after the other."""

    rows: RowRange
    blocks: list[Block]
    columns: list[Tensor]


Deliver: TypeAlias = Callable[
    [RowRange, list[Tensor]], None
]  # takes what another rank computed for these columns of mine


def blocks_of(rank: int, sizes: Sequence[Sequence[int]], symmetric: bool) -> list[Block]:
    """The blocks that ``rank`` computes besides its own rows with its own columns, one a step round the circle.

    ``sizes`` are the numbers of rows and of columns of each rank.

    Of a symmetric matrix each rank takes the ranks on the half circle after it. If the number of ranks is even, two
    ranks that are opposite each other share a block. The lower one takes the first half of its own points, the other
    the second half of them.
    """
    size, found = len(sizes), []
    for step in range(1, size // 2 + 1 if symmetric else size):
        owner = (rank + step) % size
        rows, cols = RowRange(0, sizes[rank][0]), RowRange(0, sizes[owner][1])
        if symmetric and 2 * step == size:
            if rank < owner:
                rows = RowRange(0, rows.stop // 2)
            else:
                cols = RowRange(cols.stop // 2, cols.stop)
        found.append(Block(owner, rows, cols))
    return found


class TensorPacker:
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


def gather_rows(
    mine: Sequence[Tensor], sizes: Sequence[int], group: dist.ProcessGroup
) -> Callable[[], list[list[Tensor]]]:
    """Begin to fetch the rows of all ranks, ``sizes`` of them; what returns waits for them."""
    packer = TensorPacker(mine)
    width = packer.size(max(sizes))
    sent = packer.pack(mine, torch.empty(width, dtype=torch.uint8, device=mine[0].device))
    arriving = sent.new_empty(len(sizes) * width)
    work = gather_single(arriving, sent, group, async_op=True)

    def arrived() -> list[list[Tensor]]:
        work.wait()
        return [packer.unpack(data, n) for data, n in zip(arriving.view(-1, width), sizes, strict=True)]

    return arrived


class ColumnExchange:
    """Which blocks each rank computes, and how their columns travel."""

    def __init__(self, ranks: Ranks, sizes: Sequence[Sequence[int]], symmetric: bool) -> None:
        self.ranks, self.sizes = ranks, [n_cols for _, n_cols in sizes]
        self.plan = [blocks_of(rank, sizes, symmetric) for rank in range(ranks.size)]
        self.blocks = self.plan[ranks.rank]
        self.consumers = {  # who computes with this rank's columns, and with which of them
            rank: block.cols
            for rank, blocks in enumerate(self.plan)
            for block in blocks
            if block.owner == ranks.rank and block.rows.size and block.cols.size
        }

    def fetch(self, mine: Sequence[Tensor]) -> Iterator[RemoteBlock]:
        """Begin to send this rank's columns. The iterator that returns waits for those of others."""
        raise NotImplementedError

    def returns(self, like: Sequence[Tensor], deliver: Deliver) -> ColumnReturn:
        """The way to the owners for tensors ``like`` these, one row a column; ``deliver`` takes what arrives here."""
        raise NotImplementedError


class ColumnReturn:
    def send(self, remote: RemoteBlock, tensors: Sequence[Tensor]) -> None:
        """Send what was computed for the columns of a remote block to their owners."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until everything for this rank's columns was delivered."""
        raise NotImplementedError


class AllGatherExchange(ColumnExchange):
    def fetch(self, mine: Sequence[Tensor]) -> Iterator[RemoteBlock]:
        arrived = gather_rows(mine, self.sizes, self.ranks.group)

        def remote_blocks() -> Iterator[RemoteBlock]:
            shares = arrived()
            for rows in dict.fromkeys(block.rows for block in self.blocks):
                blocks = [block for block in self.blocks if block.rows == rows and block.cols.size]
                if rows.size and blocks:
                    columns = zip(*([b.cols.of(x) for x in shares[b.owner]] for b in blocks), strict=True)
                    yield RemoteBlock(rows, blocks, [torch.cat(parts) for parts in columns])

        return remote_blocks()

    def returns(self, like: Sequence[Tensor], deliver: Deliver) -> ColumnReturn:
        return _AllToAllReturn(self, like, deliver)


class _AllToAllReturn(ColumnReturn):
    def __init__(self, exchange: ColumnExchange, like: Sequence[Tensor], deliver: Deliver) -> None:
        self.exchange, self.packer, self.deliver = exchange, TensorPacker(like), deliver
        size = exchange.ranks.size
        self.outgoing = [torch.empty(0, dtype=torch.uint8, device=like[0].device) for _ in range(size)]

    def send(self, remote: RemoteBlock, tensors: Sequence[Tensor]) -> None:
        pieces = zip(*(x.split([block.cols.size for block in remote.blocks]) for x in tensors), strict=True)
        for block, piece in zip(remote.blocks, pieces, strict=True):
            out = self.outgoing[block.owner]
            self.outgoing[block.owner] = self.packer.pack(piece, out.new_empty(self.packer.size(block.cols.size)))

    def wait(self) -> None:
        ranks, consumers = self.exchange.ranks, self.exchange.consumers
        incoming = [self.packer.size(consumers[rank].size) if rank in consumers else 0 for rank in range(ranks.size)]
        sizes = [len(data) for data in self.outgoing]
        sent = torch.cat(self.outgoing)
        self.outgoing.clear()
        arrived = sent.new_empty(sum(incoming))
        dist.all_to_all_single(arrived, sent, incoming, sizes, ranks.group)
        for rank, data in enumerate(arrived.split(incoming)):
            if rank in consumers:
                self.deliver(consumers[rank], self.packer.unpack(data, consumers[rank].size))


class RingExchange(ColumnExchange):
    def fetch(self, mine: Sequence[Tensor]) -> Iterator[RemoteBlock]:
        packer = TensorPacker(mine)
        sent = torch.empty(packer.size(len(mine[0])), dtype=torch.uint8, device=mine[0].device)
        packer.pack(mine, sent)

        def move(step: int) -> tuple[Tensor, list[Any]]:
            arriving = sent.new_empty(packer.size(self.sizes[self.blocks[step].owner]))
            return arriving, self.move(sent, self.consumer(step), arriving, self.blocks[step].owner)

        first = move(0)

        def remote_blocks() -> Iterator[RemoteBlock]:
            coming = first
            for step, block in enumerate(self.blocks):
                data, works = coming
                for work in works:
                    work.wait()
                if step + 1 < len(self.blocks):
                    coming = move(step + 1)
                if block.rows.size and block.cols.size:
                    shares = packer.unpack(data, self.sizes[block.owner])
                    yield RemoteBlock(block.rows, [block], [block.cols.of(x) for x in shares])

        return remote_blocks()

    def returns(self, like: Sequence[Tensor], deliver: Deliver) -> ColumnReturn:
        return _RingReturn(self, like, deliver)

    def consumer(self, step: int) -> int:
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


class _RingReturn(ColumnReturn):
    """One step's return is under way while the next step is computed."""

    def __init__(self, exchange: RingExchange, like: Sequence[Tensor], deliver: Deliver) -> None:
        self.exchange, self.packer, self.deliver = exchange, TensorPacker(like), deliver
        self.nothing = torch.empty(0, dtype=torch.uint8, device=like[0].device)
        self.step = 0
        self.in_flight: tuple[int, Tensor, list[Any], Tensor] | None = None

    def send(self, remote: RemoteBlock, tensors: Sequence[Tensor]) -> None:
        self._move(self.packer.pack(tensors, self.nothing.new_empty(self.packer.size(remote.blocks[0].cols.size))))

    def wait(self) -> None:
        if self.step < len(self.exchange.blocks):  # the last block was empty
            self._move(self.nothing)
        self._deliver_arrived()

    def _move(self, sent: Tensor) -> None:
        consumer = self.exchange.consumer(self.step)
        cols = self.exchange.consumers.get(consumer)
        arriving = self.nothing.new_empty(self.packer.size(cols.size) if cols else 0)
        works = self.exchange.move(sent, self.exchange.blocks[self.step].owner, arriving, consumer)
        self._deliver_arrived()
        self.in_flight, self.step = (consumer, arriving, works, sent), self.step + 1

    def _deliver_arrived(self) -> None:
        if self.in_flight is not None:
            consumer, data, works, _ = self.in_flight
            for work in works:
                work.wait()
            if len(data):
                cols = self.exchange.consumers[consumer]
                self.deliver(cols, self.packer.unpack(data, cols.size))
            self.in_flight = None
