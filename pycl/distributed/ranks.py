# SPDX-License-Identifier: Apache-2.0
"""What ranks of a ``torch.distributed`` group tell each other; without a group nothing is said.

``group=`` of a loss takes a process group, whose columns are gathered, or ``Ring(group)``, whose columns come by one
rank at a time; ``"world"`` is the group of all ranks at the time of the call, so that a loss may be built before
torch.distributed runs, and ``"local"`` this rank alone. Every rank of a group passes its own batch, and the candidates
are those of all ranks. Each rank returns a share: the average of the shares is the loss of the global batch. The
gradient at a rank's embeddings is that of the sum of all shares. So the averaging of DistributedDataParallel gives the
gradient of one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pycl.core.notices import warn_once
from pycl.core.tracing import eager

F = TypeVar("F", bound=Callable[..., Any])

MESSAGE = 1024  # bytes that a rank has to introduce itself
INSTANCES = 1 << 31  # instance numbers of all ranks together: the width that kernels compare


def gather_single(out: Tensor, x: Tensor, group: dist.ProcessGroup, async_op: bool = False) -> Any:
    """``all_gather_single``, which torch before 2.13 has under its former name."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(out, x, group, async_op)


class Ring(NamedTuple):
    """A process group whose ranks pass their columns round while they compute: no rank ever holds all of them.

    Takes as much transfer as gathering and less memory: two ranks' columns and their gradients instead of all ranks'.
    """

    group: dist.ProcessGroup | Literal["world"] | Named


class Meetings:
    """How often the ranks have met in this call. Until the first meeting the others wait for a rank that fails."""

    held = 0


@dataclass(frozen=True)
class Ranks:
    """The ranks of a group in one call of a loss; ``agree`` says what they bring."""

    group: dist.ProcessGroup
    ring: bool
    rank: int
    size: int
    backends: str  # "cpu:gloo,cuda:nccl"
    meetings: Meetings

    @classmethod
    def of(cls, group: dist.ProcessGroup, ring: bool) -> Ranks:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        return cls(group, ring, rank, size, str(dist.get_backend_config(group)), Meetings())

    def abort(self, error: Exception) -> None:
        """Tell ranks that wait for the first meeting why this one will not come."""
        if not self.meetings.held:
            told = f"{type(error).__name__}: {error}".encode("ascii", "replace").decode()
            self.all_gather_metadata({"error": told[: MESSAGE // 4]})

    def all_gather_metadata(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """The facts of all ranks; on the CPU where the group has a backend for it, so that no GPU is waited for."""
        self.meetings.held += 1
        text = json.dumps(facts).encode().ljust(MESSAGE)
        device = "cpu" if "cpu:" in self.backends else torch.device("cuda", torch.cuda.current_device())
        mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
        all_ranks = mine.new_empty(self.size * MESSAGE)
        gather_single(all_ranks, mine, self.group)
        return [json.loads(bytes(row)) for row in all_ranks.view(self.size, MESSAGE).cpu().numpy()]


class Agreement(NamedTuple):
    """What the ranks of a group bring, the same on all of them."""

    ranks: Ranks
    sizes: list[list[int]]  # of each rank

    @property
    def group(self) -> dist.ProcessGroup:
        """What collectives take."""
        return self.ranks.group

    @property
    def n(self) -> int:
        """The sum of the ranks' first sizes: as a rule, the number of all anchors."""
        return sum(sizes[0] for sizes in self.sizes)

    @property
    def starts(self) -> list[list[int]]:
        """Of each rank, where what it brings begins among that of all ranks, in their order."""
        begins = (accumulate(size, initial=0) for size in zip(*self.sizes, strict=True))
        return [list(start) for start in zip(*begins, strict=True)][:-1]

    @property
    def weight(self) -> float:
        """The weight of this rank's mean in the mean over the ranks; not 1 where batches are uneven."""
        return self.sizes[self.ranks.rank][0] * self.ranks.size / max(1, self.n)


class Named(NamedTuple):
    """A process group by the name that torch.distributed has for it. A copy of a loss holds it until it is called."""

    name: str


Group: TypeAlias = "dist.ProcessGroup | Literal['world', 'local'] | Named | Ring | Ranks"
WORLD: Final = "world"
LOCAL: Final = "local"


def check_group(group: Group | None) -> None:
    """``None``, ``"world"``, ``"local"`` or a process group this rank belongs to, maybe in a ``Ring``."""
    if group is None:
        return
    process_group = group.group if isinstance(group, (Ring, Ranks)) else group
    names = (WORLD, LOCAL) if process_group is group else (WORLD,)
    if process_group not in names and not isinstance(process_group, (dist.ProcessGroup, Named)):
        given = repr(process_group) if isinstance(process_group, str) else type(process_group).__name__
        way_out = "; its get_group() is one" if hasattr(process_group, "get_group") else ""
        raise TypeError(
            f"group must be None, 'world', 'local' or a torch.distributed process group this rank is in, got {given}"
            + way_out
        )


def named(group: Any) -> Any:
    """A group in a form that can be copied and saved."""
    if isinstance(group, Ring):
        return Ring(named(group.group))
    if not isinstance(group, dist.ProcessGroup):
        return group
    return WORLD if group is dist.group.WORLD else Named(group.group_name)


def members_of(group: Any) -> dist.ProcessGroup | None:
    """The process group itself; None for the world where torch.distributed does not run."""
    if group == WORLD:
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    if isinstance(group, Named):
        from torch.distributed import distributed_c10d  # not in every build of torch

        try:
            return cast("Any", distributed_c10d)._resolve_process_group(group.name)  # type: ignore[no-any-return]  # untyped
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"group {group.name!r} is of another run, make it again and set loss.group") from error
    return cast("dist.ProcessGroup", group)


def several_ranks() -> bool:
    """Whether torch.distributed runs with more than this rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def together(function: F) -> F:
    """Hand ``function`` its ``group`` as ``Ranks``, or as None where there is one rank only.

    What it raises before the ranks have met is told to the others, which would wait for this rank otherwise.
    """

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        group = options.get("group")
        if group is None or isinstance(group, Ranks):
            return function(*args, **options)
        if isinstance(group, str) and (group == LOCAL or (group == WORLD and not several_ranks())):
            options["group"] = None
            return function(*args, **options)
        return on_ranks(*args, **options)

    @eager
    def on_ranks(*args: Any, **options: Any) -> Any:
        check_group(cast("Group", group := options["group"]))
        ring = isinstance(group, Ring)
        members = members_of(group.group if isinstance(group, Ring) else group)
        if members is None or members.size() == 1:
            options["group"] = None
            return function(*args, **options)
        options["group"] = ranks = Ranks.of(members, ring)
        try:
            return function(*args, **options)
        except Exception as error:
            ranks.abort(error)
            raise

    return cast("F", call)


def of_the_batch(function: F, defaults: Mapping[str, Any] | None = None) -> F:
    """``together`` for a loss of a whole batch: one that runs on several ranks and was given no group says so once.

    ``function`` may collect keyword arguments; it then takes those of ``defaults``, and finds them all.
    """
    run = together(function)
    kinds = signature(function).parameters.values()
    positional = [parameter.name for parameter in kinds if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    known = {*signature(function).parameters, *(defaults or ())}

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if len(args) > len(positional):
            several = ": several views are one argument, (z1, z2)" if positional == ["views"] else ""
            raise TypeError(
                f"{function.__name__} takes {', '.join(positional)} by position and the rest by name, got {len(args)} "
                f"arguments by position{several}"
            )
        if defaults is not None:
            for name in options:
                if name not in known:
                    raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")
            options = {**defaults, **options}
        if options.get("group") is not None:
            return run(*args, **options)
        if not torch.compiler.is_compiling() and several_ranks():
            warn_once(
                "no group",
                f"{function.__name__} was given no group on one of {dist.get_world_size()} ranks, so candidates are "
                "this rank's alone: group='world' takes those of all ranks, group='local' says that these are meant",
            )
        return function(*args, **options)

    return cast("F", call)


def ranks_of(group: Group | None) -> Ranks | None:
    """What ``together`` made of a ``group``."""
    if group is not None and not isinstance(group, Ranks):
        raise TypeError(f"group must be what pycl.together hands a function, which is then decorated; got {group!r}")
    return group


def instances(n: int, device: torch.device, group: Group | None) -> Tensor:
    """``0 .. n - 1``; with a group, n numbers that no other rank has."""
    if (ranks := ranks_of(group)) is None:
        return torch.arange(n, device=device)
    room = INSTANCES // ranks.size
    if n > room:
        raise ValueError(f"a rank of {ranks.size} may bring at most {room} instances, got {n}")
    return torch.arange(ranks.rank * room, ranks.rank * room + n, device=device)


def agree(
    group: Group | None, device: torch.device, sizes: Sequence[int], **facts: str | float | bool | None
) -> Agreement | None:
    """What each rank brings, once the facts are known to be the same on all; None without a group.

    Args:
        group: what ``together`` handed the caller.
        device: of the embeddings that will be sent.
        sizes: numbers that may differ between ranks, the number of anchors first.
        facts: numbers and names that may not.

    Raises:
        ValueError: on every rank, where a fact differs or the group takes no tensors on the device.
        RuntimeError: where another rank failed before it came here.
    """
    if (ranks := ranks_of(group)) is None:
        return None
    if f"{device.type}:" not in ranks.backends:
        raise ValueError(f"group must take tensors on {device.type}, got one with the backends {ranks.backends}")
    rows = ranks.all_gather_metadata({"sizes": sizes, **facts})
    for rank, row in enumerate(rows):
        if "error" in row:
            raise RuntimeError(f"rank {rank} of the group failed: {row['error']}")
    for name in dict.fromkeys(name for row in rows for name in row if name != "sizes"):
        values = [row.get(name, "nothing") for row in rows]
        if any(value != values[0] for value in values):
            said = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"{name} must be the same on all ranks of the group, got {said}")
    return Agreement(ranks, [cast("list[int]", row["sizes"]) for row in rows])


def all_reduce_sum(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over the ranks."""
    if group is not None:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.SUM, group)
    return value


def all_reduce_logsumexp(lse: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Log-sum-exps over all ranks from each rank's own; NaN and infinity on one rank become NaN on all."""
    if group is None:
        return lse
    peak = lse.clone()
    dist.all_reduce(peak, dist.ReduceOp.MAX, group)
    peak = peak.masked_fill(peak == -torch.inf, 0)
    return all_reduce_sum((lse - peak).exp(), group).log() + peak


def all_reduce_logsumexp_differentiable(lse: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``all_reduce_logsumexp`` with a gradient: all ranks use the one result, and the gradients of all uses add up."""
    joined = all_reduce_logsumexp(lse.detach(), group)
    return joined + group.size() * (lse.detach() - joined).exp() * (lse - lse.detach())


def all_reduce_sum_differentiable(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``all_reduce_sum`` with a gradient: all ranks use the one result, and the gradients of all uses add up."""
    return all_reduce_sum(value.detach(), group) + group.size() * (value - value.detach())


def rows_of_all(x: Tensor, agreement: Agreement | None, size: int = 0) -> Tensor:
    """The rows of all ranks in their order, with a gradient: what every rank has for a row adds up at its owner.

    The ranks have agreed on how many each brings: it is that of their ``sizes``.
    """
    if agreement is None:
        return x
    return cast("Tensor", _RowsOfAll.apply(x, agreement, size))


class _RowsOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, agreement: Agreement, size: int) -> Tensor:
        ctx.agreement, start = agreement, agreement.starts[agreement.ranks.rank][size]
        ctx.mine = slice(start, start + len(x))
        rows = x.new_zeros(sum(sizes[size] for sizes in agreement.sizes), *x.shape[1:])
        rows[ctx.mine] = x
        return all_reduce_sum(rows, agreement.group)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None, None]:
        return all_reduce_sum(d_rows.contiguous(), ctx.agreement.group)[ctx.mine], None, None
