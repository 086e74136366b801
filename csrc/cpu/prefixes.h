// SPDX-License-Identifier: Apache-2.0
// Log-sum-exps over prefixes of the features from one product. The product of a prefix is that of the one before plus
// that of a chunk of features, so all prefixes together cost what the longest does. Factors of rows and columns, which
// hold scale and norms, make logits of it. The gradient of a chunk of features is that of all prefixes that have it: so
// weights are added from the longest prefix to the shortest, and each sum is multiplied by its own chunk.
#pragma once
#include "stats_backward.h"

namespace {

using pycl::Prefixes;
using pycl::PrefixGradients;

// What makes logits of the products of a prefix. Factors of padding are 1.
template <class T>
struct PrefixLogits {
  int64_t begin, end;  // features that the prefix before lacks, the last ones padded
  const T *row_scale, *col_factor;
  T* row_factor;  // row_scale in units of log 2

  template <class P>
  void fill(const Sweep<P>& sweep, const Prefixes& prefixes, int k) {
    const int64_t m = sweep.problem.rows.z.n, n = sweep.problem.cols.z.n;
    begin = k ? prefixes.ends[k - 1] : 0;
    end = k + 1 < prefixes.n ? prefixes.ends[k] : sweep.row_points.width;
    auto padded = [&](const void* factors, int64_t points, int64_t size, double times) {
      T* out = allocate<T>(sweep.host, size);
      const T* of_prefix = static_cast<const T*>(factors) + k * points;
      for (int64_t i = 0; i < size; ++i) out[i] = i < points ? T(double(of_prefix[i]) * times) : T(1);
      return out;
    };
    const int64_t rows = sweep.row_blocks * sweep.block, cols = sweep.col_blocks * sweep.block;
    row_scale = padded(prefixes.row_factor, m, rows, 1);
    row_factor = padded(prefixes.row_factor, m, rows, kLog2E);
    col_factor = padded(prefixes.col_factor, n, cols, 1);
  }

  // A sweep is pointers and sizes: a copy for each tile costs nothing beside its products.
  template <class P>
  Sweep<P> applied(Sweep<P> sweep) const {
    sweep.row_factor = row_factor, sweep.col_factor = col_factor;
    return sweep;
  }

  // The products of this prefix from those of the one before, or from null.
  template <class P>
  void multiply(const Sweep<P>& sweep, const Tile<T>& tile, const T* before, T* products) const {
    auto a = sweep.row_points.points_as_a(tile.ib);
    auto b = sweep.col_points.points_as_b(tile.jb);
    a.p += begin / (P::kSpan ? P::kSpan : 1) * a.step;
    b.p += begin / P::kPair * b.step;
    P::add_product(a, b, tile.block, tile.block, int(end - begin), before, products, tile.block);
  }
};

// For each prefix the largest size of a factor times the norm of its point.
template <class P>
double* largest_norms(const Sweep<P>& sweep, const Prefixes& prefixes, const Packed<P>& points, const void* factors) {
  using T = typename P::T;
  const int n = prefixes.n;
  double* of_blocks = allocate<double>(sweep.host, points.blocks * n);
  T* lines = allocate<T>(sweep.host, points.blocks * points.width);
  for_each_block<P>(sweep.host, points, nullptr, [&](int, int64_t b) {
    double* largest = of_blocks + b * n;
    T* line = lines + b * points.width;
    for (int k = 0; k < n; ++k) largest[k] = 0;
    for (int64_t i = b * points.block; i < (b + 1) * points.block && i < points.z.n; ++i) {
      load_row(points.z, i, line);
      double squares = 0;
      for (int k = 0; k < n; ++k) {
        const int64_t from = k ? prefixes.ends[k - 1] : 0;
        squares += dot(line + from, line + from, prefixes.ends[k] - from);
        const double factor = double(static_cast<const T*>(factors)[k * points.z.n + i]);
        const double size = __builtin_fabs(factor) * __builtin_sqrt(squares);
        largest[k] = size <= largest[k] ? largest[k] : size;  // keeps a NaN
      }
    }
  });
  for (int64_t b = 1; b < points.blocks; ++b)
    for (int k = 0; k < n; ++k)
      of_blocks[k] = of_blocks[b * n + k] <= of_blocks[k] ? of_blocks[k] : of_blocks[b * n + k];
  return of_blocks;
}

template <class T>
struct PrefixStats {
  PrefixLogits<T> logits;
  SideStats<T> rows, cols;
  bool proven;
  T shift;
};

template <class P>
void prefix_stats(const Problem& problem, const ExecutionContext& host, const Prefixes& prefixes, const Stats& out) {
  using T = typename P::T;
  Sweep<P> sweep(problem, host, true, nullptr, out.cols != nullptr);
  const int n_prefixes = prefixes.n;
  const double* of_rows = largest_norms(sweep, prefixes, sweep.row_points, prefixes.row_factor);
  const double* of_cols = largest_norms(sweep, prefixes, sweep.col_points, prefixes.col_factor);
  auto* each = allocate<PrefixStats<T>>(host, n_prefixes);
  for (int k = 0; k < n_prefixes; ++k) {
    PrefixStats<T>& p = each[k];
    p.logits.fill(sweep, prefixes, k);
    const double bound = kLog2E * of_rows[k] * of_cols[k];
    p.proven = bound <= kProvenBound;
    p.shift = p.proven ? T(bound) : -kInf<T>;
    p.rows.start(host, sweep.row_blocks * sweep.block, p.shift);
    p.cols = p.rows;
    if (!problem.symmetric) p.cols.start(host, sweep.col_blocks * sweep.block, p.shift);
  }
  const int64_t tile_size = int64_t(sweep.block) * sweep.block, size = StatsScratch<T>::size(sweep.block) + tile_size;
  T* memory = allocate<T>(host, size * sweep.workers);
  const bool both_sides = out.cols || problem.symmetric;
  sweep.run_tiles([&](Tile<T> tile) {
    T* other = memory + tile.worker * size;
    StatsScratch<T> scratch;
    scratch.carve(other + tile_size, sweep.block);
    tile.both_sides = tile.both_sides && both_sides;
    each[0].logits.multiply(sweep, tile, nullptr, tile.products);
    for (int k = 0; k < n_prefixes; ++k) {
      const PrefixStats<T>& p = each[k];
      T* const products = tile.products;
      if (k + 1 < n_prefixes) each[k + 1].logits.multiply(sweep, tile, products, other);  // logits may overwrite these
      Sweep<P> scaled = p.logits.applied(sweep);
      StatsForward<P, true>{scaled, p.proven, p.shift, p.rows, p.cols}.visit(tile, scratch);
      tile.products = other, other = products;
    }
  });
  const int64_t m = problem.rows.z.n, n = problem.cols.z.n;
  for (int k = 0; k < n_prefixes; ++k) {
    each[k].rows.write(static_cast<T*>(out.rows) + k * kStats * m, m);
    if (out.cols) each[k].cols.write(static_cast<T*>(out.cols) + k * kStats * n, n);
  }
}

// Adds the weights of a prefix to those of the longer ones, and their products with the other factor to the gradients
// of the factors.
template <class T>
struct AddPrefix {
  T* total;
  int block;
  bool first;
  const T *row_scale, *col_factor;
  T *d_row_factor, *d_col_factor;
  Vec<T> scale{}, sum{};

  PYCL_INLINE void start(int i) { scale = splat<T>(row_scale[i]), sum = Vec<T>{}; }
  PYCL_INLINE void store(int i, int j, Vec<T> product, Vec<T> w) {
    const Vec<T> factor = load<T>(col_factor + j), share = w * product, v = w * (scale * factor);
    T* at = total + int64_t(i) * block + j;
    sum += share * factor;
    ::store<T>(d_col_factor + j, load<T>(d_col_factor + j) + share * scale);
    ::store<T>(at, first ? v : load<T>(at) + v);
  }
  PYCL_INLINE void finish(int i) { d_row_factor[i] += reduce_add<T>(sum); }
};

template <class P>
struct PrefixBackward {
  using T = typename P::T;
  struct OfPrefix {
    PrefixLogits<T> logits;
    SideWeights<T> rows, cols;
    T *d_row_factor, *d_col_factor;
  };
  Sweep<P>& sweep;
  OfPrefix* each;
  int n;
  bool both_sides;
  T *direct, *transposed;  // as in Products; null where not wanted
  FirstWrite rows_written, cols_written;

  PrefixBackward(Sweep<P>& s, const Prefixes& prefixes, const Stats& stats, const StatsGradient& d_rows,
                 const StatsGradient& d_cols, const PrefixGradients& out)
      : sweep(s),
        each(allocate<OfPrefix>(s.host, prefixes.n)),
        n(prefixes.n),
        both_sides(s.problem.symmetric || stats.cols),
        rows_written(s.host, s.row_blocks),
        cols_written(s.host, s.col_blocks) {
    const Problem& p = sweep.problem;
    const int64_t rows = sweep.row_blocks * sweep.block, cols = sweep.col_blocks * sweep.block;
    const int64_t width = sweep.row_points.width;
    direct = out.rows ? allocate<T>(sweep.host, rows * sweep.row_points.sum_row) : nullptr;
    transposed = out.cols || (p.symmetric && out.rows) ? allocate<T>(sweep.host, cols * width) : nullptr;
    for (int k = 0; k < n; ++k) {
      OfPrefix& one = each[k];
      one.logits.fill(sweep, prefixes, k);
      one.rows = side(k, p.rows.z.n, sweep.row_blocks, stats.rows, d_rows);
      one.cols = p.symmetric ? one.rows : side(k, p.cols.z.n, sweep.col_blocks, stats.cols, d_cols);
      one.d_row_factor = zeros<T>(sweep.host, true, rows);
      one.d_col_factor = zeros<T>(sweep.host, true, cols);
    }
  }

  SideWeights<T> side(int k, int64_t points, int64_t blocks, const void* stats, const StatsGradient& d) const {
    auto of_prefix = [&](const void* x, int64_t rows) {
      return x ? static_cast<const T*>(x) + k * rows * points : nullptr;
    };
    SideWeights<T> found;
    found.fill(sweep.host, points, blocks, sweep.block, of_prefix(stats, kStats),
               {of_prefix(d.lse, 1), of_prefix(d.pos_lse, 1), of_prefix(d.pos_sum, 1)});
    return found;
  }

  void run() {
    const int block = sweep.block;
    const int64_t tile_size = int64_t(block) * block, size = n * tile_size + 2 * block;
    T* memory = allocate<T>(sweep.host, sweep.workers * size);
    auto* scratch = allocate<typename P::E>(sweep.host, int64_t(sweep.workers) * P::weights_elements(block));
    sweep.run_tiles([&](const Tile<T>& tile) {
      T *const products = memory + tile.worker * size, *const buffer = products + n * tile_size;
      for (int k = 0; k < n; ++k) {
        T* const at = products + k * tile_size;
        each[k].logits.multiply(sweep, tile, k ? at - tile_size : nullptr, at);
      }
      T* const total = tile.products;
      std::memset(total + int64_t(tile.rows) * block, 0, sizeof(T) * (tile_size - int64_t(tile.rows) * block));
      auto weights = P::weights(total, scratch + tile.worker * P::weights_elements(block), block);
      auto emit = [&](int i) { weights.emit_rows(i); };
      const bool add_rows = rows_written.start(tile.ib), add_cols = cols_written.start(tile.jb);
      for (int k = n - 1; k >= 0; --k) {
        const OfPrefix& p = each[k];
        Tile<T> own = tile;
        own.products = products + k * tile_size;
        Sweep<P> scaled = p.logits.applied(sweep);
        const AddPrefix<T> out{total,
                               block,
                               k + 1 == n,
                               p.logits.row_scale + tile.i0,
                               p.logits.col_factor + tile.j0,
                               p.d_row_factor + tile.i0,
                               p.d_col_factor + tile.j0};
        StatsWeights<P, true>{scaled, p.rows, p.cols, both_sides}(own, buffer, out, emit);
        for (int i = (tile.rows + 1) / 2 * 2; i < block; i += 2) emit(i);
        if (direct) add_direct(tile, weights, p.logits, add_rows);
        if (transposed) add_transposed(tile, weights, p.logits, add_cols);
      }
    });
    if (direct) rows_written.clear_others(direct, block * sweep.row_points.sum_row);
    if (transposed) cols_written.clear_others(transposed, block * sweep.row_points.width);
  }

  // A chunk may begin within a panel: what is left of that is a product of its own.
  template <class Weights>
  void add_direct(const Tile<T>& tile, const Weights& weights, const PrefixLogits<T>& chunk, bool add) const {
    const int64_t row = sweep.col_points.sum_row;
    const auto features = sweep.col_points.features_as_b(tile.jb);
    for (int64_t from = chunk.begin, to; from < chunk.end; from = to) {
      const int64_t within = from % P::kPanel, next = from - within + P::kPanel;
      to = within && next < chunk.end ? next : chunk.end;
      auto b = features;
      b.p += from / P::kPanel * b.panel + within * P::kPair;
      P::multiply(weights.as_a(), b, tile.block, int(to - from), tile.block, direct + tile.i0 * row + from, row, add);
    }
  }

  template <class Weights>
  void add_transposed(const Tile<T>& tile, const Weights& weights, const PrefixLogits<T>& chunk, bool add) const {
    const int block = tile.block;
    P::multiply(sweep.row_points.features_as_a(tile.ib, chunk.begin), weights.as_b(), int(chunk.end - chunk.begin),
                block, block, transposed + tile.j0 * sweep.row_points.width + chunk.begin * block, block, add);
  }

  void store_factors(const PrefixGradients& out) const {
    const int64_t m = sweep.problem.rows.z.n, n_cols = sweep.problem.cols.z.n;
    for (int k = 0; k < n; ++k) {
      std::memcpy(static_cast<T*>(out.row_factor) + k * m, each[k].d_row_factor, sizeof(T) * m);
      std::memcpy(static_cast<T*>(out.col_factor) + k * n_cols, each[k].d_col_factor, sizeof(T) * n_cols);
    }
  }
};

template <class P>
void prefix_stats_backward(const Problem& problem, const ExecutionContext& host, const Prefixes& prefixes,
                           const Stats& stats, const StatsGradient& d_rows, const StatsGradient& d_cols,
                           const PrefixGradients& out) {
  const Gradients of_points{out.rows, out.cols, nullptr, nullptr, nullptr, nullptr};
  Sweep<P> sweep(problem, host, false, &of_points, true);
  PrefixBackward<P> backward(sweep, prefixes, stats, d_rows, d_cols, out);
  backward.run();
  store_gradients(sweep, backward.direct, backward.transposed, of_points);
  backward.store_factors(out);
}

}  // namespace
