// SPDX-License-Identifier: Apache-2.0
// Means of values, or of the logits, under the softmax of every row, and the gradients of those of values.
#pragma once
#include "stats_forward.h"
#include "sum.h"

namespace {

// Up to this size of all logits, 20 nats, they share a shift. Values of 1e-15 then keep their digits in float32 even
// where all candidates of a row are as far from it as can be, and their weights are e^-40 / n.
constexpr double kSharedBound = 20 * kLog2E;

// Replaces the products of a tile by e^l, 0 for a pair that does not count. Biases of the rows keep it in range.
template <class P, class RowDone>
void exponentiate(Sweep<P>& sweep, const Tile<typename P::T>& tile, RowDone row_done) {
  using T = typename P::T;
  auto value = [](int, Vec<T> l, bool, IVec<T>) PYCL_LAMBDA_INLINE { return exp2<T>(l); };
  map_tile(sweep, tile, value, row_done);
}

// Subtracts a shift from the logits of every row, after which no e^l leaves the range and some are large: one for all
// rows, `least` above the largest logit, where that is provable, and otherwise their log-sum-exps, which take a sweep
// of their own.
template <class P>
const typename P::T* shift_rows(Sweep<P>& sweep, double least) {
  using T = typename P::T;
  const int64_t m = sweep.problem.rows.z.n;
  T* shifts = allocate<T>(sweep.host, m);
  const bool proven = sweep.bound <= kSharedBound;
  const T* stats = nullptr;
  if (!proven) {
    T* out = allocate<T>(sweep.host, kStats * m);
    find_stats(sweep, {out, nullptr});
    stats = out + 4 * m;  // log-sum-exps in units of log 2
  }
  for (int64_t i = 0; i < m; ++i) {
    shifts[i] = proven ? T(sweep.bound + least) : stats[i] == -kInf<T> ? T(0) : stats[i];
    sweep.row_bias[i] -= shifts[i];
  }
  return shifts;
}

// The log-sum-exp of a row from its shift and the sum of e^l.
template <class T>
T shifted_lse(T shift, T total) {
  return total == 0 ? -kInf<T> : T((double(shift) + ::log2(double(total))) * kLn2);
}

template <class P>
void average_values(Sweep<P>& sweep, const pycl::Matrix& values, const pycl::Average& out) {
  using T = typename P::T;
  const ExecutionContext& host = sweep.host;
  // weights of at most 1 / n: sums of values at the end of the range do not leave it
  const T* shifts = shift_rows(sweep, ::log2(double(sweep.problem.cols.z.n)));
  Packed<P> packed;
  packed.lay_out(host, values, false, sweep.block, {false, false, true, false}, nullptr, false);
  pack<P>(host, packed, nullptr);
  const int64_t row = packed.sum_row;
  const int64_t padded = sweep.row_blocks * sweep.block;
  T *sums = allocate<T>(host, padded * row), *totals = zeros<T>(host, true, padded);
  add_products(sweep, {nullptr, &packed, sums, nullptr, totals, nullptr}, [&](const Tile<T>& tile, auto emit) {
    exponentiate(sweep, tile, [&](int i) { flush_rows(i, tile.rows, emit); });
  });
  parallel(host, sweep.problem.rows.z.n, row, [&](int64_t i) {
    const T total = totals[i], inverse = total == 0 ? T(0) : 1 / total;
    T* mean = static_cast<T*>(out.means) + i * values.d;
    for (int64_t k = 0; k < values.d; ++k) mean[k] = sums[i * row + k] * inverse;
    static_cast<T*>(out.lse)[i] = shifted_lse(shifts[i], total);
  });
}

template <class P>
void average_logits(Sweep<P>& sweep, const pycl::Average& out) {
  using T = typename P::T;
  const T* shifts = shift_rows(sweep, 0);  // the mean is rounded as the shift is: small logits keep their digits
  const int64_t padded = sweep.row_blocks * sweep.block;
  T *sums = zeros<T>(sweep.host, true, padded), *totals = zeros<T>(sweep.host, true, padded);
  sweep.run([&](const Tile<T>& tile) {
    Vec<T> sum{};
    auto value = [&](int, Vec<T> l, bool, IVec<T> counted) PYCL_LAMBDA_INLINE {
      const Vec<T> e = exp2<T>(l);
      sum += counted & (e != T(0)) ? e * l : Vec<T>{};
      return e;
    };
    map_tile(sweep, tile, value, [&](int i) {
      sums[tile.i0 + i] += reduce_add<T>(sum);
      totals[tile.i0 + i] += sum_of_row(tile, i);
      sum = Vec<T>{};
    });
  });
  for (int64_t i = 0; i < sweep.problem.rows.z.n; ++i) {
    const T total = totals[i];
    static_cast<T*>(out.means)[i] = total == 0 ? T(0) : (sums[i] / total + shifts[i]) * T(kLn2);
    static_cast<T*>(out.lse)[i] = shifted_lse(shifts[i], total);
  }
}

template <class P>
void pair_average(const Problem& problem, const ExecutionContext& host, const pycl::Matrix* values,
                  const pycl::Average& out) {
  Sweep<P> sweep(problem, host, true, nullptr, false);
  values ? average_values(sweep, *values, out) : average_logits(sweep, out);
}

// What the means' gradient g makes of a tile: sum_i e^l_ij g_i for the values, and the logits' slopes
// e^l_ij (<g_i, v_j> - along_i) from a second product of the tile.
template <class P>
struct AverageSlopes {
  using T = typename P::T;
  using E = typename P::E;

  Sweep<P>& sweep;
  bool of_values, of_logits;
  const T* along;
  Packed<P> g, v;
  FirstWrite written;
  T* sums;      // [col_blocks][width of g][block]
  T* products;  // <g_i, v_j>, a tile for each worker
  E* weights;   // what e^l is written as, where a product reads another type

  AverageSlopes(Sweep<P>& s, const pycl::Matrix& values, const pycl::Matrix& d_out, const void* along_rows,
                bool values_too, bool logits_too)
      : sweep(s),
        of_values(values_too),
        of_logits(logits_too),
        along(static_cast<const T*>(along_rows)),
        written(s.host, s.col_blocks) {
    const ExecutionContext& host = sweep.host;
    g.lay_out(host, d_out, false, sweep.block, {of_logits, false, false, of_values}, nullptr, false);
    v.lay_out(host, values, false, sweep.block, {false, of_logits, false, false}, nullptr, false);
    pack<P>(host, g, of_logits ? &v : nullptr);
    const int64_t tile = int64_t(sweep.block) * sweep.block;
    sums = allocate<T>(host, of_values ? sweep.col_blocks * sweep.block * g.width : 0);
    products = allocate<T>(host, of_logits ? sweep.workers * tile : 0);
    weights = allocate<E>(host, of_values ? sweep.workers * P::weights_elements(sweep.block) : 0);
  }

  template <class Emit>
  void operator()(const Tile<T>& tile, Emit emit) {
    of_values ? add_values(tile) : exponentiate(sweep, tile, [](int) {});
    if (of_logits) make_slopes(tile, emit);
  }

  void add_values(const Tile<T>& tile) {
    const int block = tile.block;
    auto exps = P::weights(tile.products, weights + tile.worker * P::weights_elements(block), block);
    auto emit = [&](int i) { exps.emit_rows(i); };
    exponentiate(sweep, tile, [&](int i) { flush_rows(i, tile.rows, emit); });
    for (int i = (tile.rows + 1) / 2 * 2; i < block; i += 2) emit(i);
    P::multiply(g.features_as_a(tile.ib), exps.as_b(), int(g.width), block, block, sums + tile.j0 * g.width, block,
                written.start(tile.jb));
  }

  template <class Emit>
  void make_slopes(const Tile<T>& tile, Emit emit) {
    const int block = tile.block;
    T* d = products + int64_t(tile.worker) * block * block;
    P::multiply(g.points_as_a(tile.ib), v.points_as_b(tile.jb), block, block, int(g.width), d, block, false);
    for (int i = 0; i < tile.rows; ++i) {
      const T from = along[tile.i0 + i];
      for (int64_t at = int64_t(i) * block; at < int64_t(i + 1) * block; at += kLanes<T>)
        store<T>(tile.products + at, load<T>(tile.products + at) * (load<T>(d + at) - from));
      flush_rows(i, tile.rows, emit);
    }
  }

  void store_values(T* out) {
    const int block = sweep.block;
    const int64_t n = v.z.n, dv = v.z.d, width = g.width;
    written.clear_others(sums, block * width);
    parallel(sweep.host, n, width, [&](int64_t j) {
      const T* from = sums + j / block * block * width + j % block;
      for (int64_t k = 0; k < dv; ++k) out[j * dv + k] = from[k * block];
    });
  }
};

// The problem's biases or a shift of its rows make e^l the softmax's weights; along_i = <g_i, o_i> of the means o.
template <class P>
void pair_average_backward(const Problem& problem, const ExecutionContext& host, const pycl::Matrix& values,
                           const pycl::Matrix& d_out, const void* along, void* d_values, const Gradients& out) {
  const bool of_logits = out.rows || out.cols || out.row_bias || out.col_bias || out.modifiers;
  Sweep<P> sweep(problem, host, false, &out, d_values != nullptr);
  AverageSlopes<P> slopes(sweep, values, d_out, along, d_values != nullptr, of_logits);
  apply_weights(sweep, out, [&](const auto& tile, auto emit) { slopes(tile, emit); });
  if (d_values) slopes.store_values(static_cast<typename P::T*>(d_values));
}

}  // namespace
