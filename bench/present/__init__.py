# SPDX-License-Identifier: Apache-2.0
"""What becomes of a record: tables, pictures, lines of a CSV file, and the page docs/benchmarks.md."""

from __future__ import annotations
