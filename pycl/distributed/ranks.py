# SPDX-License-Identifier: Apache-2.0
"""What ranks of a ``torch.distributed`` group tell each other; without a group nothing is said.

``group=`` of a loss takes a process group, whose columns are gathered, or ``Ring(group)``, whose columns come by one
rank at a time; ``"world"`` is the group of all ranks at the time of the call, so that a loss may be built before
torch.distributed runs, and ``"local"`` this rank alone. Every rank of a group passes its own batch and the candidates
are those of all ranks. The losses that the ranks return have the global batch's loss as their mean, and the gradient at
a rank's embeddings is that of the sum of all ranks' losses, so that the averaging of DistributedDataParallel gives the
gradient of one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pycl.core.notices import warn_once
from pycl.core.tracing import eager

P = ParamSpec("P")
R = TypeVar("R")

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


class Ranks:
    """One call of a loss on the ranks of a group, from the moment they agree on what is computed."""

    def __init__(self, group: dist.ProcessGroup, ring: bool) -> None:
        self.group, self.ring = group, ring
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._backends = dist.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
        self._met = False
        self.n_rows = 0  # anchors of all ranks
        self.weight = 1.0  # of this rank's mean in the mean over ranks; not 1 where batches are uneven

    def meet(self, device: torch.device, sizes: Sequence[int], **facts: str | float | bool | None) -> list[list[int]]:
        """Raise ValueError on every rank unless the facts are the same on all; returns the sizes of each rank.

        A rank's first size is the number of its anchors. Embeddings on ``device`` will be sent.
        """
        if f"{device.type}:" not in self._backends:
            raise ValueError(f"group must take tensors on {device.type}, got one with the backends {self._backends}")
        rows = self._introduce({"sizes": sizes, **facts})
        for rank, row in enumerate(rows):
            if "error" in row:
                raise RuntimeError(f"rank {rank} of the group failed: {row['error']}")
        for name in dict.fromkeys(name for row in rows for name in row if name != "sizes"):
            values = [row.get(name, "nothing") for row in rows]
            if any(value != values[0] for value in values):
                said = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
                raise ValueError(f"{name} must be the same on all ranks of the group, got {said}")
        found = [cast("list[int]", row["sizes"]) for row in rows]
        self.n_rows = sum(row[0] for row in found)
        self.weight = found[self.rank][0] * self.size / max(1, self.n_rows)
        return found

    def leave(self, error: Exception) -> None:
        """Tell ranks that wait to meet why this one will not come."""
        if not self._met:
            told = f"{type(error).__name__}: {error}".encode("ascii", "replace").decode()
            self._introduce({"error": told[: MESSAGE // 4]})

    def _introduce(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """The facts of all ranks; on the CPU where the group has a backend for it, so that no GPU is waited for."""
        self._met = True
        text = json.dumps(facts).encode().ljust(MESSAGE)
        device = "cpu" if "cpu:" in self._backends else torch.device("cuda", torch.cuda.current_device())
        mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
        all_ranks = mine.new_empty(self.size * MESSAGE)
        gather_single(all_ranks, mine, self.group)
        return [json.loads(bytes(row)) for row in all_ranks.view(self.size, MESSAGE).cpu().numpy()]


class Named(NamedTuple):
    """A process group by the name that torch.distributed has for it: what a copy of a loss has until it is called."""

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


def together(function: Callable[P, R]) -> Callable[P, R]:
    """Hand ``function`` its ``group`` as ``Ranks``, or as None where there is one rank only.

    What it raises before the ranks have met is told to the others, which would wait for this rank otherwise.
    """

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        group = options.get("group")
        if group is None or isinstance(group, Ranks):
            return function(*args, **options)
        if isinstance(group, str) and (group == LOCAL or (group == WORLD and not several_ranks())):
            options["group"] = None
            return function(*args, **options)
        return on_ranks(*args, **options)

    @eager
    def on_ranks(*args: P.args, **options: P.kwargs) -> R:
        check_group(cast("Group", group := options["group"]))
        ring = isinstance(group, Ring)
        members = members_of(group.group if isinstance(group, Ring) else group)
        if members is None or members.size() == 1:
            options["group"] = None
            return function(*args, **options)
        options["group"] = ranks = Ranks(members, ring)
        try:
            return function(*args, **options)
        except Exception as error:
            ranks.leave(error)
            raise

    return call


def of_the_batch(function: Callable[P, R]) -> Callable[P, R]:
    """``together`` for a loss of a whole batch: one that runs on several ranks and was given no group says so once."""
    run = together(function)
    kinds = signature(function).parameters.values()
    positional = [parameter.name for parameter in kinds if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if len(args) > len(positional):
            several = ": several views are one argument, (z1, z2)" if positional == ["views"] else ""
            raise TypeError(
                f"{function.__name__} takes {', '.join(positional)} by position and the rest by name, got {len(args)} "
                f"arguments by position{several}"
            )
        if options.get("group") is not None:
            return run(*args, **options)
        if not torch.compiler.is_compiling() and several_ranks():
            warn_once(
                "no group",
                f"{function.__name__} was given no group on one of {dist.get_world_size()} ranks, so candidates are "
                "this rank's alone: group='world' takes those of all ranks, group='local' says that these are meant",
            )
        return function(*args, **options)

    return call


def ranks_of(group: Group | None) -> Ranks | None:
    """What ``together`` made of a ``group``."""
    assert group is None or isinstance(group, Ranks)
    return group


def instances(n: int, device: torch.device, group: Group | None) -> Tensor:
    """``0 .. n - 1``, or as many numbers that no other rank has."""
    if (ranks := ranks_of(group)) is None:
        return torch.arange(n, device=device)
    room = INSTANCES // ranks.size
    if n > room:
        raise ValueError(f"a rank of {ranks.size} may bring at most {room} instances, got {n}")
    return torch.arange(ranks.rank * room, ranks.rank * room + n, device=device)


def agree(group: Group | None, like: Tensor, **facts: str | float | bool | None) -> dist.ProcessGroup | None:
    """``Ranks.meet`` for a batch of its own on each rank; returns what the collectives take."""
    if (ranks := ranks_of(group)) is None:
        return None
    ranks.meet(like.device, [len(like)], dtype=str(like.dtype), **facts)
    return ranks.group


def total(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over the ranks."""
    if group is not None:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.SUM, group)
    return value


def merge_lse(lse: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Log-sum-exps over all ranks from each rank's own; NaN and infinity on one rank become NaN on all."""
    if group is None:
        return lse
    peak = lse.clone()
    dist.all_reduce(peak, dist.ReduceOp.MAX, group)
    peak = peak.masked_fill(peak == -torch.inf, 0)
    return total((lse - peak).exp(), group).log() + peak


def join_lse(lse: Tensor, ranks: Ranks) -> Tensor:
    """``merge_lse`` with a gradient, that of the sum over the ranks of what each does with the same result."""
    joined = merge_lse(lse.detach(), ranks.group)
    return joined + ranks.size * (lse.detach() - joined).exp() * (lse - lse.detach())
