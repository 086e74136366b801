// SPDX-License-Identifier: Apache-2.0
// Values weighted by e^l, summed over the pairs of a row, and the gradients of their softmax means.
#pragma once
#include "sum.h"

namespace {

// Replaces the products of a tile by e^l, 0 for a pair that does not count. The caller's biases keep it in range.
template <class P, class RowDone>
void exponentiate(Sweep<P>& sweep, const Tile<typename P::T>& tile, RowDone row_done) {
  using T = typename P::T;
  auto value = [](int, Vec<T> l, bool, IVec<T>) PYCL_LAMBDA_INLINE { return exp2<T>(l); };
  map_tile(sweep, tile, value, row_done);
}

// sum_j e^l_ij v_j.
template <class P>
void pair_weighted_sum(const Problem& problem, const ExecutionContext& host, const pycl::Matrix& values, void* out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, nullptr);
  Packed<P> packed;
  packed.lay_out(host, values, false, sweep.block, {false, false, true, false}, nullptr, false);
  pack<P>(host, packed, nullptr);
  const int64_t width = packed.width;
  T* sums = allocate<T>(host, sweep.row_blocks * sweep.block * width);
  add_products(sweep, {nullptr, &packed, sums, nullptr, nullptr, nullptr}, [&](const Tile<T>& tile, auto emit) {
    exponentiate(sweep, tile, [&](int i) { flush_rows(i, tile.rows, emit); });
  });
  parallel(host, problem.rows.z.n, width, [&](int64_t i) {
    std::memcpy(static_cast<T*>(out) + i * values.d, sums + i * width, sizeof(T) * values.d);
  });
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
    const bool by_col = of_values && !P::kScalesOperand;
    g.lay_out(host, d_out, false, sweep.block, {of_logits || !by_col, false, false, by_col}, nullptr, false);
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
  Sweep<P> sweep(problem, host, false, &out);
  AverageSlopes<P> slopes(sweep, values, d_out, along, d_values != nullptr, of_logits);
  apply_weights(sweep, out, [&](const auto& tile, auto emit) { slopes(tile, emit); });
  if (d_values) slopes.store_values(static_cast<typename P::T*>(d_values));
}

}  // namespace
