# SPDX-License-Identifier: Apache-2.0
"""The table of losses: one row says what the tests, the benchmarks and the documentation need to know about a loss.

``LOSSES[name]`` has the function, its formula with the whole matrix (:mod:`pycl.testing.formulas`), its module, and how
a batch of views becomes its inputs. Adding a loss is a function, a formula and a row here.
"""

from __future__ import annotations

from pycl.testing.table import features, labels, retrieval, views
from pycl.testing.table.row import LossRow, make_views

PARTS = (views, retrieval, labels, features)
LOSSES = {row.name: row for part in PARTS for row in part.ROWS}

__all__ = ["LOSSES", "LossRow", "make_views"]
