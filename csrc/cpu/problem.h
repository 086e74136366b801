// SPDX-License-Identifier: Apache-2.0
// What crosses the boundary between the bindings and the per-instruction-set kernels: plain data, no templates.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycl {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Values are those of pycl.Pairs.
enum PairClass : uint32_t { kSelf = 1, kPosSameView = 2, kPosOtherView = 4, kNegSameView = 8, kNegOtherView = 16 };

struct Matrix {
  const void* data;
  int64_t n, d;
  int64_t row_stride, col_stride;  // in elements
  DType dtype;
};

// One role of a problem. Bias has the accumulation type, float or double; null where there is none.
struct Side {
  Matrix z;
  const int64_t* ids;  // with views, or both null: then the points are views-major,
  const int64_t* views;
  int64_t instances;  // point i is of instance i % instances and of view i / instances
  const void* bias;
};

struct Problem {
  Side rows, cols;
  bool symmetric;           // cols are the rows; half of the tiles are computed
  const void* logit_scale;  // accumulation type, one entry or one per row
  bool scale_per_row;
  uint32_t pairs, positives;  // unions of PairClass; pairs is the first set: a denominator, negatives, all that counts
  bool has_self;
  int64_t offset;  // row i is the same point as column i + offset
  bool normalize;
  // Where a forward saves the products of all tiles for the backward of the same problem; null where it does not.
  void* residuals;
};

// In front of the products that are saved: all that shaped them. A backward that differs in any of it, another type of
// product because a precision was set or another number of threads in between, computes them again.
struct alignas(64) ResidualHeader {
  Problem problem;
  const void* product;
  int64_t block, workers;

  bool operator==(const ResidualHeader& other) const;  // compiled once: an inline one of AVX-512 could serve everybody
};

// Gradients of one problem; null where not wanted. logit_scale has one entry per row and comes with rows.
// rows and cols have the dtype of z and are contiguous, the rest has the accumulation type. In a symmetric problem only
// the sum over logit_scale is defined: a tile's pairs are counted with the row they were visited from.
struct Gradients {
  void *rows, *cols, *logit_scale, *row_bias, *col_bias;
};

// What kernels need from outside: threads and memory. run() calls body(arg, task) for every task in [0, tasks), maybe
// in parallel, and returns when all are done; allocate() returns 64-byte aligned memory that lives until the call ends.
// cancelled(), asked before every tile, says that nobody will read the outputs: what is left may be left out.
struct ExecutionContext {
  int threads;
  bool (*cancelled)(const ExecutionContext&);
  void (*run)(const ExecutionContext&, int tasks, void (*body)(void* arg, int task), void* arg);
  void* (*allocate)(const ExecutionContext&, size_t bytes);
  void* owner;
};

// Row-major [6, n] in the accumulation type: lse, pos_lse, pos_sum, pos_count, and for the backward lse and pos_lse in
// units of log 2, as the tiles computed them: converted back they would be off by a rounding, which a large logit
// turns into a visible error of its weight.
struct Stats {
  void *rows, *cols;  // cols null: row statistics only
};

// Gradients with respect to the statistics, [n] each; null for zero.
struct StatsGradient {
  const void *lse, *pos_lse, *pos_sum;
};

// The total of lse times one weight and pos_sum times another over the rows, or over rows and columns.
struct CrossEntropy {
  double lse, pos_sum;
  bool both_sides;
};

// Scores [B, K] for Sinkhorn, with unit column stride; sample_target is log(B a_b) in the accumulation type or null.
struct SinkhornProblem {
  Matrix scores;
  double epsilon;
  const void* sample_target;
};

// The kernels of one instruction set and one type of product.
struct Kernels {
  size_t (*residual_bytes)(const Problem&, int threads);  // what Problem::residuals takes
  void (*pair_stats)(const Problem&, const ExecutionContext&, const Stats& out);
  void (*pair_stats_backward)(const Problem&, const ExecutionContext&, const Stats&, const StatsGradient& rows,
                              const StatsGradient& cols, const Gradients&);
  // the total and its gradients
  void (*pair_cross_entropy_fused)(const Problem&, const ExecutionContext&, const CrossEntropy&, void* total,
                                   const Gradients&);
  void (*pair_sum)(const Problem&, const ExecutionContext&, void* out);
  void (*pair_sum_backward)(const Problem&, const ExecutionContext&, const void* d_sum, const Gradients&);
  // weight times the total of the sums, and its gradients
  void (*pair_sum_fused)(const Problem&, const ExecutionContext&, double weight, void* total, const Gradients&);
  // contiguous [m, values.d] in the accumulation type
  void (*pair_weighted_sum)(const Problem&, const ExecutionContext&, const Matrix& values, void* out);
  // log sum_b exp(L_bk + u_b) [K], u from the sample step with the prototypes' potential, 0 where that is null
  void (*sinkhorn_columns)(const SinkhornProblem&, const ExecutionContext&, const void* potential, void* out);
  // log sum_k exp(L_bk + v_k) [B], with the prototypes' potential
  void (*sinkhorn_samples)(const SinkhornProblem&, const ExecutionContext&, const void* potential, void* out);
  // contiguous codes [B, K] of a dtype, and the samples' potential [B]
  void (*sinkhorn_codes)(const SinkhornProblem&, const ExecutionContext&, const void* potential, DType, void* codes,
                         void* u);
};

// What an instruction set offers; null where it has nothing better than the set below it.
struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels* float32;
  const Kernels* float64;
  const Kernels* bfloat16;    // one product of bfloat16 values, float32 sums
  const Kernels* bfloat16x3;  // float32 as two bfloat16 halves, three products
};

}  // namespace pycl
