# SPDX-License-Identifier: Apache-2.0
"""One pair for each point of a side, or none: what these pairs have of both sides, and sums over them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ChosenPairs(NamedTuple):
    by_row: bool  # each row has chosen a column; else each column a row
    partner: Tensor  # -1 for none
    none: Tensor  # bool
    at: Tensor  # the partner, 0 for none

    @classmethod
    def of(cls, index: Tensor, by_row: bool) -> ChosenPairs:
        return cls(by_row, index, index < 0, index.clamp_min(0))

    def of_rows(self, x: Tensor) -> Tensor:
        """What the pairs have of x [m, ...], 0 where there is none."""
        return self._own(x) if self.by_row else self._own(x.index_select(0, self.at))

    def of_cols(self, x: Tensor) -> Tensor:
        return self._own(x.index_select(0, self.at)) if self.by_row else self._own(x)

    def _own(self, x: Tensor) -> Tensor:
        # Masked before it is used: a zero gradient times an infinite embedding would be NaN.
        return x.masked_fill(self.none.view(-1, *(1,) * (x.dim() - 1)), 0)

    def add_to_rows(self, sums: Tensor, x: Tensor) -> None:
        """Add what the pairs have, 0 where there is none, to sums [m, ...]."""
        _add(sums, None if self.by_row else self.at, x)

    def add_to_cols(self, sums: Tensor, x: Tensor) -> None:
        _add(sums, self.at if self.by_row else None, x)

    def mark(self, rows: Tensor, cols: Tensor) -> None:
        """Set which rows and columns are in a pair, bool [m + 1] and [n + 1]: the last entries take what is in none."""
        own, theirs = (rows, cols) if self.by_row else (cols, rows)
        own[:-1] |= ~self.none
        theirs[self.partner] = True


def _add(sums: Tensor, at: Tensor | None, x: Tensor) -> None:
    if at is None:
        sums += x
    else:
        sums.index_add_(0, at, x)
