// SPDX-License-Identifier: Apache-2.0
// What Python hands over, checked before a kernel reads memory by it: raw addresses and sizes come without any.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/problem.h"

namespace pycl {

using Address = uintptr_t;
using Addresses = std::array<Address, 3>;
using Outputs = std::array<Address, 6>;  // in the order of Gradients
using MatrixTuple = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, int>;

// Kernels number points and features in 31 bits and compute sizes in 64: products of these and a tile's padding fit.
constexpr int64_t kLongestSide = int64_t(1) << 30;
constexpr double kMostElements = 0x1p48, kFarthestElement = 0x1p59;
constexpr int64_t kLargestOffset = int64_t(1) << 62;
constexpr uint32_t kAllPairs = kSelf | kPosSameView | kPosOtherView | kNegSameView | kNegOtherView;

inline std::string text(const char* word) { return word; }
inline std::string text(int64_t number) { return std::to_string(number); }

// The message is put together where it is needed: a check costs a call of a small loss nothing.
template <class... Words>
void demand(bool holds, Words... words) {
  if (!holds) throw std::invalid_argument((text(words) + ...));
}

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

inline void* required(const char* name, Address address) {
  demand(address != 0, name, " must be an address, got 0");
  return pointer(address);
}

inline DType dtype_of(const char* name, int code) {
  demand(0 <= code && code <= int(DType::kFloat16), name, " must have one of the dtypes 0 to 3, got ", code);
  return DType(code);
}

inline Terms terms_of(int map, Address positive_weight) {
  demand(0 <= map && map <= int(PairMap::kLogitExp), "map must be one of 0 to 4, got ", map);
  return {PairMap(map), pointer(positive_weight)};
}

inline int thread_count(int threads) {
  demand(threads >= 1, "threads must be at least 1, got ", threads);
  return threads;
}

inline Matrix matrix(const char* name, const MatrixTuple& z) {
  const auto& [data, n, d, row_stride, col_stride, code] = z;
  demand(n >= 1 && d >= 1, name, " must have n >= 1 and d >= 1, got ", n, " and ", d);
  demand(n <= kLongestSide && d <= kLongestSide && double(n) * double(d) <= kMostElements, name, " is too large: ", n,
         " times ", d);
  const double farthest = double(n) * double(row_stride) + double(d) * double(col_stride);
  demand(row_stride >= 0 && col_stride >= 0 && farthest <= kFarthestElement, name, " has strides of ", row_stride,
         " and ", col_stride);
  return {required(name, data), n, d, row_stride, col_stride, dtype_of(name, code)};
}

inline uint32_t pair_set(const char* name, uint32_t pairs) {
  demand(!(pairs & ~kAllPairs), name, " must be a union of pycl.Pairs, got ", pairs);
  return pairs;
}

// The two sides of one matrix of logits.
inline void check_sides(const Side& rows, const Side& cols, bool symmetric) {
  demand(rows.z.d == cols.z.d, "rows and cols must have one feature size, got ", rows.z.d, " and ", cols.z.d);
  demand(rows.z.dtype == cols.z.dtype, "rows and cols must have one dtype");
  demand(!symmetric || (rows.z.data == cols.z.data && rows.z.n == cols.z.n),
         "a symmetric problem has one set of points");
  const int given = !!rows.ids + !!rows.views + !!cols.ids + !!cols.views;
  demand(given == 0 || given == 4, "labels are ids and views of both sides, or none, got ", given);
}

using ModifierTuple = std::tuple<int, int64_t, int64_t>;  // kind and two sizes, as in Problem.modifiers

// How many codes, values of a row, values of a column and shared numbers a modifier has, as in pycl.core.modifiers.
inline std::array<int64_t, 4> widths(ModifierKind kind, int64_t first, int64_t second) {
  switch (kind) {
    case ModifierKind::kLabelTable:
      demand(first >= 1 && second >= 1 && double(first) * double(second) <= kMostElements, "a table of ", first,
             " times ", second);
      return {1, 0, 0, first * second};
    case ModifierKind::kAgreement:
      demand(0 <= first && first <= kLongestSide, "an agreement of ", first, " labels");
      return {first, 0, 0, first + 1};
    case ModifierKind::kPairMlp:
      demand(1 <= first && first <= kLongestSide, "a network of ", first, " units");
      return {0, first, first, first + 1};
    case ModifierKind::kLimit:
      demand(0 <= first && first <= kLongestSide, "a guide of ", first, " features");
      return {0, first + 1, first + 1, 0};
    case ModifierKind::kRowShift:
      break;
  }
  return {0, 1, 0, 0};
}

inline Modifier modifier(const ModifierTuple& given) {
  const auto& [kind, first, second] = given;
  demand(0 <= kind && kind <= int(ModifierKind::kRowShift), "modifiers have one of the kinds 0 to 4, got ", kind);
  return {ModifierKind(kind), {first, second}, 0, 0, 0, 0};
}

// Labels of a table are its rows or columns: a kernel reads memory by them.
inline void check_labels(const char* name, const int64_t* codes, int64_t n, int64_t each, int64_t which, int64_t most) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t label = codes[i * each + which];
    demand(0 <= label && label < most, name, " must be at least 0 and less than ", most, ", the table's size, got ",
           label);
  }
}

inline Gradients gradients(const Problem& problem, const Outputs& out) {
  demand(problem.modifiers.count || !out[5], "a problem without modifiers has no gradient of any");
  demand(out[0] || !out[2], "the gradient of logit_scale comes with that of the rows");
  demand(!problem.symmetric || !out[1], "a symmetric problem has no columns of its own with a gradient");
  return {pointer(out[0]), pointer(out[1]), pointer(out[2]), pointer(out[3]), pointer(out[4]), pointer(out[5])};
}

inline Slopes slopes_of(const std::vector<double>& values) {
  demand(values.size() <= Slopes::kMost, "slopes must be at most ", int64_t(Slopes::kMost), ", got ",
         int64_t(values.size()));
  Slopes slopes{int(values.size()), {}};
  for (int k = 0; k < slopes.n; ++k) {
    demand(std::isfinite(values[k]) && values[k] > 0, "slopes must be positive and finite, not number ", int64_t(k));
    slopes.values[k] = values[k];
  }
  return slopes;
}

// The kernels multiply chunks of features between two ends, and read neither a scale nor modifiers.
inline Prefixes prefixes_of(const Problem& problem, const std::vector<int64_t>& ends, Address row_factor,
                            Address col_factor) {
  demand(!ends.empty() && ends.size() <= size_t(Prefixes::kMost), "prefixes must be 1 to ", int64_t(Prefixes::kMost),
         ", got ", int64_t(ends.size()));
  demand(!problem.normalize && !problem.scale_per_row && !problem.modifiers.count && !problem.rows.bias &&
             !problem.cols.bias,
         "prefixes are of points as they are, without scale, biases and modifiers");
  demand(ends.back() == problem.rows.z.d, "the last prefix must be all ", problem.rows.z.d, " features, got ",
         ends.back());
  Prefixes prefixes{int(ends.size()), {}, required("row_factor", row_factor), required("col_factor", col_factor)};
  for (int k = 0; k < prefixes.n; ++k) {
    demand(ends[k] > (k ? ends[k - 1] : 0), "prefixes must ascend from 1, not ", ends[k]);
    demand(k + 1 == prefixes.n || ends[k] % Prefixes::kUnit == 0, "prefixes must be multiples of ", Prefixes::kUnit,
           ", got ", ends[k]);
    prefixes.ends[k] = ends[k];
  }
  return prefixes;
}

inline PrefixGradients prefix_gradients(const Problem& problem, const std::array<Address, 4>& out) {
  demand(!problem.symmetric || !out[1], "a symmetric problem has no columns of its own with a gradient");
  return {pointer(out[0]), pointer(out[1]), required("row_factor", out[2]), required("col_factor", out[3])};
}

inline SinkhornProblem sinkhorn_problem(const MatrixTuple& scores, double epsilon, Address sample_target) {
  const SinkhornProblem t{matrix("scores", scores), epsilon, pointer(sample_target)};
  demand(t.scores.col_stride == 1 || t.scores.d == 1, "scores must have a column stride of 1, got ",
         t.scores.col_stride);
  return t;
}

// Kernels write codes in one of two types.
inline DType code_dtype(const SinkhornProblem& t, int code) {
  const DType dtype = dtype_of("codes", code);
  demand(dtype == t.scores.dtype || dtype == DType::kFloat32, "codes must have the dtype of the scores or float32");
  return dtype;
}

}  // namespace pycl
