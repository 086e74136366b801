// SPDX-License-Identifier: Apache-2.0
// Gradients of the statistics: the weight of every logit, from the saved log-sum-exps.
#pragma once
#include "stats_forward.h"

namespace {

using pycl::CrossEntropy;
using pycl::StatsGradient;

// One side's statistics and the gradients with respect to them, in units of log 2. An empty set, whose log-sum-exp is
// -inf, has a log-sum-exp of 0 and a gradient of 0 here.
template <class T>
struct SideWeights {
  T *lse, *d_lse, *pos_lse, *d_pos_lse, *d_pos_sum;
  T *low, *high;  // range of lse in every block
  bool any_pos_lse;

  void fill(const ExecutionContext& host, int64_t n, int64_t blocks, int block, const void* stats,
            const StatsGradient& d) {
    const T* s = static_cast<const T*>(stats);
    auto at = [](const void* values, int64_t i) { return values ? static_cast<const T*>(values)[i] : T(0); };
    T** const vectors[] = {&lse, &d_lse, &pos_lse, &d_pos_lse, &d_pos_sum};
    for (T** p : vectors) *p = allocate<T>(host, blocks * block);
    low = allocate<T>(host, blocks);
    high = allocate<T>(host, blocks);
    any_pos_lse = false;
    for (int64_t i = 0; i < blocks * block; ++i) {
      const bool inside = s && i < n;
      const bool den = inside && s[i] != -kInf<T>, pos = inside && s[n + i] != -kInf<T>;
      lse[i] = den ? s[4 * n + i] : T(0);
      d_lse[i] = den ? at(d.lse, i) : T(0);
      pos_lse[i] = pos ? s[5 * n + i] : T(0);
      d_pos_lse[i] = pos ? at(d.pos_lse, i) : T(0);
      d_pos_sum[i] = inside ? at(d.pos_sum, i) : T(0);
      any_pos_lse = any_pos_lse || d_pos_lse[i] != 0;
      const int64_t b = i / block;
      if (i % block == 0) low[b] = kInf<T>, high[b] = -kInf<T>;
      if (den) low[b] = lse[i] < low[b] ? lse[i] : low[b];
      if (den) high[b] = lse[i] < high[b] ? high[b] : lse[i];
    }
  }
};

// Writes weights over the products that they are of.
template <class T>
struct InPlace {
  const Tile<T>& tile;

  void start(int) {}
  PYCL_INLINE void store(int i, int j, Vec<T>, Vec<T> w) { ::store<T>(tile.products + int64_t(i) * tile.block + j, w); }
  void finish(int) {}
};

template <class P, bool kColFactor = false>
struct StatsWeights {
  using T = typename P::T;
  Sweep<P>& sweep;
  SideWeights<T> rows, cols;
  bool both_sides;

  // The weight of a pair of the first set is 2^(l - lse_i) d_i + 2^(l - lse_j) d_j. If a shift is near all lse of the
  // tile, the weight is 2^(l - shift) (alpha_i + beta_j), with one exponential. Otherwise (kTwo) it takes two.
  // `out` gets products and their weights, row by row.
  template <bool kPartial, bool kTwo, class Out, class Emit>
  void fill(const Tile<T>& tile, T* buffer, T shift, bool by_col, Out out, Emit emit) {
    const int block = tile.block;
    T *alpha = buffer, *beta = buffer + block;
    for (int k = 0; k < block; k += kLanes<T>) {
      const Vec<T> d_row = load<T>(rows.d_lse + tile.i0 + k);
      const Vec<T> d_col = by_col ? load<T>(cols.d_lse + tile.j0 + k) : Vec<T>{};
      const bool rescale = by_col && !kTwo;
      const Vec<T> at_row = rescale ? exp2<T>(shift - load<T>(rows.lse + tile.i0 + k)) : splat<T>(1);
      const Vec<T> at_col = rescale ? exp2<T>(shift - load<T>(cols.lse + tile.j0 + k)) : splat<T>(1);
      store<T>(alpha + k, d_row == T(0) ? d_row : d_row * at_row);
      store<T>(beta + k, d_col == T(0) ? d_col : d_col * at_col);
    }
    for (int i = 0; i < tile.rows; ++i) {
      const int64_t gi = tile.i0 + i;
      const auto row = sweep.classes.row(gi, tile.jb);
      const Vec<T> a = splat<T>(sweep.row_factor[gi]), al = splat<T>(alpha[i]);
      const T row_shift = by_col && !kTwo ? shift : rows.lse[gi];
      const T bias = sweep.row_bias[gi];
      out.start(i);
      for (int j = 0; j < block; j += kLanes<T>) {
        const Vec<T> product = load<T>(tile.found() + int64_t(i) * block + j);
        const int64_t gj = tile.j0 + j;
        // The logit is rounded as in the forward before lse is subtracted. So a pair that is the whole sum weighs 1.
        const Vec<T> l = sweep.template scaled<kColFactor>(product, a, gj) + (bias + load<T>(sweep.col_bias + gj));
        const Vec<T> e = exp2<T>(l - row_shift);
        Vec<T> w;
        if (kTwo)
          w = e * al + exp2<T>(l - load<T>(cols.lse + gj)) * load<T>(beta + j);
        else
          w = e * (al + load<T>(beta + j));
        if (kPartial) {
          const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
          w = (cls & Int<T>(sweep.classes.pairs)) != 0 ? w : Vec<T>{};
          Vec<T> positive = splat<T>(rows.d_pos_sum[gi]);
          if (by_col) positive += load<T>(cols.d_pos_sum + gj);
          if (rows.any_pos_lse) positive += exp2<T>(l - rows.pos_lse[gi]) * rows.d_pos_lse[gi];
          if (by_col && cols.any_pos_lse)
            positive += exp2<T>(l - load<T>(cols.pos_lse + gj)) * load<T>(cols.d_pos_lse + gj);
          const IVec<T> in_pos = ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != -kInf<T>);
          w += in_pos ? positive : Vec<T>{};
        }
        out.store(i, j, product, w);
      }
      out.finish(i);
      flush_rows(i, tile.rows, emit);
    }
  }

  template <class Emit>
  void operator()(const Tile<T>& tile, T* buffer, Emit emit) {
    (*this)(tile, buffer, InPlace<T>{tile}, emit);
  }

  template <class Out, class Emit>
  void operator()(const Tile<T>& tile, T* buffer, Out out, Emit emit) {
    const bool by_col = both_sides && tile.both_sides, mixed = tile.kind == TileKind::kPartial;
    const T high = ::fmax(rows.high[tile.ib], by_col ? cols.high[tile.jb] : -kInf<T>);
    const T low = ::fmin(rows.low[tile.ib], by_col ? cols.low[tile.jb] : kInf<T>);
    // Tiles with positives take two exponentials, too: a product of exponentials is 1 only up to rounding, and where a
    // positive is nearly the whole sum its gradient would be that rounding.
    const bool two = by_col && (mixed || !(high - low <= T(kSharedShift)));
    const T shift = high >= low ? high : T(0);  // high < low: no pairs here, the weights are zero at any shift
    if (mixed)
      two ? fill<true, true>(tile, buffer, shift, by_col, out, emit)
          : fill<true, false>(tile, buffer, shift, by_col, out, emit);
    else
      two ? fill<false, true>(tile, buffer, shift, by_col, out, emit)
          : fill<false, false>(tile, buffer, shift, by_col, out, emit);
  }
};

template <class P>
void find_gradients(Sweep<P>& sweep, const Stats& stats, const StatsGradient& d_rows, const StatsGradient& d_cols,
                    const Gradients& out) {
  using T = typename P::T;
  const Problem& problem = sweep.problem;
  const ExecutionContext& host = sweep.host;
  StatsWeights<P> weights{sweep, {}, {}, problem.symmetric || stats.cols != nullptr};
  const int block = sweep.block;
  weights.rows.fill(host, problem.rows.z.n, sweep.row_blocks, block, stats.rows, d_rows);
  if (problem.symmetric)
    weights.cols = weights.rows;
  else
    weights.cols.fill(host, problem.cols.z.n, sweep.col_blocks, block, stats.cols, d_cols);
  T* buffers = allocate<T>(host, int64_t(sweep.workers) * 2 * block);
  apply_weights(sweep, out,
                [&](const Tile<T>& tile, auto emit) { weights(tile, buffers + tile.worker * 2 * block, emit); });
}

// Both passes share the packed points and the residuals.
template <class P>
void pair_cross_entropy_fused(const Problem& problem, const ExecutionContext& host, const CrossEntropy& weights,
                              void* total, const Gradients& out) {
  using T = typename P::T;
  const Gradients by_row = with_scale_by_row<T>(problem, host, out);
  const bool alone = !any_gradient(out);
  Sweep<P> sweep(problem, host, true, alone ? nullptr : &by_row, weights.both_sides);
  const int64_t m = problem.rows.z.n, n = weights.both_sides ? problem.cols.z.n : 0;
  const Stats stats{allocate<T>(host, kStats * m), n ? allocate<T>(host, kStats * n) : nullptr};
  find_stats(sweep, stats);

  auto add_up = [&](const void* of_side, int64_t points) {
    const T* s = static_cast<const T*>(of_side);
    double sum = 0;
    for (int64_t i = 0; i < points; ++i)
      sum += (s[i] == -kInf<T> ? 0 : weights.lse * double(s[i])) + weights.pos_sum * double(s[2 * points + i]);
    return sum;
  };
  *static_cast<T*>(total) = T(add_up(stats.rows, m) + add_up(stats.cols, n));
  if (alone) return;

  auto uniform = [&](double gradient, int64_t points) {
    T* d = allocate<T>(host, points);
    for (int64_t i = 0; i < points; ++i) d[i] = T(gradient);
    return d;
  };
  auto d_stats = [&](int64_t points) {
    return StatsGradient{uniform(weights.lse, points), nullptr, uniform(weights.pos_sum, points)};
  };
  sweep.reuse = true;
  find_gradients(sweep, stats, d_stats(m), d_stats(n), by_row);
  add_up_scale<T>(problem, by_row, out);
}

}  // namespace
