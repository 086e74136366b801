# SPDX-License-Identifier: Apache-2.0
"""Faults that somebody could make, each a text of the sources, what it becomes, and the tests that have to notice.

A text occurs exactly once in its file; where an edit to the file changes that, say the same fault in its new words.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    tests: str  # modules of tests/, the one most likely to notice first


ENGINE = "test_engine test_triton test_losses"
TRITON = "test_triton test_engine test_losses"
CPU = "test_engine test_cpu test_cpu_fused test_losses"

FAULTS = [
    Fault(
        "pair classes: a flipped mask bit",
        "triton_kernels/pair_classes.py",
        "tl.where(same_view, 8, 16))",
        "tl.where(same_view, 16, 8))",
        ENGINE,
    ),
    Fault(
        "whole tiles: one that sticks out by a column counts as full",
        "triton_kernels/pair_classes.py",
        "return (c0 + BN <= end)",
        "return (c0 + BN <= end + 1)",
        TRITON,
    ),
    Fault(
        "whole tiles: one that meets the diagonal in a corner alone is not seen to",
        "triton_kernels/pair_classes.py",
        "return (diagonal > -BM)",
        "return (diagonal > 1 - BM)",
        TRITON,
    ),
    Fault(
        "visits: the blocks on the diagonal are dropped",
        "triton_kernels/block_mask.py",
        "useful &= c0 >= r0",
        "useful &= c0 > r0",
        TRITON,
    ),
    Fault(
        "bounds: logits of any size count as small",
        "triton_kernels/block_mask.py",
        "LOGIT_BOUND = tl.constexpr(35.0)",
        "LOGIT_BOUND = tl.constexpr(35000.0)",
        ENGINE,
    ),
    Fault(
        "logits: the columns' factor is lost",
        "triton_kernels/logits.py",
        "found *= load_attribute(cols.factor, j, n, IN_BOUNDS)[None, :]",
        "found *= 1.0",
        ENGINE,
    ),
    Fault(
        "forward: sums over columns lose the first column beside the diagonal",
        "triton_kernels/forward.py",
        "write &= j >= r0 + BM",
        "write &= j > r0 + BM",
        TRITON,
    ),
    Fault(
        "combine: what was added before keeps its old maximum",
        "triton_kernels/combine.py",
        "return new_max, exp_sum * tl.exp2(running_max - shift) + others",
        "return new_max, exp_sum + others",
        ENGINE,
    ),
    Fault(
        "combine: the sums over columns of the first rows are forgotten",
        "triton_kernels/combine.py",
        "first_row > 0, tl.where(end == m, n, 0),",
        "False, tl.where(end == m, n, 0),",
        TRITON,
    ),
    Fault(
        "small problems: the last column block of a split is not visited",
        "triton_kernels/block_mask.py",
        "return first, first, begin, begin, tl.minimum(begin + blocks_per_split, n_blocks - first)",
        "return first, first, begin, begin, tl.minimum(begin + blocks_per_split, n_blocks - first - 1)",
        ENGINE,
    ),
    Fault(
        "preparation: the columns' groups begin a group late",
        "triton_kernels/prepare.py",
        "group = program - first_block",
        "group = program - first_block - 1",
        ENGINE,
    ),
    Fault(
        "launch: any address counts as a multiple of 16 bytes",
        "pycl/backends/triton/launch.py",
        "add(value.data_ptr() % 16 == 0)",
        "add(True)",
        "test_triton_launch",
    ),
    Fault(
        "block masks: the columns' have the offset of the rows",
        "triton_kernels/block_mask.py",
        "transposed(offset), pairs",
        "offset, pairs",
        TRITON,
    ),
    Fault(
        "normalisation: the gradient keeps what lies along the embedding",
        "triton_kernels/finish.py",
        "g = (g - x * along[:, None]) * inverse_norm[:, None]",
        "g = g * inverse_norm[:, None]",
        ENGINE,
    ),
    Fault(
        "normalisation: the last feature is skipped",
        "triton_kernels/prepare.py",
        "mask=(i < n)[:, None] & (k < d)[None, :], other=0.0).to(tl.float32)",
        "mask=(i < n)[:, None] & (k < d - 1)[None, :], other=0.0).to(tl.float32)",
        ENGINE,
    ),
    Fault(
        "float16: the gradient is not divided by what the weights were multiplied with",
        "triton_kernels/finish.py",
        "scale /= tl.load(loss_scale)",
        "scale *= 1.0",
        ENGINE,
    ),
    Fault(
        "backward: the gradient of the columns' bias has the wrong sign",
        "pycl/backends/triton/gradients.py",
        "out.col_bias.add_(strip.col_bias.sum(0))",
        "out.col_bias.sub_(strip.col_bias.sum(0))",
        ENGINE,
    ),
    Fault(
        "backward: a strip of weights overwrites what the strips before it gave to the columns",
        "pycl/backends/triton/gradients.py",
        "into=of_cols[0], add=here.start > 0",
        "into=of_cols[0], add=False",
        TRITON,
    ),
    Fault(
        "means: a strip of weights overwrites what the strips before it gave to the values",
        "pycl/backends/triton/gradients.py",
        "into=sums, add=here.start > 0",
        "into=sums, add=False",
        "test_triton_average",
    ),
    Fault(
        "backward: both places of a pair count in the gradient of the scale",
        "pycl/backends/triton/gradients.py",
        "out.logit_scale.mul_(0.5)",
        "out.logit_scale.mul_(1.0)",
        ENGINE,
    ),
    Fault(
        "top: the last logit of one search is the first of the next",
        "triton_kernels/topk.py",
        "(j[None, :] > col[:, None])",
        "(j[None, :] >= col[:, None])",
        "test_matrix",
    ),
    Fault(
        "Sinkhorn on a GPU: sums of different maxima are added as they are",
        "triton_kernels/sinkhorn_kernels.py",
        "exp_sum = exp_sum * tl.exp2(running_max - new_max) + exp_sums * tl.exp2(maxima - new_max)",
        "exp_sum = exp_sum + exp_sums",
        "test_triton_sinkhorn test_sinkhorn",
    ),
    Fault(
        "Sinkhorn in CUDA: a tile's slot is filled again while others read it",
        "csrc/cuda/block_partition.cuh",
        "__syncthreads();  // before the slot is filled again",
        "",
        "test_cuda_on_cpu",
    ),
    Fault(
        "reduction: ranks with fewer terms weigh as much",
        "pycl/engine/reduction.py",
        "else terms.mean() * agreement.weight",
        "else terms.mean()",
        "test_group",
    ),
    Fault(
        "autograd: a gradient that came with the value is not multiplied by its slope",
        "pycl/ops/autograd.py",
        "found = [gradient * d_total if len(gradient) else gradient for gradient in of_total]",
        "found = list(of_total)",
        "test_cpu_fused test_cross_entropy test_autograd",
    ),
    Fault(
        "ranks: sums over another rank's columns replace those over one's own",
        "pycl/ops/sharded.py",
        "(_SUMS, torch.add)",
        "(_SUMS, lambda mine, part: part)",
        "test_group",
    ),
    Fault(
        "ranks: of a block that two share, one column is computed by neither",
        "pycl/distributed/exchange.py",
        "cols = RowRange(cols.stop // 2, cols.stop)",
        "cols = RowRange(cols.stop // 2 + 1, cols.stop)",
        "test_group",
    ),
    Fault(
        "Sinkhorn: a soft marginal forgets epsilon",
        "pycl/core/sinkhorn.py",
        "potential * (penalty / (penalty + epsilon))",
        "potential * (penalty / (penalty + 1))",
        "test_swav test_features",
    ),
    Fault(
        "CPU: the column after the last one has a class",
        "csrc/cpu/labels.h",
        "return position < Int<T>(left < block ? left : block)",
        "return position <= Int<T>(left < block ? left : block)",
        CPU,
    ),
    Fault(
        "CPU: the blocks on the diagonal are dropped",
        "csrc/cpu/schedule.h",
        "for (int64_t j = i; j < row_blocks; j += 2 * workers)",
        "for (int64_t j = i + 2 * workers; j < row_blocks; j += 2 * workers)",
        CPU,
    ),
    Fault(
        "CPU: far shifts share one exponential",
        "csrc/cpu/stats_forward.h",
        "constexpr double kSharedShift = 80;",
        "constexpr double kSharedShift = 8000;",
        CPU,
    ),
    Fault(
        "CPU: a positive's weight lacks what its column adds",
        "csrc/cpu/stats_backward.h",
        "if (by_col) positive += load<T>(cols.d_pos_sum + gj);",
        "",
        CPU,
    ),
    Fault(
        "CPU: the gradient of the rows' bias has the wrong sign",
        "csrc/cpu/sweep.h",
        "if (by_row) by_row[tile.i0 + i] += reduce_add<T>(sum);",
        "if (by_row) by_row[tile.i0 + i] -= reduce_add<T>(sum);",
        CPU,
    ),
    Fault(
        "CPU: a logit's gradient lacks what it does to the other weights of its softmax",
        "csrc/cpu/average.h",
        "(load<T>(d + at) - from)",
        "load<T>(d + at)",
        "test_average",
    ),
    Fault(
        "CPU: the values get a gradient from the last block of rows alone",
        "csrc/cpu/average.h",
        "written.start(tile.jb)",
        "false",
        "test_average",
    ),
    Fault(
        "CPU module: nothing ends a kernel before its last tile",
        "csrc/cpu/schedule.h",
        "if (!host.cancelled(host)) visit(w, i, j);",
        "visit(w, i, j);",
        "test_cpu_process",
    ),
    Fault(
        "CPU module: a float of NumPy is an integer",
        "csrc/bindings.cpp",
        "return py::arg(name).noconvert();",
        "return py::arg(name);",
        "test_cpu_bindings",
    ),
    Fault(
        "CPU module: rows and columns may differ in their features",
        "csrc/arguments.h",
        "demand(rows.z.d == cols.z.d, ",
        "demand(true, ",
        "test_cpu_bindings",
    ),
    Fault(
        "CPU: the slope of a square is the number itself",
        "csrc/cpu/maps.h",
        "return nats<T>(x) * T(2);",
        "return nats<T>(x);",
        "test_maps",
    ),
    Fault(
        "CPU: of equal logits the last candidate is the hardest",
        "csrc/cpu/extremes.h",
        "(ties && at < index[i])",
        "(ties && at > index[i])",
        "test_extremes",
    ),
    Fault(
        "CPU: labels of a table share a line with smaller ones",
        "csrc/cpu/pair_weights.h",
        "while (k < n && found[k] != label[i]) ++k;",
        "while (k < n && found[k] < label[i]) ++k;",
        "test_modifiers",
    ),
    Fault(
        "CPU: the slopes of a table are its last line's",
        "csrc/cpu/pair_weights.h",
        "to[col_label[tile.j0 + j]] += double(sum[j]);",
        "to[col_label[tile.j0 + j]] = double(sum[j]);",
        "test_modifiers",
    ),
    Fault(
        "CPU: a weight of an agreement has the slopes of larger ones, too",
        "csrc/cpu/pair_weights.h",
        "sum += load_int<T>(agreeing + j) == Int<T>(t) ?",
        "sum += load_int<T>(agreeing + j) >= Int<T>(t) ?",
        "test_modifiers",
    ),
    Fault(
        "CPU: the slope of a hidden unit is of the wrong side of 0",
        "csrc/cpu/pair_mlp.h",
        "c = a - a * ratio;",
        "c = a + a * ratio;",
        "test_modifiers",
    ),
    Fault(
        "CPU: hidden units far from 0 are half of what they are",
        "csrc/cpu/pair_mlp.h",
        "T(2 * kLog2E)",
        "T(kLog2E)",
        "test_modifiers",
    ),
    Fault(
        "CPU: positives above a limit are dropped",
        "csrc/cpu/limits.h",
        "Int<T>(classes.positives)) == 0;",
        "Int<T>(classes.positives)) != 0;",
        "test_modifiers",
    ),
    Fault(
        "CPU: a guide is compared in units of log 2",
        "csrc/cpu/limits.h",
        "guided ? T(1) : T(grid.unit)",
        "T(grid.unit)",
        "test_modifiers",
    ),
    Fault(
        "CPU: a dropped positive has the gradient of its sum",
        "csrc/cpu/stats_backward.h",
        "& (l != -kInf<T>);",
        "& (l != kInf<T>);",
        "test_modifiers",
    ),
    Fault(
        "ranks: labels of a table are those of the first rows",
        "pycl/ops/sharded.py",
        "at.of(p.row_codes),",
        "p.row_codes,",
        "test_group_modifiers",
    ),
]
