// SPDX-License-Identifier: Apache-2.0
// Sums over the pairs of a row: map(l) of negatives and w map(-l) of positives, with their gradients.
#pragma once
#include "maps.h"
#include "sweep.h"

namespace {

// Replaces every product of a tile by value(i, l, positive, counts), summed over the sets that the pair is in: the
// first set (the negatives), the positives, both or none. `counts` are the pairs that are in the set. A logit of -inf
// is a pair that was dropped: it is in no set, and without sets its value(-inf) is 0 for negatives.
template <bool kPartial, class P, class Value, class RowDone>
void map_tile(Sweep<P>& sweep, const Tile<typename P::T>& tile, Value value, RowDone row_done) {
  using T = typename P::T;
  const T* const products = tile.found();
  for (int i = 0; i < tile.rows; ++i) {
    const auto row = sweep.classes.row(tile.i0 + i, tile.jb);
    const Vec<T> a = splat<T>(sweep.row_factor[tile.i0 + i]), b = splat<T>(sweep.row_bias[tile.i0 + i]);
    for (int j = 0; j < tile.block; j += kLanes<T>) {
      T* at = tile.products + int64_t(i) * tile.block + j;
      const Vec<T> l =
          load<T>(products + int64_t(i) * tile.block + j) * a + (b + load<T>(sweep.col_bias + tile.j0 + j));
      if (kPartial) {
        const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
        const IVec<T> negative = (cls & Int<T>(sweep.classes.pairs)) != 0;
        const IVec<T> positive = ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != -kInf<T>);
        Vec<T> y = negative ? value(i, l, false, negative) : Vec<T>{};
        if (any<T>(positive)) y += positive ? value(i, l, true, positive) : Vec<T>{};
        store<T>(at, y);
      } else {
        store<T>(at, value(i, l, false, ~IVec<T>{}));
      }
    }
    row_done(i);
  }
}

template <class P, class Value, class RowDone>
void map_tile(Sweep<P>& sweep, const Tile<typename P::T>& tile, Value value, RowDone row_done) {
  tile.kind == TileKind::kPartial ? map_tile<true>(sweep, tile, value, row_done)
                                  : map_tile<false>(sweep, tile, value, row_done);
}

// The weights of the rows' positives, maybe ones. Kernels of their own for sums without weights were faster by 1 %
// where all pairs are positives, by nothing elsewhere, and a fifth of all machine code.
template <class P>
const typename P::T* positive_weights(const Sweep<P>& sweep, const pycl::Terms& terms) {
  using T = typename P::T;
  if (terms.positive_weight) return static_cast<const T*>(terms.positive_weight);
  const int64_t m = sweep.problem.rows.z.n;
  T* ones = allocate<T>(sweep.host, m);
  for (int64_t i = 0; i < m; ++i) ones[i] = 1;
  return ones;
}

// Of a row whose weight is 0 even infinite terms of positives are 0.
template <class T>
PYCL_INLINE Vec<T> weighed(T weight, Vec<T> y) {
  const Vec<T> w = splat<T>(weight);
  return w != T(0) ? y * w : Vec<T>{};
}

// What a negative or a positive adds to its sum, and the slope of that; the weight is that of positives.
template <class Map, class T>
PYCL_INLINE Vec<T> term_of(Vec<T> l, bool positive, T weight) {
  return positive ? weighed<T>(weight, Map::template value<T>(-l)) : Map::template value<T>(l);
}
template <class Map, class T>
PYCL_INLINE Vec<T> slope_of(Vec<T> l, bool positive, T weight) {
  return positive ? -weighed<T>(weight, Map::template slope<T>(-l)) : Map::template slope<T>(l);
}

template <class T>
T sum_of_row(const Tile<T>& tile, int i) {
  Vec<T> sum{};
  for (int j = 0; j < tile.block; j += kLanes<T>) sum += load<T>(tile.products + int64_t(i) * tile.block + j);
  return reduce_add<T>(sum);
}

template <class Map, class P>
void add_terms(Sweep<P>& sweep, const typename P::T* weights, typename P::T* sums) {
  using T = typename P::T;
  sweep.run([&](const Tile<T>& tile) {
    auto value = [&](int i, Vec<T> l, bool positive, IVec<T>)
                     PYCL_LAMBDA_INLINE { return term_of<Map, T>(l, positive, weights[tile.i0 + i]); };
    map_tile(sweep, tile, value, [&](int i) { sums[tile.i0 + i] += sum_of_row(tile, i); });
  });
}

// The sums, and how many terms of each are not 0.
template <class Map, class P>
void add_and_count_terms(Sweep<P>& sweep, const typename P::T* weights, typename P::T* sums, typename P::T* counts) {
  using T = typename P::T;
  sweep.run([&](const Tile<T>& tile) {
    Vec<T> count{};
    auto value = [&](int i, Vec<T> l, bool positive, IVec<T> counted) PYCL_LAMBDA_INLINE {
      const Vec<T> term = term_of<Map, T>(l, positive, weights[tile.i0 + i]);
      count += counted & (term != T(0)) ? splat<T>(1) : Vec<T>{};
      return term;
    };
    map_tile(sweep, tile, value, [&](int i) {
      sums[tile.i0 + i] += sum_of_row(tile, i);
      counts[tile.i0 + i] += reduce_add<T>(count);
      count = Vec<T>{};
    });
  });
}

template <class P>
void pair_sum(const Problem& problem, const ExecutionContext& host, const pycl::Terms& terms, const pycl::Sums& out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, nullptr, false);
  const T* weights = positive_weights(sweep, terms);
  const int64_t padded = sweep.row_blocks * sweep.block;
  T *sums = zeros<T>(host, true, padded), *counts = zeros<T>(host, out.counts, padded);
  with_map(terms.map, [&](auto chosen) {
    using Map = decltype(chosen);
    counts ? add_and_count_terms<Map>(sweep, weights, sums, counts) : add_terms<Map>(sweep, weights, sums);
  });
  std::memcpy(out.sums, sums, sizeof(T) * problem.rows.z.n);
  if (counts) std::memcpy(out.counts, counts, sizeof(T) * problem.rows.z.n);
}

template <class P>
void pair_sum_backward(const Problem& problem, const ExecutionContext& host, const pycl::Terms& terms,
                       const void* d_sum, const Gradients& out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, false, &out, false);
  const T *d = static_cast<const T*>(d_sum), *weights = positive_weights(sweep, terms);
  with_map(terms.map, [&](auto chosen) {
    using Map = decltype(chosen);
    apply_weights(sweep, out, [&](const Tile<T>& tile, auto emit) {
      auto value = [&](int i, Vec<T> l, bool positive, IVec<T>) PYCL_LAMBDA_INLINE {
        return slope_of<Map, T>(l, positive, weights[tile.i0 + i]) * d[tile.i0 + i];
      };
      map_tile(sweep, tile, value, [&](int i) { flush_rows(i, tile.rows, emit); });
    });
  });
}

template <class P>
void pair_sum_fused(const Problem& problem, const ExecutionContext& host, const pycl::Terms& terms, double weight,
                    void* total, const Gradients& out) {
  using T = typename P::T;
  if (!any_gradient(out)) {
    T* sums = allocate<T>(host, problem.rows.z.n);
    pair_sum<P>(problem, host, terms, {sums, nullptr});
    *static_cast<T*>(total) = T(weight * added_up(sums, problem.rows.z.n));
    return;
  }
  const Gradients by_row = with_scale_by_row<T>(problem, host, out);
  Sweep<P> sweep(problem, host, true, &by_row, false);
  const T* weights = positive_weights(sweep, terms);
  auto* totals = zeros<double>(host, true, sweep.groups);
  with_map(terms.map, [&](auto chosen) {
    using Map = decltype(chosen);
    apply_weights(sweep, by_row, [&](const Tile<T>& tile, auto emit) {
      double total_of_tile = 0;
      Vec<T> sum{};
      auto value = [&](int i, Vec<T> l, bool positive, IVec<T> counted) PYCL_LAMBDA_INLINE {
        sum += counted ? term_of<Map, T>(l, positive, weights[tile.i0 + i]) : Vec<T>{};
        return slope_of<Map, T>(l, positive, weights[tile.i0 + i]) * T(weight);
      };
      map_tile(sweep, tile, value, [&](int i) {
        total_of_tile += double(reduce_add<T>(sum));
        sum = Vec<T>{};
        flush_rows(i, tile.rows, emit);
      });
      totals[tile.group] += total_of_tile;
    });
  });
  *static_cast<T*>(total) = T(weight * added_up(totals, sweep.groups));
  add_up_scale<T>(problem, by_row, out);
}

}  // namespace
