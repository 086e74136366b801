// SPDX-License-Identifier: Apache-2.0
// The one tile loop. A Sweep holds the packed sides of a problem and hands out tiles of products; Apply turns a rule
// for the weights dL/dl of a tile into gradients of everything the logits depend on.
#pragma once
#include "blocks.h"
#include "modifiers.h"

namespace {

using pycl::Gradients;

// Products of more bytes have left the caches before a backward reads them.
constexpr size_t kInCache = 8 << 20;

// Its address names a type of product of an instruction set.
template <class P>
constexpr char kProduct = 0;

template <class P>
struct Sweep {
  using T = typename P::T;
  using E = typename P::E;

  const Problem& problem;
  const ExecutionContext& host;
  int block, workers, groups;
  bool by_col;  // something is written by column
  int64_t row_blocks, col_blocks;
  Packed<P> row_points, col_points;
  Classes<T> classes;
  T *row_factor, *row_bias, *col_bias;
  const T* col_factor = nullptr;  // where columns have factors, too (kColFactor)
  TileModifiers<T> modifiers;     // where there are any, they make logits of the products, and factors are 1
  T* tiles;
  T* residuals = nullptr;  // products of the first tiles by number, as many as `kept`,
  int64_t kept = 0;
  TileNumbers numbers;    // of residuals
  bool reuse = false;     // read, not written
  T* infinite = nullptr;  // two lines for each worker, where a product has planes and a point is infinite
  double bound;           // no logit, in units of log 2, is larger or smaller than -bound

  // No gradients are laid out for where `wanted` is null. With `forward` false the residuals may hold the products.
  // `others_by_col`: the caller writes more by column than these gradients. Logits are in nats times `unit`.
  Sweep(const Problem& p, const ExecutionContext& h, bool forward, const Gradients* wanted, bool others_by_col,
        double unit = kLog2E)
      : problem(p),
        host(h),
        by_col(others_by_col || p.symmetric || (wanted && (wanted->cols || wanted->col_bias || wanted->modifiers))) {
    const int64_t m = p.rows.z.n, n = p.cols.z.n;
    block = block_size<P>(p, h.threads);
    row_blocks = (m + block - 1) / block;
    col_blocks = (n + block - 1) / block;
    const int64_t most = p.symmetric ? row_blocks / 2 : by_col && col_blocks < row_blocks ? col_blocks : row_blocks;
    workers = most < 1 ? 1 : most < h.threads ? int(most) : h.threads;
    groups = group_count(p.symmetric, workers, p.symmetric ? row_blocks : most);
    classes.fill(h, p, block);
    const bool computes = !find_residuals(forward);
    const bool d_rows = wanted && (wanted->rows != nullptr || p.symmetric);
    const bool d_cols = wanted && (wanted->cols != nullptr || p.symmetric);
    const T* scale = static_cast<const T*>(p.logit_scale);
    const T* packed_scale = P::kScalesOperand || p.scale_per_row ? scale : nullptr;
    const Layouts of_rows{computes, p.symmetric && computes, p.symmetric && d_rows, d_cols};
    row_points.lay_out(h, p.rows.z, p.normalize, block, of_rows, packed_scale, p.scale_per_row);
    if (!p.symmetric)
      col_points.lay_out(h, p.cols.z, p.normalize, block, {false, computes, d_rows, false}, nullptr, false);
    pack<P>(h, row_points, p.symmetric ? nullptr : &col_points);
    if (p.symmetric) col_points = row_points;
    if (P::kPlanes > 1 && !(row_points.max_norm < kInf<double> && col_points.max_norm < kInf<double>))
      infinite = allocate<T>(h, 2 * workers * row_points.width);
    fill_affine(scale, unit);
    if (p.modifiers.count) lay_out_modifiers(unit, wanted && wanted->modifiers);
    tiles = allocate<T>(h, int64_t(workers) * block * block);
  }

  // Whether they hold all products.
  bool find_residuals(bool forward) {
    if (!problem.residuals) return false;
    auto* header = static_cast<pycl::ResidualHeader*>(problem.residuals);
    const pycl::ResidualHeader mine{problem, &kProduct<P>, block, problem.symmetric ? groups : 0};
    if (forward) *header = mine;
    reuse = !forward && *header == mine;
    if (!reuse && !forward) return false;
    residuals = reinterpret_cast<T*>(header + 1);
    kept = (problem.residual_bytes - sizeof(pycl::ResidualHeader)) / (sizeof(T) * size_t(block) * block);
    numbers.fill(host, problem, classes, row_blocks, col_blocks);
    return reuse && kept >= numbers.count;
  }

  // Where the products of a tile are kept; null where they are not.
  T* residual(int64_t ib, int64_t jb) const {
    if (!residuals) return nullptr;
    const int64_t number = numbers.of(ib, jb);
    return number < kept ? residuals + number * block * block : nullptr;
  }

  void fill_affine(const T* scale, double unit) {
    const int64_t m = problem.rows.z.n, n = problem.cols.z.n;
    row_factor = allocate<T>(host, row_blocks * block);
    row_bias = allocate<T>(host, row_blocks * block);
    col_bias = allocate<T>(host, col_blocks * block);
    double largest_scale = 0, largest_row = 0, largest_col = 0;
    auto bias = [](const Side& side, int64_t i) {
      return side.bias ? double(static_cast<const T*>(side.bias)[i]) : 0.;
    };
    auto keep_larger = [](double& largest, double x) {
      x = x < 0 ? -x : x;
      largest = x <= largest ? largest : x;
    };
    for (int64_t i = 0; i < row_blocks * block; ++i) {
      const double s = i < m ? double(scale[problem.scale_per_row ? i : 0]) : 1;
      const double b = i < m ? bias(problem.rows, i) : 0;
      row_factor[i] = T((P::kScalesOperand ? 1 : s) * unit);
      row_bias[i] = T(b * unit);
      if (i < m) keep_larger(largest_scale, s), keep_larger(largest_row, b);
    }
    for (int64_t j = 0; j < col_blocks * block; ++j) {
      const double b = j < n ? bias(problem.cols, j) : 0;
      col_bias[j] = j < n ? T(b * unit) : -kInf<T>;
      keep_larger(largest_col, b);
    }
    bound = unit * (row_points.max_norm * col_points.max_norm * largest_scale + largest_row + largest_col);
  }

  void lay_out_modifiers(double unit, bool wants_gradients) {
    modifiers.lay_out({problem, host, block, workers, groups, row_blocks, col_blocks, unit, wants_gradients},
                      {row_factor, row_bias, col_bias});
    bound += unit * modifiers.bound();
    row_factor = allocate<T>(host, row_blocks * block);
    row_bias = zeros<T>(host, true, row_blocks * block);
    col_bias = allocate<T>(host, col_blocks * block);
    for (int64_t i = 0; i < row_blocks * block; ++i) row_factor[i] = 1;
    for (int64_t j = 0; j < col_blocks * block; ++j) col_bias[j] = j < problem.cols.z.n ? T(0) : -kInf<T>;
  }

  // A logit without its biases, of a row with the factor a and column j.
  template <bool kColFactor>
  PYCL_INLINE Vec<T> scaled(Vec<T> product, Vec<T> a, int64_t j) const {
    return kColFactor ? product * a * load<T>(col_factor + j) : product * a;
  }

  // Calls visit(tile) for every tile with a pair that counts, its products at tile.found(). Those of an earlier sweep
  // stay where they are unless modifiers change them: where that is memory and not a cache, a copy of its own took 4 %
  // of a step (2048 points, 512 features, AVX2).
  template <class Visit>
  void run(Visit visit) {
    const size_t bytes = sizeof(T) * size_t(block) * block;
    run_tiles([&](Tile<T> tile) {
      T* stored = residual(tile.ib, tile.jb);
      if (reuse && stored && !modifiers.count)
        tile.kept = stored;
      else if (reuse && stored)
        std::memcpy(tile.products, stored, bytes);
      else
        multiply(tile);
      if (!reuse && stored) keep(tile, stored, bytes);
      if (modifiers.count) modifiers.change(tile, classes);
      visit(tile);
    });
  }

  void multiply(const Tile<T>& tile) const {
    P::multiply(row_points.points_as_a(tile.ib), col_points.points_as_b(tile.jb), block, block, int(row_points.width),
                tile.products, block, false);
    if (infinite) multiply_infinite(tile);
  }

  // An infinite number has no planes: they are NaNs. So the products of its point are computed as they would be
  // without.
  void multiply_infinite(const Tile<T>& tile) const {
    T *const x = infinite + tile.worker * 2 * row_points.width, *const y = x + row_points.width;
    const int64_t left = problem.cols.z.n - tile.j0, cols = left < block ? left : block;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const bool of_row = row_points.norm[tile.i0 + i] == kInf<double>;
      row_points.load_point(tile.i0 + i, x);
      for (int64_t j = 0; j < cols; ++j) {
        if (!of_row && col_points.norm[tile.j0 + j] != kInf<double>) continue;
        col_points.load_point(tile.j0 + j, y);
        T sum = 0;
        for (int64_t k = 0; k < problem.rows.z.d; ++k) sum += x[k] * y[k];
        tile.products[i * block + j] = sum;
      }
    }
  }

  void keep(const Tile<T>& tile, T* stored, size_t bytes) const {
    if (size_t(kept) * bytes <= kInCache) {
      std::memcpy(stored, tile.products, bytes);
    } else {
      copy_past_cache(stored, tile.products, bytes);
      fence_past_cache();
    }
  }

  // The same, its products not computed.
  template <class Visit>
  void run_tiles(Visit visit) {
    auto visit_tile = [&](int worker, int group, int64_t ib, int64_t jb) {
      const TileKind kind = classes.kind(ib, jb);
      if (kind == TileKind::kSkip) return;
      const int64_t left = problem.rows.z.n - ib * block;
      const Tile<T> tile{worker,
                         group,
                         ib,
                         jb,
                         ib * block,
                         jb * block,
                         left < block ? int(left) : block,
                         block,
                         kind,
                         !problem.symmetric || ib != jb,
                         tiles + int64_t(worker) * block * block};
      P::begin_thread();
      visit(tile);
      P::end_thread();
    };
    int* rounds = allocate<int>(host, 2 * groups);
    using Tiles = Schedule<decltype(visit_tile)>;
    Tiles schedule{host, problem.symmetric, by_col, row_blocks, col_blocks, workers, groups, visit_tile, rounds};
    schedule.run();
  }
};

template <class T>
void add_sums(const Tile<T>& tile, T* by_row, T* by_col) {
  for (int i = 0; i < tile.rows; ++i) {
    const T* w = tile.products + int64_t(i) * tile.block;
    Vec<T> sum{};
    for (int j = 0; j < tile.block; j += kLanes<T>) {
      sum += load<T>(w + j);
      if (by_col) store<T>(by_col + tile.j0 + j, load<T>(by_col + tile.j0 + j) + load<T>(w + j));
    }
    if (by_row) by_row[tile.i0 + i] += reduce_add<T>(sum);
  }
}

// Which blocks of a sum have been written. The first product of a block overwrites its memory, later ones add to it.
struct FirstWrite {
  bool* blocks;
  int64_t n;

  FirstWrite(const ExecutionContext& host, int64_t count) : blocks(allocate<bool>(host, count)), n(count) {
    std::memset(blocks, 0, size_t(count));
  }
  bool start(int64_t b) {
    const bool before = blocks[b];
    blocks[b] = true;
    return before;
  }
  template <class T>
  void clear_others(T* sums, int64_t size) const {
    for (int64_t b = 0; b < n; ++b)
      if (!blocks[b]) std::memset(sums + b * size, 0, sizeof(T) * size_t(size));
  }
};

// Sums over tiles of weights W: of W Y by row, of W^T X by column (transposed), and of W by row and by column. A sum
// whose pointer is null is left out.
template <class P>
struct Products {
  using T = typename P::T;
  const Packed<P>*x, *y;
  T *direct, *transposed;  // [rows, sum_row of y] and [blocks][width of x][block]
  T *row_sums, *col_sums;
};

template <class Emit>
PYCL_INLINE void flush_rows(int i, int rows, Emit emit) {
  if (i % 2 == 1 || i + 1 == rows) emit(i / 2 * 2);
}

// make_weights(tile, emit) writes weights to tile.products, from the products at tile.found(). A pair that does not
// count has the weight 0. It calls emit(i) after each pair of rows i, i + 1.
template <class P, class MakeWeights>
void add_products(Sweep<P>& sweep, const Products<P>& sums, MakeWeights make_weights) {
  using T = typename P::T;
  const int block = sweep.block;
  const int64_t tile_size = int64_t(block) * block;
  auto* scratch = allocate<typename P::E>(sweep.host, int64_t(sweep.workers) * P::weights_elements(block));
  FirstWrite rows(sweep.host, sweep.row_blocks), cols(sweep.host, sweep.col_blocks);
  sweep.run([&](const Tile<T>& tile) {
    auto weights = P::weights(tile.products, scratch + tile.worker * P::weights_elements(block), block);
    std::memset(tile.products + int64_t(tile.rows) * block, 0, sizeof(T) * (tile_size - int64_t(tile.rows) * block));
    make_weights(tile, [&](int i) { weights.emit_rows(i); });
    for (int i = (tile.rows + 1) / 2 * 2; i < block; i += 2) weights.emit_rows(i);
    if (sums.row_sums || sums.col_sums) add_sums(tile, sums.row_sums, sums.col_sums);
    if (sums.direct) {
      const int64_t row = sums.y->sum_row;
      P::multiply(weights.as_a(), sums.y->features_as_b(tile.jb), block, int(sums.y->width), block,
                  sums.direct + tile.i0 * row, row, rows.start(tile.ib));
    }
    if (sums.transposed) {
      const int64_t width = sums.x->width;
      P::multiply(sums.x->features_as_a(tile.ib), weights.as_b(), int(width), block, block,
                  sums.transposed + tile.j0 * width, block, cols.start(tile.jb));
    }
  });
  if (sums.direct) rows.clear_others(sums.direct, block * sums.y->sum_row);
  if (sums.transposed) cols.clear_others(sums.transposed, block * sums.x->width);
}

// Gradients of the points from the sums over tiles that they are made of.
template <class P>
void store_gradients(Sweep<P>& sweep, const typename P::T* direct, const typename P::T* transposed,
                     const Gradients& out) {
  using T = typename P::T;
  const Problem& p = sweep.problem;
  const T* scale = static_cast<const T*>(p.logit_scale);
  const T scale_after = P::kScalesOperand || p.scale_per_row ? T(1) : scale[0];
  const T one = 1;
  const TileSums<T> of_rows{direct,
                            scale,
                            p.scale_per_row,
                            p.symmetric ? transposed : nullptr,
                            scale_after,
                            out.rows,
                            static_cast<T*>(out.logit_scale)};
  const TileSums<T> of_cols{nullptr, &one, false, transposed, scale_after, out.cols, nullptr};
  const Packed<P>* const cols = out.cols ? &sweep.col_points : nullptr;
  const int64_t size = sweep.row_points.unpacking_size();
  T* lines = allocate<T>(sweep.host, (sweep.row_blocks + sweep.col_blocks) * size);
  auto unpack = [&](int side, int64_t b) {
    T* memory = lines + (side * sweep.row_blocks + b) * size;
    side ? cols->unpack_block(b, of_cols, memory) : sweep.row_points.unpack_block(b, of_rows, memory);
  };
  if (out.rows)
    for_each_block<P>(sweep.host, sweep.row_points, cols, unpack);
  else if (cols)
    for_each_block<P>(sweep.host, *cols, nullptr, [&](int, int64_t b) { unpack(1, b); });
}

// That of a scale comes with the rows.
inline bool any_gradient(const Gradients& out) {
  return out.rows || out.cols || out.row_bias || out.col_bias || out.modifiers;
}

template <class T>
double added_up(const T* values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(values[i]);
  return sum;
}

// Kernels write a gradient of the scale for each row. Of a total, one scale for all rows has one: their sum.
template <class T>
Gradients with_scale_by_row(const Problem& p, const ExecutionContext& host, Gradients out) {
  if (out.logit_scale && !p.scale_per_row) out.logit_scale = allocate<T>(host, p.rows.z.n);
  return out;
}

template <class T>
void add_up_scale(const Problem& p, const Gradients& by_row, const Gradients& out) {
  if (by_row.logit_scale == out.logit_scale) return;
  const double sum = added_up(static_cast<const T*>(by_row.logit_scale), p.rows.z.n);
  *static_cast<T*>(out.logit_scale) = T(sum);
}

// Gradients by recomputing tiles. make_weights, as in add_products(), overwrites products with dL/dl.
template <class P, class MakeWeights>
void apply_weights(Sweep<P>& sweep, const Gradients& out, MakeWeights make_weights) {
  using T = typename P::T;
  const Problem& p = sweep.problem;
  const ExecutionContext& host = sweep.host;
  const int block = sweep.block;
  const int64_t width = sweep.row_points.width;
  const bool d_rows = out.rows, d_cols = out.cols || (p.symmetric && out.rows);
  T* direct = d_rows ? allocate<T>(host, sweep.row_blocks * block * sweep.col_points.sum_row) : nullptr;
  T* transposed = d_cols ? allocate<T>(host, sweep.col_blocks * block * width) : nullptr;
  T* d_row_bias = zeros<T>(host, out.row_bias, sweep.row_blocks * block);
  T* d_col_bias = p.symmetric ? d_row_bias : zeros<T>(host, out.col_bias, sweep.col_blocks * block);
  const int64_t size = int64_t(block) * block;
  const bool apart = out.modifiers && sweep.modifiers.tell_sides_apart();
  T* shares = apart ? allocate<T>(host, sweep.workers * size) : nullptr;
  add_products(sweep, {&sweep.row_points, &sweep.col_points, direct, transposed, d_row_bias, d_col_bias},
               [&](Tile<T> tile, auto emit) {
                 if (apart && tile.both_sides) {
                   tile.row_share = shares + tile.worker * size;
                   std::memcpy(tile.row_share, tile.products, sizeof(T) * size_t(size));
                   make_weights(tile.of_rows_alone(), emit);  // what it emits is overwritten
                 }
                 make_weights(tile, emit);
                 if (out.modifiers) sweep.modifiers.add_gradients(tile);
               });
  if (out.modifiers) sweep.modifiers.store_gradients(p, out.modifiers);
  store_gradients(sweep, direct, transposed, out);
  if (out.row_bias) std::memcpy(out.row_bias, d_row_bias, sizeof(T) * p.rows.z.n);
  if (out.col_bias) std::memcpy(out.col_bias, d_col_bias, sizeof(T) * p.cols.z.n);
}

}  // namespace
