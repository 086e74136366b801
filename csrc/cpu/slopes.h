// SPDX-License-Identifier: Apache-2.0
// Log-sum-exps of several multiples of the logits from one product. A slope times a logit is the logit of another scale
// and other biases, so each slope runs the kernels of one log-sum-exp on a copy of the tile's products.
#pragma once
#include "stats_backward.h"

namespace {

using pycl::Slopes;

// What makes a slope times the logits of what a sweep finds in a tile.
template <class T>
struct SlopedAffine {
  T slope;
  Affine<T> affine;
  double bound;

  template <class P>
  void fill(const Sweep<P>& sweep, double s) {
    slope = T(s);
    auto times = [&](const T* x, int64_t n) {
      T* out = allocate<T>(sweep.host, n);
      for (int64_t i = 0; i < n; ++i) out[i] = T(double(x[i]) * s);
      return out;
    };
    const int64_t rows = sweep.row_blocks * sweep.block, cols = sweep.col_blocks * sweep.block;
    affine = {times(sweep.row_factor, rows), times(sweep.row_bias, rows), times(sweep.col_bias, cols)};
    bound = sweep.bound * s;
  }
  // A sweep is pointers and sizes: a copy for each tile costs nothing beside its products.
  template <class P>
  Sweep<P> applied(Sweep<P> sweep) const {
    sweep.row_factor = affine.row_factor, sweep.row_bias = affine.row_bias, sweep.col_bias = affine.col_bias;
    sweep.bound = bound;
    return sweep;
  }
};

template <class T>
struct SlopedStats {
  SlopedAffine<T> logits;
  SideStats<T> rows, cols;
  bool proven;
  T shift;

  // The statistics of one slope; sums are those of the logits.
  void write(const SideStats<T>& side, void* out, int64_t n) const {
    side.write(out, n);
    T* pos_sum = static_cast<T*>(out) + 2 * n;
    for (int64_t i = 0; i < n; ++i) pos_sum[i] /= logits.slope;
  }
};

template <class P>
void find_sloped_stats(Sweep<P>& sweep, const Slopes& slopes, const Stats& out) {
  using T = typename P::T;
  const Problem& problem = sweep.problem;
  const ExecutionContext& host = sweep.host;
  auto* each = allocate<SlopedStats<T>>(host, slopes.n);
  for (int k = 0; k < slopes.n; ++k) {
    SlopedStats<T>& s = each[k];
    s.logits.fill(sweep, slopes.values[k]);
    s.proven = s.logits.bound <= kProvenBound;
    s.shift = s.proven ? T(s.logits.bound) : -kInf<T>;
    s.rows.start(host, sweep.row_blocks * sweep.block, s.shift);
    s.cols = s.rows;
    if (!problem.symmetric) s.cols.start(host, sweep.col_blocks * sweep.block, s.shift);
  }
  const int64_t tile_size = int64_t(sweep.block) * sweep.block, size = StatsScratch<T>::size(sweep.block) + tile_size;
  T* memory = allocate<T>(host, size * sweep.workers);
  const bool both_sides = out.cols || problem.symmetric;
  sweep.run([&](Tile<T> tile) {
    T* const copy = memory + tile.worker * size;
    StatsScratch<T> scratch;
    scratch.carve(copy + tile_size, sweep.block);
    tile.both_sides = tile.both_sides && both_sides;
    for (int k = 0; k < slopes.n; ++k) {
      const SlopedStats<T>& s = each[k];
      Tile<T> own = tile;
      if (!s.proven && k + 1 < slopes.n) {  // its logits overwrite the products
        own.products = copy;
        std::memcpy(copy, tile.products, sizeof(T) * size_t(tile_size));
      }
      Sweep<P> scaled = s.logits.applied(sweep);
      StatsForward<P>{scaled, s.proven, s.shift, s.rows, s.cols}.visit(own, scratch);
    }
  });
  const int64_t m = problem.rows.z.n, n = problem.cols.z.n;
  for (int k = 0; k < slopes.n; ++k) {
    each[k].write(each[k].rows, static_cast<T*>(out.rows) + k * kStats * m, m);
    if (out.cols) each[k].write(each[k].cols, static_cast<T*>(out.cols) + k * kStats * n, n);
  }
}

// One side's statistics of slope k, and the gradients of slope times the logits from those of its log-sum-exps.
template <class T, class P>
SideWeights<T> sloped_weights(const Sweep<P>& sweep, int k, T slope, int64_t n, int64_t blocks, const void* stats,
                              const StatsGradient& d) {
  auto of_slope = [&](const void* x, int64_t rows) { return x ? static_cast<const T*>(x) + k * rows * n : nullptr; };
  SideWeights<T> side;
  side.fill(sweep.host, n, blocks, sweep.block, of_slope(stats, kStats),
            {of_slope(d.lse, 1), of_slope(d.pos_lse, 1), k == 0 ? d.pos_sum : nullptr});
  for (int64_t i = 0; i < blocks * sweep.block; ++i) side.d_lse[i] *= slope, side.d_pos_lse[i] *= slope;
  return side;
}

template <class P>
struct SlopedWeights {
  using T = typename P::T;
  struct OfSlope {
    SlopedAffine<T> logits;
    SideWeights<T> rows, cols;
  };
  Sweep<P>& sweep;
  OfSlope* each;
  int n_slopes;
  bool both_sides;
  T* memory;

  static int64_t size(int block) { return 2 * block + 2 * int64_t(block) * block; }

  // The weights of slope k, in the place of the products; `emit` as in add_products().
  template <class Emit>
  void fill(int k, const Tile<T>& tile, T* buffer, Emit emit) const {
    Sweep<P> scaled = each[k].logits.applied(sweep);
    StatsWeights<P>{scaled, each[k].rows, each[k].cols, both_sides}(tile, buffer, emit);
  }

  template <class Emit>
  void operator()(const Tile<T>& tile, Emit emit) const {
    const int64_t tile_size = int64_t(tile.block) * tile.block;
    T *const buffer = memory + tile.worker * size(tile.block), *const saved = buffer + 2 * tile.block;
    if (n_slopes == 1) return fill(0, tile, buffer, emit);
    std::memcpy(saved, tile.found(), sizeof(T) * size_t(tile_size));
    auto nothing = [](int) {};
    fill(0, tile, buffer, nothing);
    for (int k = 1; k + 1 < n_slopes; ++k) {
      Tile<T> own = tile.with_products(saved + tile_size);
      std::memcpy(own.products, saved, sizeof(T) * size_t(tile_size));
      fill(k, own, buffer, nothing);
      add(own, tile, nothing);
    }
    const Tile<T> last = tile.with_products(saved);
    fill(n_slopes - 1, last, buffer, nothing);
    add(last, tile, emit);
  }

  template <class Emit>
  static void add(const Tile<T>& from, const Tile<T>& to, Emit emit) {
    for (int i = 0; i < to.rows; ++i) {
      for (int64_t at = int64_t(i) * to.block; at < int64_t(i + 1) * to.block; at += kLanes<T>)
        store<T>(to.products + at, load<T>(to.products + at) + load<T>(from.products + at));
      flush_rows(i, to.rows, emit);
    }
  }
};

template <class P>
void find_sloped_gradients(Sweep<P>& sweep, const Slopes& slopes, const Stats& stats, const StatsGradient& d_rows,
                           const StatsGradient& d_cols, const Gradients& out) {
  using T = typename P::T;
  using OfSlope = typename SlopedWeights<P>::OfSlope;
  const Problem& problem = sweep.problem;
  auto* each = allocate<OfSlope>(sweep.host, slopes.n);
  for (int k = 0; k < slopes.n; ++k) {
    OfSlope& s = each[k];
    s.logits.fill(sweep, slopes.values[k]);
    const T slope = s.logits.slope;
    s.rows = sloped_weights(sweep, k, slope, problem.rows.z.n, sweep.row_blocks, stats.rows, d_rows);
    s.cols = s.rows;
    if (!problem.symmetric)
      s.cols = sloped_weights(sweep, k, slope, problem.cols.z.n, sweep.col_blocks, stats.cols, d_cols);
  }
  T* memory = allocate<T>(sweep.host, sweep.workers * SlopedWeights<P>::size(sweep.block));
  const SlopedWeights<P> weights{sweep, each, slopes.n, problem.symmetric || stats.cols != nullptr, memory};
  apply_weights(sweep, out, [&](const Tile<T>& tile, auto emit) { weights(tile, emit); });
}

template <class P>
void pair_stats(const Problem& problem, const ExecutionContext& host, const Slopes& slopes, const Stats& out) {
  Sweep<P> sweep(problem, host, true, nullptr, out.cols != nullptr);
  slopes.n ? find_sloped_stats(sweep, slopes, out) : find_stats(sweep, out);
}

template <class P>
void pair_stats_backward(const Problem& problem, const ExecutionContext& host, const Slopes& slopes, const Stats& stats,
                         const StatsGradient& d_rows, const StatsGradient& d_cols, const Gradients& out) {
  Sweep<P> sweep(problem, host, false, &out, false);
  if (slopes.n)
    find_sloped_gradients(sweep, slopes, stats, d_rows, d_cols, out);
  else
    find_gradients(sweep, stats, d_rows, d_cols, out);
}

}  // namespace
