// SPDX-License-Identifier: Apache-2.0
// C (+)= A B in float or double by fused multiply-adds, one register tile of kRows x 3 vectors at a time.
#pragma once
#include "vec.h"

namespace {

// A is read one element at a time, A(i, k) = p[i * row + k * step]. B comes in panels of kPanel columns,
// B(k, j) = p[(j / kPanel) * panel + (k / kPair) * step + (j % kPanel) * kPair + k % kPair].
// A second plane, where the product has one, is `plane` elements further on.
template <class E>
struct AView {
  const E* p;
  int64_t row, step, plane;
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
  static constexpr int kRows = 8;  // 24 accumulators, 3 vectors of B, 1 of A of 32 registers
#else
  static constexpr int kRows = 4;  // 12 + 3 + 1 of 16
#endif
  static constexpr int kPair = 1, kPlanes = 1, kVectors = 3;
  static constexpr int kPanel = kVectors * kLanes<T>;
  static constexpr int kAlign = kLanes<T> > kRows ? kLanes<T> : kRows;    // feature sizes are padded to it
  static constexpr int kBlockUnit = 16, kMinBlock = 48, kMaxBlock = 192;  // unit: of rows and vectors on every set
  static constexpr bool kScalesOperand = true;                            // logit_scale goes into A, before the product

  static void begin_thread() {}
  static void end_thread() {}

  template <int NV>
  static PYCL_INLINE void micro(const E* a, int64_t a_row, int64_t a_step, const E* b, int64_t b_step, int k_size,
                                const T* from, T* c, int64_t c_row) {
    Vec<T> sum[kRows][NV];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) sum[i][v] = from ? load<T>(from + i * c_row + v * kLanes<T>) : Vec<T>{};
    for (int k = 0; k < k_size; ++k) {
      Vec<T> bv[NV];
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) bv[v] = load<T>(b + v * kLanes<T>);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> av = splat<T>(a[i * a_row]);
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v) sum[i][v] += av * bv[v];
      }
      a += a_step;
      b += b_step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) store<T>(c + i * c_row + v * kLanes<T>, sum[i][v]);
  }

  static void multiply(const AView<E>& a, const BView<E>& b, int m, int n, int k, T* c, int64_t c_row,
                       bool accumulate) {
    add_product(a, b, m, n, k, accumulate ? c : nullptr, c, c_row);
  }

  // C = from + A B, from laid out as C or null for 0. m and k are multiples of kRows and 1, n of the vector length.
  static void add_product(const AView<E>& a, const BView<E>& b, int m, int n, int k, const T* from, T* c,
                          int64_t c_row) {
    for (int j = 0; j < n; j += kPanel) {
      const E* bj = b.p + (j / kPanel) * b.panel;
      const int vectors = (n - j) / kLanes<T>;
      for (int i = 0; i < m; i += kRows) {
        const E* ai = a.p + i * a.row;
        const int64_t at = i * c_row + j;
        const T* start = from ? from + at : nullptr;
        if (vectors >= 3)
          micro<3>(ai, a.row, a.step, bj, b.step, k, start, c + at, c_row);
        else if (vectors == 2)
          micro<2>(ai, a.row, a.step, bj, b.step, k, start, c + at, c_row);
        else
          micro<1>(ai, a.row, a.step, bj, b.step, k, start, c + at, c_row);
      }
    }
  }

  // The weights of a tile are used where they are: A of dX = W Y, B of dY^T = X^T W.
  struct Weights {
    T* tile;
    int block;
    void emit_rows(int) {}
    AView<E> as_a() const { return {tile, block, 1, 0}; }
    BView<E> as_b() const { return {tile, kPanel, block, 0}; }
  };
  static constexpr size_t weights_elements(int) { return 0; }
  static Weights weights(T* tile, E*, int block) { return {tile, block}; }
};

}  // namespace
