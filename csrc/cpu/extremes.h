// SPDX-License-Identifier: Apache-2.0
// The largest logit of the first set and the smallest of the positives in every row, with their columns, and from the
// same tiles those in every column, with their rows.
#pragma once
#include "sweep.h"

namespace {

// The largest value of each point and the position of its candidate, -1 without one. A NaN beats every number; of
// equals the lowest position stays, whatever order the tiles come in.
template <class T>
struct PointBest {
  T* value;
  int64_t* index;

  void start(const ExecutionContext& host, int64_t n) {
    value = allocate<T>(host, n);
    index = allocate<int64_t>(host, n);
    for (int64_t i = 0; i < n; ++i) value[i] = -kInf<T>, index[i] = -1;
  }
  void merge(int64_t i, T a, int64_t at) {
    const T b = value[i];
    const bool beats = !(a <= b) && b == b, ties = a == b || (a != a && b != b);
    if (index[i] < 0 || beats || (ties && at < index[i])) value[i] = a, index[i] = at;
  }
};

// The largest value that each lane has seen and where in the tile, negative without one. Of equals the first stays.
template <class T>
struct LaneBest {
  Vec<T> value = splat<T>(-kInf<T>);
  IVec<T> at = ~IVec<T>{};

  PYCL_INLINE void take(Vec<T> x, IVec<T> here, IVec<T> better) {
    value = better ? x : value;
    at = better ? here : at;
  }
  PYCL_INLINE IVec<T> beaten_by(Vec<T> x) const { return ~(x <= value) & (value == value); }
  // As the best of point i, whose candidates are those from `first` on.
  void merge_into(PointBest<T>& best, int64_t i, int64_t first) const {
    if (!any<T>(~(value < best.value[i]) & (at >= 0))) return;
    for (int k = 0; k < kLanes<T>; ++k)
      if (at[k] >= 0) best.merge(i, value[k], first + at[k]);
  }
};

// The same of every column of a tile, in memory.
template <class T>
struct TileBest {
  T* value;
  Int<T>* at;

  void start(const ExecutionContext& host, int64_t n) {
    value = allocate<T>(host, n);
    at = allocate<Int<T>>(host, n);
  }
  void clear(int n) const {
    for (int j = 0; j < n; j += kLanes<T>) store(j, {});
  }
  PYCL_INLINE LaneBest<T> load(int j) const { return {::load<T>(value + j), load_int<T>(at + j)}; }
  PYCL_INLINE void store(int j, const LaneBest<T>& best) const {
    ::store<T>(value + j, best.value);
    store_int<T>(at + j, best.at);
  }
  void merge_into(PointBest<T>& best, const Tile<T>& tile) const {
    for (int j = 0; j < tile.block; ++j)
      if (at[j] >= 0) best.merge(tile.j0 + j, value[j], tile.i0 + at[j]);
  }
};

template <class Best>
struct Two {
  Best negatives, positives;  // those of the positives are of -l

  void start(const ExecutionContext& host, int64_t n) {
    negatives.start(host, n);
    positives.start(host, n);
  }
};

// kRows rows of a tile from row i on: more than one hides the latency of a comparison, and columns are loaded once.
template <bool kPartial, bool kCols, int kRows, class P, class T>
PYCL_INLINE void search_rows(const Sweep<P>& sweep, const Tile<T>& tile, int i, Two<PointBest<T>>& of_rows,
                             const Two<TileBest<T>>& of_cols) {
  const Vec<T> none = splat<T>(-kInf<T>);
  typename Classes<T>::Row row[kRows];
  Vec<T> a[kRows], b[kRows];
  LaneBest<T> top[kRows], bottom[kRows];
  for (int r = 0; r < kRows; ++r) {
    row[r] = sweep.classes.row(tile.i0 + i + r, tile.jb);
    a[r] = splat<T>(sweep.row_factor[tile.i0 + i + r]);
    b[r] = splat<T>(sweep.row_bias[tile.i0 + i + r]);
  }
  IVec<T> at = lane_index<T>();
  for (int j = 0; j < tile.block; j += kLanes<T>, at += Int<T>(kLanes<T>)) {
    const Vec<T> col_bias = load<T>(sweep.col_bias + tile.j0 + j);
    LaneBest<T> col_top, col_bottom;
    if (kCols) col_top = of_cols.negatives.load(j);
    for (int r = 0; r < kRows; ++r) {
      const IVec<T> row_at = IVec<T>{} + Int<T>(i + r);
      Vec<T> l = load<T>(tile.products + int64_t(i + r) * tile.block + j) * a[r] + (b[r] + col_bias);
      if (kPartial) {
        const IVec<T> cls = sweep.classes.of(row[r], tile.jb, j);
        const IVec<T> positive = ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != none);
        if (any<T>(positive)) {  // a logit of inf is a candidate: it takes the place of none
          bottom[r].take(-l, at, positive & (bottom[r].beaten_by(-l) | (bottom[r].at < 0)));
          if (kCols) {
            col_bottom = of_cols.positives.load(j);
            col_bottom.take(-l, row_at, positive & (col_bottom.beaten_by(-l) | (col_bottom.at < 0)));
            of_cols.positives.store(j, col_bottom);
          }
        }
        l = (cls & Int<T>(sweep.classes.pairs)) != 0 ? l : none;
      }
      top[r].take(l, at, top[r].beaten_by(l));
      if (kCols) col_top.take(l, row_at, col_top.beaten_by(l));
    }
    if (kCols) of_cols.negatives.store(j, col_top);
  }
  for (int r = 0; r < kRows; ++r) {
    top[r].merge_into(of_rows.negatives, tile.i0 + i + r, tile.j0);
    if (kPartial) bottom[r].merge_into(of_rows.positives, tile.i0 + i + r, tile.j0);
  }
}

template <bool kPartial, bool kCols, class P, class T>
void search_tile(const Sweep<P>& sweep, const Tile<T>& tile, Two<PointBest<T>>& of_rows,
                 const Two<TileBest<T>>& of_cols) {
  constexpr int kRows = kPartial ? 1 : 4;
  int i = 0;
  for (; i + kRows <= tile.rows; i += kRows) search_rows<kPartial, kCols, kRows>(sweep, tile, i, of_rows, of_cols);
  for (; i < tile.rows; ++i) search_rows<kPartial, kCols, 1>(sweep, tile, i, of_rows, of_cols);
}

template <class T>
void store_extremes(const Two<PointBest<T>>& found, int64_t n, const pycl::Extremes& out) {
  T* values = static_cast<T*>(out.values);
  std::memcpy(values, found.negatives.value, sizeof(T) * n);
  for (int64_t i = 0; i < n; ++i) values[n + i] = -found.positives.value[i];
  std::memcpy(out.index, found.negatives.index, sizeof(int64_t) * n);
  std::memcpy(out.index + n, found.positives.index, sizeof(int64_t) * n);
}

template <bool kCols, class P>
void find_extremes(const Problem& problem, const ExecutionContext& host, const pycl::Extremes& rows,
                   const pycl::Extremes& cols) {
  using T = typename P::T;
  // in nats, not in units of log 2: logits that are equal there stay equal
  Sweep<P> sweep(problem, host, true, nullptr, kCols, 1);
  const int64_t m = problem.rows.z.n, n = problem.cols.z.n;
  Two<PointBest<T>> of_rows, of_cols;
  Two<TileBest<T>>* of_tile = allocate<Two<TileBest<T>>>(host, sweep.workers);
  of_rows.start(host, m);
  if (kCols) of_cols.start(host, n);
  for (int worker = 0; kCols && worker < sweep.workers; ++worker) of_tile[worker].start(host, sweep.block);
  sweep.run([&](const Tile<T>& tile) {
    const Two<TileBest<T>>& found = of_tile[tile.worker];
    if (kCols) found.negatives.clear(tile.block), found.positives.clear(tile.block);
    // the padding of a row with a NaN is NaN, too: only the classes tell it from a candidate
    const bool padded = tile.j0 + tile.block > n;
    if (tile.kind == TileKind::kPartial || padded)
      search_tile<true, kCols>(sweep, tile, of_rows, found);
    else
      search_tile<false, kCols>(sweep, tile, of_rows, found);
    if (kCols) found.negatives.merge_into(of_cols.negatives, tile), found.positives.merge_into(of_cols.positives, tile);
  });
  store_extremes(of_rows, m, rows);
  if (kCols) store_extremes(of_cols, n, cols);
}

// Of the columns only where `cols` has memory for them.
template <class P>
void pair_extremes(const Problem& problem, const ExecutionContext& host, const pycl::Extremes& rows,
                   const pycl::Extremes& cols) {
  (cols.values ? find_extremes<true, P> : find_extremes<false, P>)(problem, host, rows, cols);
}

}  // namespace
