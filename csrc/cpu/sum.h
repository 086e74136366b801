// SPDX-License-Identifier: Apache-2.0
// Sums over the pairs of a row: softplus(l) of negatives and softplus(-l) of positives, with their gradients.
#pragma once
#include "sweep.h"

namespace {

template <class T>
PYCL_INLINE Vec<T> magnitude(Vec<T> x) {
  return x < T(0) ? -x : x;
}
// For x in units of log 2: softplus(x log 2) and the logistic function, both without overflow.
template <class T>
PYCL_INLINE Vec<T> softplus(Vec<T> x) {
  return ::max<T>(Vec<T>{}, x) * T(kLn2) + log1p<T>(exp2<T>(-magnitude<T>(x)));
}
template <class T>
PYCL_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> u = exp2<T>(-magnitude<T>(x));
  return (x < T(0) ? u : splat<T>(1)) / (u + T(1));
}

// Replaces every product of a tile by value(i, l, positive, counts), summed over the sets that the pair is in: the
// first set (the negatives), the positives, both or none. `counts` are the pairs that are in the set.
template <bool kPartial, class P, class Value, class RowDone>
void map_tile(Sweep<P>& sweep, const Tile<typename P::T>& tile, Value value, RowDone row_done) {
  using T = typename P::T;
  for (int i = 0; i < tile.rows; ++i) {
    const auto row = sweep.classes.row(tile.i0 + i, tile.jb);
    const Vec<T> a = splat<T>(sweep.row_factor[tile.i0 + i]), b = splat<T>(sweep.row_bias[tile.i0 + i]);
    for (int j = 0; j < tile.block; j += kLanes<T>) {
      T* at = tile.products + int64_t(i) * tile.block + j;
      const Vec<T> l = load<T>(at) * a + (b + load<T>(sweep.col_bias + tile.j0 + j));
      if (kPartial) {
        const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
        const IVec<T> negative = (cls & Int<T>(sweep.classes.pairs)) != 0;
        const IVec<T> positive = (cls & Int<T>(sweep.classes.positives)) != 0;
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

template <class T>
PYCL_INLINE Vec<T> term_of(Vec<T> l, bool positive) {
  return softplus<T>(positive ? -l : l);
}
template <class T>
PYCL_INLINE Vec<T> slope_of(Vec<T> l, bool positive) {
  return positive ? -sigmoid<T>(-l) : sigmoid<T>(l);
}

template <class P>
void pair_sum(const Problem& problem, const ExecutionContext& host, void* out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, nullptr);
  T* sums = zeros<T>(host, true, sweep.row_blocks * sweep.block);
  sweep.run([&](const Tile<T>& tile) {
    auto value = [](int, Vec<T> l, bool positive, IVec<T>) PYCL_LAMBDA_INLINE { return term_of<T>(l, positive); };
    map_tile(sweep, tile, value, [&](int i) {
      Vec<T> sum{};
      for (int j = 0; j < tile.block; j += kLanes<T>) sum += load<T>(tile.products + int64_t(i) * tile.block + j);
      sums[tile.i0 + i] += reduce_add<T>(sum);
    });
  });
  std::memcpy(out, sums, sizeof(T) * problem.rows.z.n);
}

template <class P>
void pair_sum_backward(const Problem& problem, const ExecutionContext& host, const void* d_sum, const Gradients& out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, false, &out);
  const T* d = static_cast<const T*>(d_sum);
  apply_weights(sweep, out, [&](const Tile<T>& tile, auto emit) {
    auto value = [&](int i, Vec<T> l, bool positive, IVec<T>)
                     PYCL_LAMBDA_INLINE { return slope_of<T>(l, positive) * d[tile.i0 + i]; };
    map_tile(sweep, tile, value, [&](int i) { flush_rows(i, tile.rows, emit); });
  });
}

template <class P>
void pair_sum_fused(const Problem& problem, const ExecutionContext& host, double weight, void* total,
                    const Gradients& gradients) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, &gradients);
  auto* totals = zeros<double>(host, true, sweep.workers);
  apply_weights(sweep, gradients, [&](const Tile<T>& tile, auto emit) {
    double total_of_tile = 0;
    Vec<T> sum{};
    auto value = [&](int, Vec<T> l, bool positive, IVec<T> counts) PYCL_LAMBDA_INLINE {
      sum += counts ? term_of<T>(l, positive) : Vec<T>{};
      return slope_of<T>(l, positive) * T(weight);
    };
    map_tile(sweep, tile, value, [&](int i) {
      total_of_tile += double(reduce_add<T>(sum));
      sum = Vec<T>{};
      flush_rows(i, tile.rows, emit);
    });
    totals[tile.worker] += total_of_tile;
  });
  double sum = 0;
  for (int worker = 0; worker < sweep.workers; ++worker) sum += totals[worker];
  *static_cast<T*>(total) = T(weight * sum);
}

}  // namespace
