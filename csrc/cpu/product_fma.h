// SPDX-License-Identifier: Apache-2.0
// C (+)= A B in float or double by fused multiply-adds, one register tile of kRows x kVectors vectors at a time.
#pragma once
#include "vec.h"

namespace {

// A is read one element at a time, in groups of kRows rows,
// A(i, k) = p[((first + i) / kRows) * group + ((first + i) % kRows) * row + k * step]. B comes in panels of kPanel
// columns, B(k, j) = p[(j / kPanel) * panel + (k / kPair) * step + (j % kPanel) * kPair + k % kPair].
// A second plane, where the product has one, is `plane` elements further on.
template <class E>
struct AView {
  const E* p;
  int64_t group, row, step, plane;
  int64_t first = 0;
};
template <class E>
struct BView {
  const E* p;
  int64_t panel, step, plane;
};

template <class T_>
struct FmaProduct {
  using T = T_;
  using E = T_;  // what operands are packed as
#ifdef __AVX512F__
  static constexpr int kRows = 8, kVectors = 3;  // 24 accumulators, 3 vectors of B, 1 of A of 32 registers
#else
  static constexpr int kRows = 6, kVectors = 2;  // 12 + 2 + 1 of 16
#endif
  static constexpr int kPair = 1, kPlanes = 1;
  static constexpr int kSpan = 0;       // lines of A are whole
  static constexpr int kGroup = kRows;  // operands A are packed so that what one step reads is contiguous
  static constexpr int kPanel = kVectors * kLanes<T>;
  static constexpr int kAlign = kLanes<T>;                                // feature sizes are padded to it
  static constexpr int kBlockUnit = 16, kMinBlock = 48, kMaxBlock = 192;  // unit: of rows and vectors on every set
  static constexpr bool kScalesOperand = true;                            // logit_scale goes into A, before the product

  static void begin_thread() {}
  static void end_thread() {}

  template <int R, int NV>
  static PYCL_INLINE void micro(const E* a, int64_t a_row, int64_t a_step, const E* b, int64_t b_step, int k_size,
                                const T* from, T* c, int64_t c_row) {
    Vec<T> sum[R][NV];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) sum[i][v] = from ? load<T>(from + i * c_row + v * kLanes<T>) : Vec<T>{};
    for (int k = 0; k < k_size; ++k) {
      Vec<T> bv[NV];
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) bv[v] = load<T>(b + v * kLanes<T>);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const Vec<T> av = splat<T>(a[i * a_row]);
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v) sum[i][v] += av * bv[v];
      }
      a += a_step;
      b += b_step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) store<T>(c + i * c_row + v * kLanes<T>, sum[i][v]);
  }

  static void multiply(const AView<E>& a, const BView<E>& b, int m, int n, int k, T* c, int64_t c_row,
                       bool accumulate) {
    add_product(a, b, m, n, k, accumulate ? c : nullptr, c, c_row);
  }

  // C = from + A B, from laid out as C or null for 0. m is even, and a multiple of kRows from the first row on where
  // that is 8; n is a multiple of the vector length.
  __attribute__((noinline)) static void add_product(const AView<E>& a, const BView<E>& b, int m, int n, int k,
                                                    const T* from, T* c, int64_t c_row) {
    for (int j = 0; j < n; j += kPanel) {
      const E* bj = b.p + (j / kPanel) * b.panel;
      const int vectors = (n - j) / kLanes<T>;
      for (int i = 0, rows; i < m; i += rows) {
        const int64_t row = a.first + i, within = row % kRows;
        const E* ai = a.p + row / kRows * a.group + within * a.row;
        const int64_t at = i * c_row + j;
        const T* start = from ? from + at : nullptr;
        rows = kRows - within < m - i ? int(kRows - within) : m - i;
        if (kVectors == 3 && vectors >= 3)
          add_rows<3>(rows, ai, a, bj, b.step, k, start, c + at, c_row);
        else if (vectors >= 2)
          add_rows<2>(rows, ai, a, bj, b.step, k, start, c + at, c_row);
        else
          add_rows<1>(rows, ai, a, bj, b.step, k, start, c + at, c_row);
      }
    }
  }

  template <int NV>
  static PYCL_INLINE void add_rows(int rows, const E* ai, const AView<E>& a, const E* b, int64_t b_step, int k,
                                   const T* from, T* c, int64_t c_row) {
    constexpr bool kWhole = kBlockUnit % kRows == 0;
    if (kWhole || rows == kRows)
      micro<kRows, NV>(ai, a.row, a.step, b, b_step, k, from, c, c_row);
    else if (rows == 4)
      micro<4, NV>(ai, a.row, a.step, b, b_step, k, from, c, c_row);
    else
      micro<2, NV>(ai, a.row, a.step, b, b_step, k, from, c, c_row);
  }

  // The weights of a tile are used where they are: A of dX = W Y, B of dY^T = X^T W.
  struct Weights {
    T* tile;
    int block;
    void emit_rows(int) {}
    AView<E> as_a() const { return {tile, int64_t(kRows) * block, block, 1, 0}; }
    BView<E> as_b() const { return {tile, kPanel, block, 0}; }
  };
  static constexpr size_t weights_elements(int) { return 0; }
  static Weights weights(T* tile, E*, int block) { return {tile, block}; }
};

}  // namespace
