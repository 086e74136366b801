// SPDX-License-Identifier: Apache-2.0
// C (+)= A B with bfloat16 operands and float32 sums: AVX-512 dot products or AMX tiles, on the same packed layout.
// With AMX a number may be the sum of several bfloat16 numbers, its planes 0, 1, ... Two hold 16 of the 24 bits of a
// float; three hold all of them. Products of planes p and q are taken where p + q is less than the number of planes:
// 3 for two planes, and 6 for three, whose sum is as near to the exact product as that of float32.
#pragma once
#include "product_fma.h"
#if defined(PYCL_AMX) || defined(PYCL_AMX_EMULATED)
#include "amx.h"
#endif

namespace {

template <int kPlanes_>
struct Bf16Product {
  using T = float;
  using E = uint16_t;
  static constexpr int kPair = 2, kPlanes = kPlanes_, kGroup = 1;
  static constexpr bool kScalesOperand = false;  // scaling a bfloat16 operand would round it again
#if defined(PYCL_AMX) || defined(PYCL_AMX_EMULATED)
  static constexpr int kRows = 32, kPanel = 32, kAlign = 32, kBlockUnit = 32, kMinBlock = 64, kMaxBlock = 192;
  static constexpr int kSpan = 32;  // rows of A are in pieces of this length, those of all rows one after the other
#else
  static constexpr int kRows = 8, kPanel = 48, kAlign = 16, kBlockUnit = 16, kMinBlock = 48, kMaxBlock = 192;
  static constexpr int kSpan = 0;  // rows are whole
#endif

#if defined(PYCL_AMX) || defined(PYCL_AMX_EMULATED)
  static void begin_thread() { amx::configure(); }
  static void end_thread() { amx::release(); }

  struct Place {
    const E *a, *b;
    int64_t c;
  };

  // C = from + A B, from laid out as C or null for 0, one block of 32 x 32 after the other; of the shorter side all
  // operands are read again and again, from the first-level cache. The lines that the next step and the next block read
  // are fetched while tiles multiply: a thread whose core runs another one, too, has no tile registers to spare, and
  // waits for every load. There this took 0.8 of the time, on a core of its own 0.9.
  static void add_product(const AView<E>& a, const BView<E>& b, int m, int n, int k, const float* from, float* c,
                          int64_t c_row) {
    const int down = (m + kRows - 1) / kRows, across = (n + kPanel - 1) / kPanel, blocks = down * across;
    auto place = [&](int at) PYCL_LAMBDA_INLINE {
      const int64_t i = down > across ? at / across : at % down, j = down > across ? at % across : at / down;
      return Place{a.p + i * kRows * a.row, b.p + j * b.panel, i * kRows * c_row + j * kPanel};
    };
    Place here = place(0);
    for (int at = 1; at <= blocks; ++at) {
      const Place next = at < blocks ? place(at) : here;
      amx::start(from ? from + here.c : nullptr, c_row);
      amx::fetch_sums(c + next.c, c_row);
      for (int kk = 0; kk < k; kk += 32) {
        const E *ak = here.a + kk / 32 * a.step, *bk = here.b + kk / 2 * b.step;
        const bool more = kk + 32 < k;
        add_step({ak, bk, 0}, {more ? ak + a.step : next.a, more ? bk + 16 * b.step : next.b, 0}, a.plane, b.plane);
      }
      amx::finish(c + here.c, c_row);
      here = next;
    }
  }

  // Each product loads one operand and has the other from the one before it.
  static PYCL_INLINE void add_step(const Place& here, const Place& next, int64_t a_plane, int64_t b_plane) {
    auto load_a = [&](int plane) PYCL_LAMBDA_INLINE {
      amx::load_a(here.a + plane * a_plane);
      amx::fetch(next.a + plane * a_plane);
    };
    auto load_b = [&](int plane) PYCL_LAMBDA_INLINE {
      amx::load_b(here.b + plane * b_plane);
      amx::fetch(next.b + plane * b_plane);
    };
    load_a(kPlanes - 1), load_b(0), amx::multiply();
    if (kPlanes == 3) {
      load_a(1), amx::multiply();
      load_b(1), amx::multiply();
      load_a(0), amx::multiply();
      load_b(2), amx::multiply();
      amx::load_b(here.b), amx::multiply();
    } else if (kPlanes == 2) {
      load_a(0), amx::multiply();
      load_b(1), amx::multiply();
    }
  }
#else
  static void begin_thread() {}
  static void end_thread() {}

  template <int NV>
  static PYCL_INLINE void micro(const E* a, int64_t a_row, const E* b, int64_t b_step, int k_size, const float* from,
                                float* c, int64_t c_row) {
    __m512 sum[kRows][NV];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) sum[i][v] = from ? _mm512_loadu_ps(from + i * c_row + v * 16) : _mm512_setzero_ps();
    for (int k = 0; k < k_size; k += 2) {
      __m512bh bv[NV];
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) bv[v] = (__m512bh)_mm512_loadu_si512(b + v * 32);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        int32_t pair;
        std::memcpy(&pair, a + i * a_row, 4);
        const __m512bh av = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], av, bv[v]);
      }
      a += 2;
      b += b_step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) _mm512_storeu_ps(c + i * c_row + v * 16, sum[i][v]);
  }

  // C = from + A B, from laid out as C or null for 0.
  static void add_product(const AView<E>& a, const BView<E>& b, int m, int n, int k, const float* from, float* c,
                          int64_t c_row) {
    static_assert(kPlanes == 1);
    for (int j = 0; j < n; j += kPanel) {
      const E* bj = b.p + (j / kPanel) * b.panel;
      const int vectors = (n - j) / 16;
      for (int i = 0; i < m; i += kRows) {
        const int64_t at = i * c_row + j;
        const E* ai = a.p + i * a.row;
        const float* start = from ? from + at : nullptr;
        if (vectors >= 3)
          micro<3>(ai, a.row, bj, b.step, k, start, c + at, c_row);
        else if (vectors == 2)
          micro<2>(ai, a.row, bj, b.step, k, start, c + at, c_row);
        else
          micro<1>(ai, a.row, bj, b.step, k, start, c + at, c_row);
      }
    }
  }
#endif

  static void multiply(const AView<E>& a, const BView<E>& b, int m, int n, int k, float* c, int64_t c_row,
                       bool accumulate) {
    add_product(a, b, m, n, k, accumulate ? c : nullptr, c, c_row);
  }

  // Weights are written twice in bfloat16: as rows (A of dX = W Y), and with pairs of rows interleaved (B of
  // dY^T = X^T W), in panels where rows are in pieces. So nothing is transposed. Two rows are written at a time, while
  // they are in the first-level cache.
  struct Weights {
    float* tile;
    E *w, *v;
    int block;

    void emit_rows(int i) {
      const int span = kSpan ? kSpan : block;
      for (int j = 0; j < block; j += span) {
        const int64_t at = int64_t(j) * block + int64_t(i) * span;
        split_rows(tile + int64_t(i) * block + j, block, span, w + at, span, plane(), v + at, plane());
      }
    }
    AView<E> as_a() const {
      const int span = kSpan ? kSpan : block;
      return {w, int64_t(kRows) * span, span, int64_t(span) * block, plane()};
    }
    BView<E> as_b() const {
      return {v, kPanel * int64_t(kSpan ? block : 2), 2 * int64_t(kSpan ? kSpan : block), plane()};
    }
    int64_t plane() const { return int64_t(block) * block; }
  };
  static constexpr size_t weights_elements(int block) { return size_t(2) * kPlanes * block * block; }
  static Weights weights(float* tile, E* scratch, int block) {
    return {tile, scratch, scratch + int64_t(kPlanes) * block * block, block};
  }

  // Two rows of n numbers, x_row apart, in planes: as rows, `row` apart, and at `pairs` with their numbers interleaved.
  static PYCL_INLINE void split_rows(const float* x, int64_t x_row, int n, E* rows, int64_t row, int64_t rows_plane,
                                     E* pairs, int64_t pairs_plane) {
    for (int j = 0; j < n; j += kLanes<float>) {
      Vec<float> x0 = load<float>(x + j), x1 = load<float>(x + x_row + j);
#pragma GCC unroll 3
      for (int plane = 0; plane < kPlanes; ++plane) {
        const IVec<float> b0 = rounded(x0), b1 = rounded(x1), pair = b0 | (b1 << 16);
        narrow(rows + plane * rows_plane + j, b0);
        narrow(rows + plane * rows_plane + row + j, b1);
        std::memcpy(pairs + plane * pairs_plane + 2 * j, &pair, sizeof pair);
        x0 -= reinterpret_cast<Vec<float>>(b0 << 16);
        x1 -= reinterpret_cast<Vec<float>>(b1 << 16);
      }
    }
  }

  // bfloat16 bits in the low half of each lane, rounded to nearest even. With planes the largest numbers are rounded
  // down: what is left of them is in the other planes.
  static PYCL_INLINE IVec<float> rounded(Vec<float> x) {
    const IVec<float> bits = nearest(x);
    if (kPlanes == 1) return bits;
    const IVec<float> overflow = ((bits & 0x7fff) == 0x7f80) & (x <= kLargest<float>)&(x >= -kLargest<float>);
    return bits + overflow;
  }
  static PYCL_INLINE IVec<float> nearest(Vec<float> x) {
#ifdef __AVX512BF16__
    return (IVec<float>)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
#else
    typedef uint32_t U __attribute__((vector_size(PYCL_VECTOR_BYTES)));
    const U bits = reinterpret_cast<U>(x);
    const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? IVec<float>{} + 0x7fc0 : reinterpret_cast<IVec<float>>(rounded);
#endif
  }
  static PYCL_INLINE void narrow(E* p, IVec<float> x) {
#ifdef __AVX512F__
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)x));
#else
    for (int k = 0; k < kLanes<float>; ++k) p[k] = E(x[k]);
#endif
  }
};

}  // namespace
