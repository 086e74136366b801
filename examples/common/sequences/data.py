# SPDX-License-Identifier: Apache-2.0
"""Who chose what, one after the other: sequences of items read from a file of pairs, and their augmentations."""

from __future__ import annotations

import argparse
import gzip
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.flags import Refused
from common.tables import count

SUFFIXES = (".txt", ".txt.gz")
SHORTEST = 3  # items: one to train on, one for validation, one for the test
CROPPED, MASKED, REORDERED = 0.6, 0.3, 0.6  # shares of a sequence, as in CL4SRec
Pair = tuple[str, str]


class Sequences(NamedTuple):
    """The items of every user in time order, numbered from 1 to ``items``; 0 pads."""

    name: str
    users: list[Tensor]
    items: int
    dropped: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sequences").add_argument
    add("--min-count", type=int, default=10, help="drop users and items with fewer pairs, until there are none")
    add("--limit", type=int, help="keep at most so many users, the first ones")


LEAST = {"min_count": 1, "limit": 2}


def load(args: argparse.Namespace) -> Sequences:
    """The sequences of --data-root: a file of lines ``user item`` in time order, or a folder with one such file.

    Raises:
        Refused: no such file, a file that cannot be read, a line that is no pair, too little left to train on.
    """
    path = _file(args.data_root)
    pairs = _read(path)
    users, items = len({user for user, _ in pairs}), len({item for _, item in pairs})
    pairs = _core(pairs, args.min_count)
    lists: dict[str, list[str]] = {}
    for user, item in pairs:
        lists.setdefault(user, []).append(item)
    long_enough = [chosen for chosen in lists.values() if len(chosen) >= SHORTEST]
    kept = long_enough[: args.limit]
    if len(kept) < 2:
        raise Refused(
            f"--data-root: {path} has {count(len(kept), 'user')} left to train on, of {users}; two are needed"
        )
    numbers: dict[str, int] = {}
    rows = [torch.tensor([numbers.setdefault(item, len(numbers) + 1) for item in chosen]) for chosen in kept]
    dropped = (
        f"dropped: {users - len(lists)} users and {items - len({item for _, item in pairs})} items with fewer than "
        f"{args.min_count}, {len(lists) - len(long_enough)} users with fewer than {SHORTEST} items, "
        f"{len(long_enough) - len(kept)} users beyond --limit"
    )
    return Sequences(path.name, rows, len(numbers), dropped)


def _file(root: Path | None) -> Path:
    if root is None:
        raise Refused(
            "--data-root is needed: a file of lines `user item` in time order, such as data/Video.txt of "
            "https://github.com/kang205/SASRec"
        )
    if root.is_file():
        return root
    if not root.is_dir():
        raise Refused(f"--data-root: there is no {root}")
    found = sorted(path for path in root.iterdir() if path.name.endswith(SUFFIXES))
    if len(found) != 1:
        raise Refused(f"--data-root: one .txt or .txt.gz is expected in {root}, found {len(found)}; or name the file")
    return found[0]


def _read(path: Path) -> list[Pair]:
    pairs = []
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for number, line in enumerate(lines, 1):
                words = line.split()
                if len(words) != 2:
                    raise Refused(f"--data-root: line {number} of {path} is not `user item`: {line.strip()[:60]!r}")
                pairs.append((words[0], words[1]))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Refused(f"--data-root: {path} cannot be read: {str(error).splitlines()[0]}") from error
    return pairs


def _core(pairs: list[Pair], least: int) -> list[Pair]:
    """The largest part in which every user and every item has ``least`` pairs."""
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        kept = [(user, item) for user, item in pairs if users[user] >= least and items[item] >= least]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


def pad(rows: Iterable[Tensor], length: int | None = None) -> Tensor:
    """``[B, L]``: the rows, at most their last ``length`` items, with zeros behind."""
    return pad_sequence([row if length is None else row[-length:] for row in rows], batch_first=True)


def augment(items: Tensor, mask_item: int) -> Tensor:
    """Crops, masks or reorders each of the sequences ``[B, L]``, one of the three at random.

    A crop keeps a run of items, a mask puts ``mask_item`` in place of some, and reordering shuffles a run.
    """
    place = torch.arange(items.shape[1], device=items.device)
    lengths = (items > 0).sum(1, keepdim=True)
    cropped = _take(items, *_run(lengths, CROPPED), place)
    noise = torch.rand(items.shape, device=items.device).masked_fill(place >= lengths, 2.0)
    masked = items.masked_fill(noise.argsort(1).argsort(1) < (lengths * MASKED).long(), mask_item)
    start, size = _run(lengths, REORDERED)
    inside = (place >= start) & (place < start + size)
    order = torch.where(inside, start + size * torch.rand(items.shape, device=items.device), place)
    reordered = items.gather(1, order.argsort(1))
    kind = torch.randint(3, lengths.shape, device=items.device)
    return torch.where(kind == 0, cropped, torch.where(kind == 1, masked, reordered))


def _run(lengths: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Where a run of that share of each sequence starts, at random, and how many items it has, at least one."""
    size = (lengths * share).long().clamp(min=1)
    return (torch.rand(lengths.shape, device=lengths.device) * (lengths - size + 1)).long(), size


def _take(items: Tensor, start: Tensor, size: Tensor, place: Tensor) -> Tensor:
    taken = items.gather(1, (start + place).clamp(max=items.shape[1] - 1))
    return taken.masked_fill(place >= size, 0)
