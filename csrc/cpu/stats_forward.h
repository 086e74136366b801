// SPDX-License-Identifier: Apache-2.0
// Log-sum-exps and sums of logits over pair sets, for rows and columns in one sweep.
//
// If every |logit| is provably at most 35 nats, all sums of the problem share one shift, and one exponential serves the
// row and the column of an entry. Otherwise each row and each column keeps a running maximum. The row and the column of
// an entry then share an exponential only in tiles whose maxima lie within 80 (in units of log 2) of each other.
#pragma once
#include "sweep.h"

namespace {

using pycl::Stats;

constexpr double kProvenBound = 35 * kLog2E;
constexpr double kSharedShift = 80;
constexpr int kStats = 6;  // rows of Stats

// A running log-sum-exp per point, (max, sum of 2^(l - max)), as two arrays.
template <class T>
struct RunningLse {
  T *max, *sum;

  void start(const ExecutionContext& host, int64_t n, T first) {
    max = allocate<T>(host, n);
    sum = allocate<T>(host, n);
    for (int64_t i = 0; i < n; ++i) max[i] = first, sum[i] = 0;
  }
  // Merge `n` partial sums. Their shifts are `at[0]` for all of them, or `at[k]` each. A shift of -inf stands for 0.
  PYCL_INLINE void merge(int64_t first, int n, const T* at, bool one_shift, const T* part) {
    for (int k = 0; k < n; k += kLanes<T>) {
      const Vec<T> m = load<T>(max + first + k), s = load<T>(sum + first + k), p = load<T>(part + k);
      const Vec<T> raw = one_shift ? splat<T>(at[0]) : load<T>(at + k);
      const Vec<T> shift = raw == -kInf<T> ? Vec<T>{} : raw;
      const Vec<T> top = p == T(0) ? m : ::max<T>(m, shift);
      const Vec<T> base = top == -kInf<T> ? Vec<T>{} : top;
      const Vec<T> total = s * exp2<T>(m - base) + p * exp2<T>(shift - base);
      store<T>(max + first + k, top);
      store<T>(sum + first + k, p == T(0) ? s : total);
    }
  }
  double total(int64_t i) const { return sum[i] == 0 ? -__builtin_inf() : double(max[i]) + ::log2(double(sum[i])); }
};

template <class T>
struct SideStats {
  RunningLse<T> den, pos;
  T *pos_sum, *pos_count;

  void start(const ExecutionContext& host, int64_t n, T first) {
    den.start(host, n, first);
    pos.start(host, n, first);
    pos_sum = allocate<T>(host, n);
    pos_count = allocate<T>(host, n);
    std::memset(pos_sum, 0, sizeof(T) * n);
    std::memset(pos_count, 0, sizeof(T) * n);
  }
  void write(void* out, int64_t n) const {
    T* o = static_cast<T*>(out);
    for (int64_t i = 0; i < n; ++i) {
      const double lse = den.total(i), pos_lse = pos.total(i);
      o[i] = T(lse * kLn2);
      o[n + i] = T(pos_lse * kLn2);
      o[2 * n + i] = T(double(pos_sum[i]) * kLn2);
      o[3 * n + i] = pos_count[i];
      o[4 * n + i] = T(lse);
      o[5 * n + i] = T(pos_lse);
    }
  }
};

// Buffers of one worker.
template <class T>
struct StatsScratch {
  T *pos_logits, *row_part, *col_part, *pos_row_part, *pos_col_part;
  T *row_max, *col_max, *pos_row_max, *pos_col_max;

  void carve(T* memory, int block) {
    pos_logits = memory;
    T* next = memory + int64_t(block) * block;
    T** const vectors[] = {&row_part, &col_part, &pos_row_part, &pos_col_part,
                           &row_max,  &col_max,  &pos_row_max,  &pos_col_max};
    for (T** p : vectors) *p = next, next += block;
  }
  static int64_t size(int block) { return int64_t(block) * (block + 8); }
};

// kColFactor: columns have factors, too.
template <class P, bool kColFactor = false>
struct StatsForward {
  using T = typename P::T;
  Sweep<P>& sweep;
  bool proven;
  T shift;  // of every sum, if the bound is proven
  SideStats<T> rows, cols;

  template <int n>
  struct Count {
    static constexpr int value = n;
  };

  // Row and column sums of 2^(l - shift), straight from the products.
  template <bool kBothSides, bool kPartial>
  void add_proven(const Tile<T>& tile, StatsScratch<T>& s) {
    const int block = tile.block;
    std::memset(s.row_part, 0, sizeof(T) * 4 * block);  // all four parts
    const T *factor = sweep.row_factor + tile.i0, *bias = sweep.row_bias + tile.i0,
            *col_bias = sweep.col_bias + tile.j0;
    auto strip = [&](int i, auto count) {
      constexpr int kRows = decltype(count)::value;
      Vec<T> a[kRows], b[kRows], sum[kRows] = {};
      for (int r = 0; r < kRows; ++r) a[r] = splat<T>(factor[i + r]), b[r] = splat<T>(bias[i + r] - shift);
      for (int j = 0; j < block; j += kLanes<T>) {
        const Vec<T> cb = load<T>(col_bias + j);
        Vec<T> down{};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const Vec<T> product = load<T>(tile.products + int64_t(i + r) * block + j);
          const Vec<T> e = exp2<T>(sweep.template scaled<kColFactor>(product, a[r], tile.j0 + j) + (b[r] + cb));
          sum[r] += e;
          if (kBothSides) down += e;
        }
        if (kBothSides) add_to(s.col_part + j, down);
      }
      for (int r = 0; r < kRows; ++r) s.row_part[i + r] = reduce_add<T>(sum[r]);
    };
    int i = 0;
    if (kPartial)
      for (; i < tile.rows; ++i) add_partial_row<kBothSides>(tile, s, i);
    for (; i + 4 <= tile.rows; i += 4) strip(i, Count<4>{});
    for (; i < tile.rows; ++i) strip(i, Count<1>{});
    rows.den.merge(tile.i0, block, &shift, true, s.row_part);
    if (kBothSides) cols.den.merge(tile.j0, block, &shift, true, s.col_part);
    if (kPartial) rows.pos.merge(tile.i0, block, &shift, true, s.pos_row_part);
    if (kPartial && kBothSides) cols.pos.merge(tile.j0, block, &shift, true, s.pos_col_part);
  }

  template <bool kBothSides>
  void add_partial_row(const Tile<T>& tile, StatsScratch<T>& s, int i) {
    const auto row = sweep.classes.row(tile.i0 + i, tile.jb);
    const Vec<T> a = splat<T>(sweep.row_factor[tile.i0 + i]), b = splat<T>(sweep.row_bias[tile.i0 + i]);
    Vec<T> den_sum{}, pos_exp_sum{}, pos_sum{}, pos_count{};
    for (int j = 0; j < tile.block; j += kLanes<T>) {
      const Vec<T> product = load<T>(tile.products + int64_t(i) * tile.block + j);
      const Vec<T> l =
          sweep.template scaled<kColFactor>(product, a, tile.j0 + j) + (b + load<T>(sweep.col_bias + tile.j0 + j));
      const Vec<T> e = exp2<T>(l - shift);
      const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
      const auto in_pos =
          ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != -kInf<T>);  // a dropped pair is in none
      const Vec<T> den = (cls & Int<T>(sweep.classes.pairs)) != 0 ? e : Vec<T>{}, pos_exp = in_pos ? e : Vec<T>{};
      const Vec<T> pos = in_pos ? l : Vec<T>{}, one = in_pos ? splat<T>(1) : Vec<T>{};
      den_sum += den;
      pos_exp_sum += pos_exp;
      pos_sum += pos;
      pos_count += one;
      if (!kBothSides) continue;
      add_to(s.col_part + j, den);
      add_to(s.pos_col_part + j, pos_exp);
      add_to(cols.pos_sum + tile.j0 + j, pos);
      add_to(cols.pos_count + tile.j0 + j, one);
    }
    s.row_part[i] = reduce_add<T>(den_sum);
    s.pos_row_part[i] = reduce_add<T>(pos_exp_sum);
    rows.pos_sum[tile.i0 + i] += reduce_add<T>(pos_sum);
    rows.pos_count[tile.i0 + i] += reduce_add<T>(pos_count);
  }
  static PYCL_INLINE void add_to(T* p, Vec<T> x) { store<T>(p, load<T>(p) + x); }

  // Overwrite the products with logits, -inf outside the first set. Write the logits of positives apart, and the maxima
  // of rows and columns.
  template <bool kPartial>
  void logits(const Tile<T>& tile, StatsScratch<T>& s) {
    const int block = tile.block;
    const Vec<T> none = splat<T>(-kInf<T>);
    for (int j = 0; j < block; ++j) s.col_max[j] = s.pos_col_max[j] = -kInf<T>;
    for (int i = 0; i < block; ++i) s.row_max[i] = s.pos_row_max[i] = -kInf<T>;
    for (int i = 0; i < tile.rows; ++i) {
      const auto row = sweep.classes.row(tile.i0 + i, tile.jb);
      const Vec<T> a = splat<T>(sweep.row_factor[tile.i0 + i]), b = splat<T>(sweep.row_bias[tile.i0 + i]);
      Vec<T> top = none, pos_top = none, pos_sum{}, pos_count{};
      for (int j = 0; j < block; j += kLanes<T>) {
        T* at = tile.products + int64_t(i) * block + j;
        Vec<T> l = sweep.template scaled<kColFactor>(load<T>(at), a, tile.j0 + j) +
                   (b + load<T>(sweep.col_bias + tile.j0 + j));
        if (kPartial) {
          const IVec<T> cls = sweep.classes.of(row, tile.jb, j);
          const auto in_pos = ((cls & Int<T>(sweep.classes.positives)) != 0) & (l != none);
          const Vec<T> pos = in_pos ? l : none, value = in_pos ? l : Vec<T>{}, one = in_pos ? splat<T>(1) : Vec<T>{};
          l = (cls & Int<T>(sweep.classes.pairs)) != 0 ? l : none;
          store<T>(s.pos_logits + int64_t(i) * block + j, pos);
          pos_top = max<T>(pos_top, pos);
          store<T>(s.pos_col_max + j, max<T>(load<T>(s.pos_col_max + j), pos));
          pos_sum += value;
          pos_count += one;
          if (tile.both_sides) {
            add_to(cols.pos_sum + tile.j0 + j, value);
            add_to(cols.pos_count + tile.j0 + j, one);
          }
        }
        store<T>(at, l);
        top = max<T>(top, l);
        store<T>(s.col_max + j, max<T>(load<T>(s.col_max + j), l));
      }
      s.row_max[i] = reduce_max<T>(top);
      if (kPartial) {
        s.pos_row_max[i] = reduce_max<T>(pos_top);
        rows.pos_sum[tile.i0 + i] += reduce_add<T>(pos_sum);
        rows.pos_count[tile.i0 + i] += reduce_add<T>(pos_count);
      }
    }
  }

  // Add a tile of logits to the running log-sum-exps.
  void add_logits(const Tile<T>& tile, StatsScratch<T>& s, const T* logits, T* row_max, T* col_max,
                  RunningLse<T>& by_row, RunningLse<T>& by_col) {
    const int block = tile.block;
    T top = -kInf<T>, lowest = kInf<T>;
    for (int k = 0; k < block; ++k) {
      top = row_max[k] < top ? top : row_max[k];
      if (row_max[k] > -kInf<T>) lowest = row_max[k] < lowest ? row_max[k] : lowest;
      if (tile.both_sides && col_max[k] > -kInf<T>) lowest = col_max[k] < lowest ? col_max[k] : lowest;
    }
    const bool shared = top - lowest <= T(kSharedShift);  // false for NaN
    if (shared)
      for (int k = 0; k < block; ++k) row_max[k] = col_max[k] = top;
    for (int k = 0; k < block; ++k) {
      if (row_max[k] == -kInf<T>) row_max[k] = 0;
      if (col_max[k] == -kInf<T>) col_max[k] = 0;
    }
    std::memset(s.col_part, 0, sizeof(T) * block);
    std::memset(s.row_part, 0, sizeof(T) * block);
    for (int i = 0; i < tile.rows; ++i) {
      const Vec<T> at = splat<T>(row_max[i]);
      Vec<T> sum{};
      for (int j = 0; j < block; j += kLanes<T>) {
        const Vec<T> l = load<T>(logits + int64_t(i) * block + j);
        const Vec<T> e = exp2<T>(l - at);
        sum += e;
        if (!tile.both_sides) continue;
        const Vec<T> down = shared ? e : exp2<T>(l - load<T>(col_max + j));
        add_to(s.col_part + j, down);
      }
      s.row_part[i] = reduce_add<T>(sum);
    }
    by_row.merge(tile.i0, block, row_max, false, s.row_part);
    if (tile.both_sides) by_col.merge(tile.j0, block, col_max, false, s.col_part);
  }

  void visit(const Tile<T>& tile, StatsScratch<T>& s) {
    const bool plain = tile.kind == TileKind::kFull;
    if (proven && plain) return tile.both_sides ? add_proven<true, false>(tile, s) : add_proven<false, false>(tile, s);
    if (proven) return tile.both_sides ? add_proven<true, true>(tile, s) : add_proven<false, true>(tile, s);
    if (plain) {
      logits<false>(tile, s);
    } else {
      logits<true>(tile, s);
      add_logits(tile, s, s.pos_logits, s.pos_row_max, s.pos_col_max, rows.pos, cols.pos);
    }
    add_logits(tile, s, tile.products, s.row_max, s.col_max, rows.den, cols.den);
  }
};

template <class P>
void find_stats(Sweep<P>& sweep, const Stats& out) {
  using T = typename P::T;
  const Problem& problem = sweep.problem;
  const ExecutionContext& host = sweep.host;
  const bool proven = sweep.bound <= kProvenBound;
  const T first = proven ? T(sweep.bound) : -kInf<T>;
  StatsForward<P> forward{sweep, proven, first, {}, {}};
  forward.rows.start(host, sweep.row_blocks * sweep.block, first);
  if (problem.symmetric)
    forward.cols = forward.rows;
  else
    forward.cols.start(host, sweep.col_blocks * sweep.block, first);
  const int64_t size = StatsScratch<T>::size(sweep.block);
  T* memory = allocate<T>(host, size * sweep.workers);
  const bool both_sides = out.cols || problem.symmetric;
  sweep.run([&](Tile<T> tile) {
    StatsScratch<T> scratch;
    scratch.carve(memory + tile.worker * size, sweep.block);
    tile.both_sides = tile.both_sides && both_sides;
    forward.visit(tile, scratch);
  });
  forward.rows.write(out.rows, problem.rows.z.n);
  if (out.cols) forward.cols.write(out.cols, problem.cols.z.n);
}

}  // namespace
