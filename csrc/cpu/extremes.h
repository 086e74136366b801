// SPDX-License-Identifier: Apache-2.0
// The largest logit of the first set and the smallest of the positives in every row, with their columns.
#pragma once
#include "sweep.h"

namespace {

// The largest value of each row and its column, -1 without one. A NaN beats every number; of equals the lowest column
// stays, whatever order the tiles come in.
template <class T>
struct RowBest {
  T* value;
  int64_t* index;

  void start(const ExecutionContext& host, int64_t n) {
    value = allocate<T>(host, n);
    index = allocate<int64_t>(host, n);
    for (int64_t i = 0; i < n; ++i) value[i] = -kInf<T>, index[i] = -1;
  }
  // `column` is relative to the first one of the tile, and negative in a lane without a candidate.
  void merge(int64_t i, Vec<T> best, IVec<T> column, int64_t j0) {
    if (!any<T>(~(best < value[i]) & (column >= 0))) return;
    for (int k = 0; k < kLanes<T>; ++k) {
      if (column[k] < 0) continue;
      const T a = best[k], b = value[i];
      const int64_t at = j0 + column[k];
      const bool beats = !(a <= b) && b == b, ties = a == b || (a != a && b != b);
      if (index[i] < 0 || beats || (ties && at < index[i])) value[i] = a, index[i] = at;
    }
  }
};

template <class T>
struct LaneBest {
  Vec<T> value = splat<T>(-kInf<T>);
  IVec<T> column = ~IVec<T>{};

  PYCL_INLINE void take(Vec<T> x, IVec<T> at, IVec<T> better) {
    value = better ? x : value;
    column = better ? at : column;
  }
};

template <bool kPartial, class P, class T>
void find_extremes(Sweep<P>& sweep, const Tile<T>& tile, RowBest<T>& negatives, RowBest<T>& positives) {
  const Vec<T> none = splat<T>(-kInf<T>);
  for (int i = 0; i < tile.rows; ++i) {
    const auto row = sweep.classes.row(tile.i0 + i, tile.jb);
    const Vec<T> a = splat<T>(sweep.row_factor[tile.i0 + i]), b = splat<T>(sweep.row_bias[tile.i0 + i]);
    LaneBest<T> top, bottom;  // `bottom` holds -l
    IVec<T> at = lane_index<T>();
    for (int j = 0; j < tile.block; j += kLanes<T>, at += Int<T>(kLanes<T>)) {
      Vec<T> l = load<T>(tile.products + int64_t(i) * tile.block + j) * a + (b + load<T>(sweep.col_bias + tile.j0 + j));
      if (kPartial) {
        const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
        const IVec<T> positive = ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != none);
        if (any<T>(positive)) {
          const Vec<T> x = -l;  // a logit of inf is a candidate: it takes the place of none
          const IVec<T> better = ~(x <= bottom.value) & (bottom.value == bottom.value);
          bottom.take(x, at, positive & (better | (bottom.column < 0)));
        }
        l = (cls & Int<T>(sweep.classes.pairs)) != 0 ? l : none;
      }
      top.take(l, at, ~(l <= top.value) & (top.value == top.value));
    }
    negatives.merge(tile.i0 + i, top.value, top.column, tile.j0);
    if (kPartial) positives.merge(tile.i0 + i, bottom.value, bottom.column, tile.j0);
  }
}

template <class P>
void pair_extremes(const Problem& problem, const ExecutionContext& host, const pycl::Extremes& out) {
  using T = typename P::T;
  // in nats, not in units of log 2: logits that are equal there stay equal
  Sweep<P> sweep(problem, host, true, nullptr, false, 1);
  const int64_t m = problem.rows.z.n, n = problem.cols.z.n;
  RowBest<T> negatives, positives;
  negatives.start(host, m);
  positives.start(host, m);
  sweep.run([&](const Tile<T>& tile) {
    // the padding of a row with a NaN is NaN, too: only the classes tell it from a candidate
    const bool padded = tile.j0 + tile.block > n;
    if (tile.kind == TileKind::kPartial || padded)
      find_extremes<true>(sweep, tile, negatives, positives);
    else
      find_extremes<false>(sweep, tile, negatives, positives);
  });
  for (int64_t i = 0; i < m; ++i) positives.value[i] = -positives.value[i];
  std::memcpy(out.negative, negatives.value, sizeof(T) * m);
  std::memcpy(out.positive, positives.value, sizeof(T) * m);
  std::memcpy(out.negative_index, negatives.index, sizeof(int64_t) * m);
  std::memcpy(out.positive_index, positives.index, sizeof(int64_t) * m);
}

}  // namespace
