// SPDX-License-Identifier: Apache-2.0
// C (+)= A B with bfloat16 operands and float32 sums: AVX-512 dot products or AMX tiles, on the same packed layout.
// With two planes every value is the sum of two bfloat16 numbers, hi + lo. Then there are three products: hi hi, hi lo,
// lo hi.
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
#else
  static constexpr int kRows = 8, kPanel = 48, kAlign = 16, kBlockUnit = 16, kMinBlock = 48, kMaxBlock = 192;
#endif

#if defined(PYCL_AMX) || defined(PYCL_AMX_EMULATED)
  static void begin_thread() { amx::configure(); }
  static void end_thread() { amx::release(); }

  static void one(const E* a, int64_t a_row, const E* b, const BView<E>& view, int m, int n, int k, const float* from,
                  float* c, int64_t c_row) {
    for (int j = 0; j < n; j += kPanel)
      for (int i = 0; i < m; i += kRows) {
        const E* ai = a + i * a_row;
        const E* bj = b + (j / kPanel) * view.panel;
        float* cij = c + i * c_row + j;
        amx::start(from ? from + i * c_row + j : nullptr, c_row);
        for (int kk = 0; kk < k; kk += 32) amx::step(ai + kk, a_row, bj + (kk / 2) * view.step, view.step);
        amx::finish(cij, c_row);
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

  static void one(const E* a, int64_t a_row, const E* b, const BView<E>& view, int m, int n, int k, const float* from,
                  float* c, int64_t c_row) {
    for (int j = 0; j < n; j += kPanel) {
      const E* bj = b + (j / kPanel) * view.panel;
      const int vectors = (n - j) / 16;
      for (int i = 0; i < m; i += kRows) {
        const int64_t at = i * c_row + j;
        const float* start = from ? from + at : nullptr;
        if (vectors >= 3)
          micro<3>(a + i * a_row, a_row, bj, view.step, k, start, c + at, c_row);
        else if (vectors == 2)
          micro<2>(a + i * a_row, a_row, bj, view.step, k, start, c + at, c_row);
        else
          micro<1>(a + i * a_row, a_row, bj, view.step, k, start, c + at, c_row);
      }
    }
  }
#endif

  static void multiply(const AView<E>& a, const BView<E>& b, int m, int n, int k, float* c, int64_t c_row,
                       bool accumulate) {
    add_product(a, b, m, n, k, accumulate ? c : nullptr, c, c_row);
  }

  // C = from + A B, from laid out as C or null for 0.
  static void add_product(const AView<E>& a, const BView<E>& b, int m, int n, int k, const float* from, float* c,
                          int64_t c_row) {
    one(a.p, a.row, b.p, b, m, n, k, from, c, c_row);
    if (kPlanes == 2) {
      one(a.p, a.row, b.p + b.plane, b, m, n, k, c, c, c_row);
      one(a.p + a.plane, a.row, b.p, b, m, n, k, c, c, c_row);
    }
  }

  // Weights are written twice in bfloat16: row-major (A of dX = W Y), and with pairs of rows interleaved (B of
  // dY^T = X^T W). So nothing is transposed. Two rows are written at a time, while they are in the first-level cache.
  struct Weights {
    float* tile;
    E *w, *v;
    int block;

    void emit_rows(int i) {
      const int64_t plane = int64_t(block) * block;
      const float* c = tile + int64_t(i) * block;
      E* wi = w + int64_t(i) * block;
      E* vi = v + int64_t(i) * block;
      for (int j = 0; j < block; j += kLanes<float>) {
        Vec<float> x0 = load<float>(c + j), x1 = load<float>(c + block + j);
        for (int plane_index = 0; plane_index < kPlanes; ++plane_index) {
          const int64_t at = plane_index * plane + j;
          const IVec<float> b0 = rounded(x0), b1 = rounded(x1);
          narrow(wi + at, b0);
          narrow(wi + at + block, b1);
          const IVec<float> pairs = b0 | (b1 << 16);
          std::memcpy(vi + at + j, &pairs, sizeof pairs);
          x0 -= reinterpret_cast<Vec<float>>(b0 << 16);
          x1 -= reinterpret_cast<Vec<float>>(b1 << 16);
        }
      }
    }
    AView<E> as_a() const { return {w, int64_t(kRows) * block, block, 1, int64_t(block) * block}; }
    BView<E> as_b() const { return {v, kPanel * 2, int64_t(block) * 2, int64_t(block) * block}; }
  };
  static constexpr size_t weights_elements(int block) { return size_t(2) * kPlanes * block * block; }
  static Weights weights(float* tile, E* scratch, int block) {
    return {tile, scratch, scratch + int64_t(kPlanes) * block * block, block};
  }

  // bfloat16 bits in the low half of each lane, rounded to nearest even.
  static PYCL_INLINE IVec<float> rounded(Vec<float> x) {
#ifdef __AVX512BF16__
    return (IVec<float>)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
#else
    typedef uint32_t U __attribute__((vector_size(PYCL_VECTOR_BYTES)));
    const U bits = reinterpret_cast<U>(x);
    const U nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? IVec<float>{} + 0x7fc0 : reinterpret_cast<IVec<float>>(nearest);
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
