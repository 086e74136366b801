// SPDX-License-Identifier: Apache-2.0
// Sums over the pairs of a row: map(l) of negatives and w map(-l) of positives, with their gradients.
#pragma once
#include "maps.h"
#include "sweep.h"

namespace {

// What the terms of a row's positives are multiplied by. A row whose factor is 0 has no positives: 0 times infinity is
// NaN.
struct OneForAll {
  static constexpr bool drops(int64_t) { return false; }
  template <class V>
  PYCL_INLINE V times(int64_t, V y) const {
    return y;
  }
};
template <class T>
struct OneForEachRow {
  const T* factors;
  bool drops(int64_t row) const { return factors[row] == T(0); }
  PYCL_INLINE Vec<T> times(int64_t row, Vec<T> y) const { return y * factors[row]; }
};

// Calls body(map, factor) with what the terms are made of.
template <class T, class Body>
void with_terms(const pycl::Terms& terms, Body body) {
  with_map(terms.map, [&](auto map) {
    const T* factors = static_cast<const T*>(terms.positive_weight);
    factors ? body(map, OneForEachRow<T>{factors}) : body(map, OneForAll{});
  });
}

// Replaces every product of a tile by value(row, l, positive, counts), summed over the sets that the pair is in: the
// first set (the negatives), the positives, both or none. `counts` are the pairs that are in the set. A logit of -inf
// is a pair that was dropped: it is in no set, and without sets its value(-inf) is 0 for negatives.
template <bool kPartial, class P, class Value, class RowDone, class Factor>
void map_tile(Sweep<P>& sweep, const Tile<typename P::T>& tile, Value value, RowDone row_done, const Factor& factor) {
  using T = typename P::T;
  for (int i = 0; i < tile.rows; ++i) {
    const int64_t at_row = tile.i0 + i;
    const auto row = sweep.classes.row(at_row, tile.jb);
    const Vec<T> a = splat<T>(sweep.row_factor[at_row]), b = splat<T>(sweep.row_bias[at_row]);
    const bool no_positives = factor.drops(at_row);
    for (int j = 0; j < tile.block; j += kLanes<T>) {
      T* at = tile.products + int64_t(i) * tile.block + j;
      const Vec<T> l = load<T>(at) * a + (b + load<T>(sweep.col_bias + tile.j0 + j));
      if (kPartial) {
        const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
        const IVec<T> negative = (cls & Int<T>(sweep.classes.pairs)) != 0;
        const IVec<T> positive = ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != -kInf<T>);
        Vec<T> y = negative ? value(at_row, l, false, negative) : Vec<T>{};
        if (!no_positives && any<T>(positive)) y += positive ? value(at_row, l, true, positive) : Vec<T>{};
        store<T>(at, y);
      } else {
        store<T>(at, value(at_row, l, false, ~IVec<T>{}));
      }
    }
    row_done(i);
  }
}

template <class P, class Value, class RowDone, class Factor = OneForAll>
void map_tile(Sweep<P>& sweep, const Tile<typename P::T>& tile, Value value, RowDone row_done,
              const Factor& factor = {}) {
  tile.kind == TileKind::kPartial ? map_tile<true>(sweep, tile, value, row_done, factor)
                                  : map_tile<false>(sweep, tile, value, row_done, factor);
}

// What a negative or a positive adds to its row's sum, and the slope of that.
template <class Map, class T, class Factor>
PYCL_INLINE Vec<T> term_of(const Factor& factor, int64_t row, Vec<T> l, bool positive) {
  return positive ? factor.times(row, Map::template value<T>(-l)) : Map::template value<T>(l);
}
template <class Map, class T, class Factor>
PYCL_INLINE Vec<T> slope_of(const Factor& factor, int64_t row, Vec<T> l, bool positive) {
  return positive ? -factor.times(row, Map::template slope<T>(-l)) : Map::template slope<T>(l);
}

template <class T>
T sum_of_row(const Tile<T>& tile, int i) {
  Vec<T> sum{};
  for (int j = 0; j < tile.block; j += kLanes<T>) sum += load<T>(tile.products + int64_t(i) * tile.block + j);
  return reduce_add<T>(sum);
}

template <class Map, class P, class Factor>
void add_terms(Sweep<P>& sweep, const Factor& factor, typename P::T* sums) {
  using T = typename P::T;
  sweep.run([&](const Tile<T>& tile) {
    auto value = [&](int64_t row, Vec<T> l, bool positive, IVec<T>)
                     PYCL_LAMBDA_INLINE { return term_of<Map, T>(factor, row, l, positive); };
    map_tile(sweep, tile, value, [&](int i) { sums[tile.i0 + i] += sum_of_row(tile, i); }, factor);
  });
}

// The sums, and how many terms of each are not 0.
template <class Map, class P, class Factor>
void add_and_count_terms(Sweep<P>& sweep, const Factor& factor, typename P::T* sums, typename P::T* counts) {
  using T = typename P::T;
  sweep.run([&](const Tile<T>& tile) {
    Vec<T> count{};
    auto value = [&](int64_t row, Vec<T> l, bool positive, IVec<T> counted) PYCL_LAMBDA_INLINE {
      const Vec<T> term = term_of<Map, T>(factor, row, l, positive);
      count += counted & (term != T(0)) ? splat<T>(1) : Vec<T>{};
      return term;
    };
    auto row_done = [&](int i) {
      sums[tile.i0 + i] += sum_of_row(tile, i);
      counts[tile.i0 + i] += reduce_add<T>(count);
      count = Vec<T>{};
    };
    map_tile(sweep, tile, value, row_done, factor);
  });
}

template <class P>
void pair_sum(const Problem& problem, const ExecutionContext& host, const pycl::Terms& terms, const pycl::Sums& out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, nullptr);
  const int64_t padded = sweep.row_blocks * sweep.block;
  T *sums = zeros<T>(host, true, padded), *counts = zeros<T>(host, out.counts, padded);
  with_terms<T>(terms, [&](auto map, auto factor) {
    using Map = decltype(map);
    counts ? add_and_count_terms<Map>(sweep, factor, sums, counts) : add_terms<Map>(sweep, factor, sums);
  });
  std::memcpy(out.sums, sums, sizeof(T) * problem.rows.z.n);
  if (counts) std::memcpy(out.counts, counts, sizeof(T) * problem.rows.z.n);
}

template <class P>
void pair_sum_backward(const Problem& problem, const ExecutionContext& host, const pycl::Terms& terms,
                       const void* d_sum, const Gradients& out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, false, &out);
  const T* d = static_cast<const T*>(d_sum);
  with_terms<T>(terms, [&](auto map, auto factor) {
    using Map = decltype(map);
    apply_weights(sweep, out, [&](const Tile<T>& tile, auto emit) {
      auto value = [&](int64_t row, Vec<T> l, bool positive, IVec<T>)
                       PYCL_LAMBDA_INLINE { return slope_of<Map, T>(factor, row, l, positive) * d[row]; };
      map_tile(sweep, tile, value, [&](int i) { flush_rows(i, tile.rows, emit); }, factor);
    });
  });
}

template <class P>
void pair_sum_fused(const Problem& problem, const ExecutionContext& host, const pycl::Terms& terms, double weight,
                    void* total, const Gradients& gradients) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, &gradients);
  auto* totals = zeros<double>(host, true, sweep.workers);
  with_terms<T>(terms, [&](auto map, auto factor) {
    using Map = decltype(map);
    apply_weights(sweep, gradients, [&](const Tile<T>& tile, auto emit) {
      double total_of_tile = 0;
      Vec<T> sum{};
      auto value = [&](int64_t row, Vec<T> l, bool positive, IVec<T> counted) PYCL_LAMBDA_INLINE {
        sum += counted ? term_of<Map, T>(factor, row, l, positive) : Vec<T>{};
        return slope_of<Map, T>(factor, row, l, positive) * T(weight);
      };
      auto row_done = [&](int i) {
        total_of_tile += double(reduce_add<T>(sum));
        sum = Vec<T>{};
        flush_rows(i, tile.rows, emit);
      };
      map_tile(sweep, tile, value, row_done, factor);
      totals[tile.worker] += total_of_tile;
    });
  });
  double sum = 0;
  for (int worker = 0; worker < sweep.workers; ++worker) sum += totals[worker];
  *static_cast<T*>(total) = T(weight * sum);
}

}  // namespace
