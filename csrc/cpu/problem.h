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
  const int64_t* ids;  // null where there are no labels, and then views is null, too
  const int64_t* views;
  int64_t instances;  // without labels: point i is of instance i % instances and of view i / instances
  const void* bias;
};

// What is added to logits. The values are positions in pycl.core.modifiers.KINDS, which says what each one is.
enum class ModifierKind : int { kLabelTable = 0, kAgreement = 1, kPairMlp = 2, kLimit = 3, kRowShift = 4 };

struct Modifier {
  ModifierKind kind;
  int64_t sizes[2];
  int64_t code, row_value, col_value, shared;  // where its own begins among all codes, values and shared numbers
};

constexpr int kMostModifiers = 8;

// Codes are [m, n_codes] and [n, n_codes], values [m, row_width] and [n, col_width]. Those of a symmetric problem's
// columns are its rows'. Values and shared numbers have the accumulation type.
struct Modifiers {
  Modifier list[kMostModifiers];
  int count;  // 0 without modifiers, and then nothing else is set
  const int64_t *row_codes, *col_codes;
  const void *row_values, *col_values, *shared;
  int64_t n_codes, row_width, col_width, n_shared;
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
  Modifiers modifiers;
  // Memory for the products of tiles, as many as fit: the forward writes them, the backward of the same problem reads
  // them and computes the others again. Null where none are saved.
  void* residuals;
  size_t residual_bytes;
};

// Stands before the saved products and holds all that shaped them. A backward that finds another header computes the
// products again. That happens if a precision or the number of threads was set in between.
struct alignas(64) ResidualHeader {
  Problem problem;
  const void* product;
  int64_t block;
  int64_t groups;  // of a symmetric problem: they decide which of two mirrored tiles is visited

  // Not inline: the linker could take the copy compiled for AVX-512 for everybody.
  bool operator==(const ResidualHeader& other) const;
};

// Gradients of one problem; null where not wanted. rows and cols are contiguous and have the dtype of z. The other
// gradients have the accumulation type. logit_scale has one entry per row and comes with rows. In a symmetric problem
// only the sum over logit_scale is defined: a pair is counted with the row that its tile was visited from. Those of the
// modifiers' values of the rows, of the columns unless they are the rows, and of what is shared follow each other.
struct Gradients {
  void *rows, *cols, *logit_scale, *row_bias, *col_bias, *modifiers;
};

// What kernels need from outside: threads and memory. run() calls body(arg, task) for every task in [0, tasks), maybe
// in parallel, and returns when all are done. allocate() returns 64-byte aligned memory that lives until the call ends.
// cancelled() is asked before every tile. True means that nobody will read the outputs, so the other tiles may be left
// out. relax() is what a thread does that waits for another, between two looks, whose number it is given.
struct ExecutionContext {
  int threads;
  bool (*cancelled)(const ExecutionContext&);
  void (*relax)(int polls);
  void (*run)(const ExecutionContext&, int tasks, void (*body)(void* arg, int task), void* arg);
  void* (*allocate)(const ExecutionContext&, size_t bytes);
  void* owner;
};

// Row-major [6, n] in the accumulation type: lse, pos_lse, pos_sum, pos_count, then lse and pos_lse in units of log 2.
// The last two are for the backward and are what the tiles computed. Converted from nats they would be off by a
// rounding, which a large logit turns into a visible error of its weight. With slopes or prefixes a block [6, n] for
// each of them.
struct Stats {
  void *rows, *cols;  // cols null: row statistics only
};

// The log-sum-exps are those of each of these times the logits; without any, of the logits.
struct Slopes {
  static constexpr int kMost = 8;  // pycl.core.problem.MAX_SLOPES
  int n;
  double values[kMost];
};

// The logits of prefix k are row_factor[k, i] col_factor[k, j] <x_i, y_j> over the first ends[k] features, of points as
// they are: not normalised, without scale, biases and modifiers. In a symmetric problem the two factors of a pair may
// change places. The factors are [n, points] in the accumulation type.
struct Prefixes {
  static constexpr int kMost = 16;      // pycl.core.problem.MAX_PREFIXES
  static constexpr int64_t kUnit = 32;  // pycl.core.problem.PREFIX_UNIT: divides all ends but the last
  int n;
  int64_t ends[kMost];  // ascending, the last is the feature size
  const void *row_factor, *col_factor;
};

// As Gradients; those of the factors, which are never null, are [n, points]. In a symmetric problem a pair is counted
// in the roles in which its tile was visited.
struct PrefixGradients {
  void *rows, *cols, *row_factor, *col_factor;
};

// Gradients with respect to the statistics, [n] each; null for zero. With slopes those of lse and pos_lse are [slopes,
// n], with prefixes all are [prefixes, n].
struct StatsGradient {
  const void *lse, *pos_lse, *pos_sum;
};

// The function of a logit that is summed; values are positions in pycl.core.problem.MAPS.
enum class PairMap : int { kSoftplus = 0, kSquare = 1, kRelu = 2, kExp = 3, kLogitExp = 4 };

// What is summed: a map of the logits. The terms of the positives have a factor, [m] in the accumulation type; null
// for 1.
struct Terms {
  PairMap map;
  const void* positive_weight;
};

// Sums of a map, and how many of its terms are not 0, [m] each in the accumulation type; counts may be null.
struct Sums {
  void *sums, *counts;
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

// Softmax means [m, width of the values, or 1] and log-sum-exps [m] in the accumulation type; 0 and -inf without pairs.
struct Average {
  void *means, *lse;
};

// Of each point of one side, row-major [2, n]: the largest logit of the first set and the smallest of the positives, in
// the accumulation type, and the positions of their partners; -inf, inf and -1 without one.
struct Extremes {
  void* values;
  int64_t* index;
};

// The kernels of one instruction set and one type of product.
struct Kernels {
  // The most bytes of Problem::residuals that are of use, up to a limit; 0 where no tile fits.
  size_t (*residual_bytes)(const Problem&, const ExecutionContext&, size_t limit);
  void (*pair_stats)(const Problem&, const ExecutionContext&, const Slopes&, const Stats& out);
  void (*pair_stats_backward)(const Problem&, const ExecutionContext&, const Slopes&, const Stats&,
                              const StatsGradient& rows, const StatsGradient& cols, const Gradients&);
  void (*prefix_stats)(const Problem&, const ExecutionContext&, const Prefixes&, const Stats& out);
  void (*prefix_stats_backward)(const Problem&, const ExecutionContext&, const Prefixes&, const Stats&,
                                const StatsGradient& rows, const StatsGradient& cols, const PrefixGradients&);
  // the total and its gradients, one of the scale where there is one
  void (*pair_cross_entropy_fused)(const Problem&, const ExecutionContext&, const CrossEntropy&, void* total,
                                   const Gradients&);
  void (*pair_sum)(const Problem&, const ExecutionContext&, const Terms&, const Sums& out);
  void (*pair_sum_backward)(const Problem&, const ExecutionContext&, const Terms&, const void* d_sum, const Gradients&);
  // weight times the total of the sums, and its gradients likewise
  void (*pair_sum_fused)(const Problem&, const ExecutionContext&, const Terms&, double weight, void* total,
                         const Gradients&);
  // the values of a pair are those of its column, or its logit where there are none
  void (*pair_average)(const Problem&, const ExecutionContext&, const Matrix* values, const Average& out);
  // contiguous [n, values.d] in the accumulation type, or null, and what the logits depend on
  void (*pair_average_backward)(const Problem&, const ExecutionContext&, const Matrix& values, const Matrix& d_out,
                                const void* along, void* d_values, const Gradients&);
  void (*pair_extremes)(const Problem&, const ExecutionContext&, const Extremes& rows, const Extremes& cols);
  // contiguous codes [B, K] of a dtype and both potentials [B] and [K] after iterations, from log(B m_k) [K]
  void (*sinkhorn)(const SinkhornProblem&, const ExecutionContext&, int64_t iterations, const void* prototype_target,
                   DType, void* codes, void* u, void* v);
  // log sum_b exp(L_bk + u_b) [K], u from the sample step with the prototypes' potential, 0 where that is null
  void (*sinkhorn_columns)(const SinkhornProblem&, const ExecutionContext&, const void* potential, void* out);
  // log sum_k exp(L_bk + v_k) [B], with the prototypes' potential
  void (*sinkhorn_samples)(const SinkhornProblem&, const ExecutionContext&, const void* potential, void* out);
  // contiguous codes [B, K] of a dtype, and the samples' potential [B]
  void (*sinkhorn_codes)(const SinkhornProblem&, const ExecutionContext&, const void* potential, DType, void* codes,
                         void* u);
  // contiguous rows of length 1 in the accumulation type, and from their gradient to that of z in its dtype
  void (*unit)(const Matrix& z, const ExecutionContext&, void* out);
  void (*unit_backward)(const Matrix& z, const ExecutionContext&, const Matrix& d_unit, void* out);
};

// What an instruction set offers; null where it has nothing better than the set below it.
struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels* float32;
  const Kernels* float64;
  const Kernels* bfloat16;    // one product of bfloat16 values, float32 sums
  const Kernels* bfloat16x3;  // float32 as two bfloat16 halves, three products
  const Kernels* bfloat16x6;  // float32 as three bfloat16 parts, six products: as exact as float32
};

}  // namespace pycl
