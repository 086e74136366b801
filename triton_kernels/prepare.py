# SPDX-License-Identifier: Apache-2.0
"""What comes before the sweeps, in one launch: points as the tiles read them, and slopes as the backward reads them."""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.operands import GROUP, prepare_group
from pycl.triton_kernels.weights import tabulate


@triton.jit(do_not_specialize=["operand_stride", "values_stride", "m", "n", "d"])
def prepare(
    rows, cols, row_slopes, col_slopes, tables, operand_stride, values_stride, m, n, d,
    NORMALIZE: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A group of points of the rows; behind these of the columns, behind these a block of the tables, where asked for.

    A symmetric problem has its columns among the rows where one operand serves both.
    """
    program, first_block = tl.program_id(0), tl.cdiv(m, GROUP)
    if program < first_block:
        prepare_group(rows, program, operand_stride, values_stride, m, d, NORMALIZE, PLANES, True, BLOCK)
    if cols.z is not None:
        group = program - first_block
        first_block += tl.cdiv(n, GROUP)
        if (group >= 0) & (program < first_block):
            prepare_group(cols, group, operand_stride, values_stride, n, d, NORMALIZE, PLANES, False, BLOCK)
    if tables.rows is not None:
        if program >= first_block:
            tabulate(row_slopes, col_slopes, tables, program - first_block, rows.factor, m, n, 4096)
