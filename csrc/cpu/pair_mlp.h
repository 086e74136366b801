// SPDX-License-Identifier: Apache-2.0
// Weights of pairs by a network: adds log sigmoid(z), z = w . tanh(p_i + q_j) + b.
//
// tanh(p + q) = 1 - 2 r with r = 1 / (1 + e^2p e^2q), so each point's exponentials are made once, and a hidden unit of
// a pair costs a product and a reciprocal. With the middle c of a unit's p, e^2(p-c) and e^2(q+c) stay in range: p - c
// is at most kReach, and e^2(q+c) is cut off where tanh is 1 for every p. Where p spreads wider, pairs take
// exponentials.
#pragma once
#include "tile.h"

namespace {

using pycl::Modifier;

template <class T>
constexpr double kReach = sizeof(T) == 4 ? 16 : 160;  // of |p - c|
template <class T>
constexpr double kCutOff = sizeof(T) == 4 ? 26 : 190;  // of |q + c|; 2 (kReach + kCutOff) is within the exponents
                                                       // of T and kCutOff - kReach is where tanh has become 1

template <class T>
struct PairMlp final : TileModifier<T> {
  int64_t width, row_width, col_width;
  const T* w;
  T b, unit, base;  // base: b and all w
  bool wide;        // e and f hold p and q
  bool symmetric;
  int block, groups;
  int64_t n_rows, n_cols;
  T *e, *f;            // [padded rows][width], [col_blocks][width][block]
  T* sigmoids;         // of each worker: sigmoid(-z), the slope of log sigmoid(z)
  T *d_rows, *d_cols;  // laid out as e and f: sums of g r (1 - r), for the slope of tanh 4 r (1 - r)
  T* rows;             // of each worker: g of a row
  double* sums;        // of each group: of g r for each unit, of g

  PairMlp(const Grid& g, const Modifier& m) {
    const pycl::Modifiers& data = g.problem.modifiers;
    const T *p = static_cast<const T*>(data.row_values) + m.row_value,
            *q = static_cast<const T*>(data.col_values) + m.col_value;
    width = m.sizes[0];
    row_width = data.row_width;
    col_width = data.col_width;
    w = static_cast<const T*>(data.shared) + m.shared;
    b = w[width];
    unit = T(g.unit);
    block = g.block;
    groups = g.groups;
    symmetric = g.problem.symmetric;
    n_rows = g.problem.rows.z.n;
    n_cols = g.problem.cols.z.n;
    double sum = b;
    for (int64_t k = 0; k < width; ++k) sum += w[k];
    base = T(sum);
    e = zeros<T>(g.host, true, g.padded_rows() * width);
    f = zeros<T>(g.host, true, g.padded_cols() * width);
    double* middle = allocate<double>(g.host, width);
    wide = !find_middles(p, middle);
    auto put = [&](double x, double cut) { return T(wide ? x : ::exp(2 * (x > cut ? cut : x < -cut ? -cut : x))); };
    parallel(g.host, n_rows, width * 32, [&](int64_t i) {
      for (int64_t k = 0; k < width; ++k) e[i * width + k] = put(p[i * row_width + k] - middle[k], kReach<T>);
    });
    parallel(g.host, n_cols, width * 32, [&](int64_t j) {
      T* to = f + j / block * block * width + j % block;
      for (int64_t k = 0; k < width; ++k) to[k * block] = put(q[j * col_width + k] + middle[k], kCutOff<T>);
    });
    const bool wanted = g.wants_gradients;
    sigmoids = allocate<T>(g.host, wanted ? int64_t(g.workers) * block * block : 0);
    rows = allocate<T>(g.host, wanted ? int64_t(g.workers) * block : 0);
    d_rows = zeros<T>(g.host, wanted, g.padded_rows() * width);
    d_cols = zeros<T>(g.host, wanted, g.padded_cols() * width);
    sums = zeros<double>(g.host, wanted, groups * (width + 1));
  }

  // The middle of each unit's p; whether all are within reach of it.
  bool find_middles(const T* p, double* middle) const {
    bool near = true;
    for (int64_t k = 0; k < width; ++k) {
      double low = __builtin_inf(), high = -__builtin_inf();
      for (int64_t i = 0; i < n_rows; ++i) {
        const double x = p[i * row_width + k];
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      near = near && !(high - low > 2 * kReach<T>);
      middle[k] = low <= high ? low + (high - low) / 2 : 0;
    }
    if (near) return true;
    for (int64_t k = 0; k < width; ++k) middle[k] = 0;
    return false;
  }

  double bound() const override {
    double most = __builtin_fabs(double(b)) + kLn2;
    for (int64_t k = 0; k < width; ++k) most += __builtin_fabs(double(w[k]));
    return most;
  }

  template <bool kWide>
  PYCL_INLINE static Vec<T> r(T of_row, Vec<T> of_col) {
    if (!kWide) return reciprocal<T>(of_row * of_col + T(1));
    const Vec<T> twice = (of_row + of_col) * T(2 * kLog2E);
    return reciprocal<T>(exp2<T>(min<T>(splat<T>(120), twice)) + T(1));
  }

  void change(const Tile<T>& tile, const Classes<T>&) const override {
    wide ? change_tile<true>(tile) : change_tile<false>(tile);
  }
  void add_gradients(const Tile<T>& tile) const override {
    wide ? add_gradients_of_tile<true>(tile) : add_gradients_of_tile<false>(tile);
  }

  template <bool kWide>
  void change_tile(const Tile<T>& tile) const {
    const T* of_cols = f + tile.j0 * width;
    for (int i = 0; i < tile.rows; ++i) {
      const T* of_row = e + (tile.i0 + i) * width;
      T* l = tile.products + int64_t(i) * block;
      int j = 0;
      for (; j + 4 * kLanes<T> <= block; j += 4 * kLanes<T>) change_columns<kWide, 4>(tile, of_row, of_cols, l, i, j);
      for (; j < block; j += kLanes<T>) change_columns<kWide, 1>(tile, of_row, of_cols, l, i, j);
    }
  }

  template <bool kWide, int kVectors>
  PYCL_INLINE void change_columns(const Tile<T>& tile, const T* of_row, const T* of_cols, T* l, int i, int j) const {
    Vec<T> sum[kVectors] = {};
    for (int64_t k = 0; k < width; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sum[v] += w[k] * r<kWide>(of_row[k], load<T>(of_cols + k * block + j + v * kLanes<T>));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int at = j + v * kLanes<T>;
      const Vec<T> z = base - T(2) * sum[v], size = z < T(0) ? -z : z;
      const Vec<T> u = exp2<T>(size * T(-kLog2E));
      store<T>(l + at, load<T>(l + at) + (min<T>(Vec<T>{}, z) - log1p<T>(u)) * unit);
      if (sums) store<T>(sigmoid_of(tile, i) + at, (z < T(0) ? splat<T>(1) : u) / (u + T(1)));
    }
  }

  T* sigmoid_of(const Tile<T>& tile, int i) const { return sigmoids + (int64_t(tile.worker) * block + i) * block; }

  template <bool kWide>
  void add_gradients_of_tile(const Tile<T>& tile) const {
    const int block = tile.block;
    T* g = rows + int64_t(tile.worker) * block;
    double* to = sums + tile.group * (width + 1);
    for (int i = 0; i < tile.rows; ++i) {
      const T *weight = tile.products + int64_t(i) * block, *sigmoid = sigmoid_of(tile, i);
      Vec<T> total{};
      for (int j = 0; j < block; j += kLanes<T>) {
        const Vec<T> x = load<T>(weight + j) * load<T>(sigmoid + j);
        store<T>(g + j, x);
        total += x;
      }
      to[width] += double(reduce_add<T>(total));
      const T* of_row = e + (tile.i0 + i) * width;
      for (int64_t k = 0; k < width; ++k) {
        const T* of_cols = f + tile.j0 * width + k * block;
        T* by_col = d_cols + tile.j0 * width + k * block;
        Vec<T> first{}, slope{};
        for (int j = 0; j < block; j += kLanes<T>) {
          const Vec<T> ratio = r<kWide>(of_row[k], load<T>(of_cols + j)), a = load<T>(g + j) * ratio;
          const Vec<T> c = a - a * ratio;
          first += a;
          slope += c;
          store<T>(by_col + j, load<T>(by_col + j) + c);
        }
        to[k] += double(reduce_add<T>(first));
        d_rows[(tile.i0 + i) * width + k] += reduce_add<T>(slope);
      }
    }
  }

  // In a symmetric problem a point has the gradients of both roles.
  void store_gradients(T* d_row_values, T* d_col_values, T* d_shared) const override {
    auto of_col = [&](int64_t j, int64_t k) { return d_cols[j / block * block * width + k * block + j % block]; };
    for (int64_t i = 0; i < n_rows; ++i)
      for (int64_t k = 0; k < width; ++k)
        d_row_values[i * row_width + k] = T(4) * w[k] * (d_rows[i * width + k] + (symmetric ? of_col(i, k) : T(0)));
    for (int64_t j = 0; j < n_cols && !symmetric; ++j)
      for (int64_t k = 0; k < width; ++k) d_col_values[j * col_width + k] = T(4) * w[k] * of_col(j, k);
    store_sums(sums, groups, width + 1, d_shared);
    for (int64_t k = 0; k < width; ++k) d_shared[k] = d_shared[width] - T(2) * d_shared[k];
  }
};

}  // namespace
