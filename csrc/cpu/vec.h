// SPDX-License-Identifier: Apache-2.0
// Vectors of the width the including file was compiled for (PYCL_VECTOR_BYTES), and the functions tiles need.
// The compiler's vector extension makes one source serve SSE, NEON, AVX2 and AVX-512.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifndef PYCL_VECTOR_BYTES
#error "PYCL_VECTOR_BYTES is set by the file that names the instruction set"
#endif
#define PYCL_INLINE __attribute__((always_inline)) inline
#define PYCL_LAMBDA_INLINE __attribute__((always_inline))

namespace {

template <class T>
struct VecTraits;
template <>
struct VecTraits<float> {
  typedef float V __attribute__((vector_size(PYCL_VECTOR_BYTES)));
  typedef float U __attribute__((vector_size(PYCL_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Int;
  typedef int32_t I __attribute__((vector_size(PYCL_VECTOR_BYTES)));
  typedef int32_t IU __attribute__((vector_size(PYCL_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct VecTraits<double> {
  typedef double V __attribute__((vector_size(PYCL_VECTOR_BYTES)));
  typedef double U __attribute__((vector_size(PYCL_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Int;
  typedef int64_t I __attribute__((vector_size(PYCL_VECTOR_BYTES)));
  typedef int64_t IU __attribute__((vector_size(PYCL_VECTOR_BYTES), aligned(8), may_alias));
};

template <class T>
using Vec = typename VecTraits<T>::V;
template <class T>
using IVec = typename VecTraits<T>::I;
template <class T>
using Int = typename VecTraits<T>::Int;
template <class T>
constexpr int kLanes = PYCL_VECTOR_BYTES / sizeof(T);

template <class T>
constexpr T kInf = T(__builtin_inf());
template <class T>
constexpr T kLargest = sizeof(T) == 4 ? T(3.40282346638528860e38) : T(1.79769313486231571e308);
constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <class T>
PYCL_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecTraits<T>::U*>(p);
}
template <class T>
PYCL_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VecTraits<T>::U*>(p) = x;
}
template <class T>
PYCL_INLINE IVec<T> load_int(const Int<T>* p) {
  return *reinterpret_cast<const typename VecTraits<T>::IU*>(p);
}
template <class T>
PYCL_INLINE void store_int(Int<T>* p, IVec<T> x) {
  *reinterpret_cast<typename VecTraits<T>::IU*>(p) = x;
}
template <class T>
PYCL_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // one load: 0 + x would be an addition, as it is not x for x = -0
}
template <class T>
PYCL_INLINE IVec<T> lane_index() {
  IVec<T> x;
  for (int k = 0; k < kLanes<T>; ++k) x[k] = k;
  return x;
}
// A NaN in b is kept.
template <class T>
PYCL_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return b < a ? a : b;
}
template <class T>
PYCL_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return b > a ? a : b;
}
#ifdef __AVX2__
template <>
PYCL_INLINE Vec<float> max<float>(Vec<float> a, Vec<float> b) {  // one instruction, which takes b where one is a NaN
#if PYCL_VECTOR_BYTES == 64
  return _mm512_max_ps(a, b);
#else
  return _mm256_max_ps(a, b);
#endif
}
template <>
PYCL_INLINE Vec<float> min<float>(Vec<float> a, Vec<float> b) {
#if PYCL_VECTOR_BYTES == 64
  return _mm512_min_ps(a, b);
#else
  return _mm256_min_ps(a, b);
#endif
}
#endif
template <class T>
PYCL_INLINE T reduce_add(Vec<T> x) {
  T sum = 0;
  for (int k = 0; k < kLanes<T>; ++k) sum += x[k];
  return sum;
}
template <class T>
PYCL_INLINE T reduce_max(Vec<T> x) {
  T m = x[0];
  for (int k = 1; k < kLanes<T>; ++k) m = x[k] < m ? m : x[k];
  return m;
}
#ifdef __AVX512F__
template <>
PYCL_INLINE float reduce_add<float>(Vec<float> x) {
  return _mm512_reduce_add_ps(x);
}
template <>
PYCL_INLINE float reduce_max<float>(Vec<float> x) {
  return _mm512_reduce_max_ps(x);
}
#endif

// Lines of 8 numbers, `from_row` apart, become columns: out(k, i) = from(i, k), rows of out `to_row` apart, written in
// their order. The numbers may be of another type of that size.
template <class T>
PYCL_INLINE void transpose8(const T* from, int64_t from_row, T* to, int64_t to_row) {
  for (int k = 0; k < 8; ++k)
    for (int i = 0; i < 8; ++i) std::memcpy(to + k * to_row + i, from + i * from_row + k, sizeof(T));
}
#ifdef __AVX2__
template <>
PYCL_INLINE void transpose8<float>(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 x[8], y[8];
  for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(from + i * from_row);
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      x[i + 2 * k] = _mm256_shuffle_ps(y[i + k], y[i + k + 2], 0x44);
      x[i + 2 * k + 1] = _mm256_shuffle_ps(y[i + k], y[i + k + 2], 0xee);
    }
  for (int k = 0; k < 4; ++k) _mm256_storeu_ps(to + k * to_row, _mm256_permute2f128_ps(x[k], x[k + 4], 0x20));
  for (int k = 0; k < 4; ++k) _mm256_storeu_ps(to + (k + 4) * to_row, _mm256_permute2f128_ps(x[k], x[k + 4], 0x31));
}
#endif

// Whether some lane is all ones; the others are 0.
template <class T>
PYCL_INLINE bool any(IVec<T> condition) {
  Int<T> bits = 0;
  for (int k = 0; k < kLanes<T>; ++k) bits |= condition[k];
  return bits != 0;
}
#ifdef __AVX512F__
template <>
PYCL_INLINE bool any<float>(IVec<float> condition) {
  return _mm512_test_epi32_mask(__m512i(condition), __m512i(condition)) != 0;
}
template <>
PYCL_INLINE bool any<double>(IVec<double> condition) {
  return _mm512_test_epi64_mask(__m512i(condition), __m512i(condition)) != 0;
}
#elif defined(__AVX2__)
template <>
PYCL_INLINE bool any<float>(IVec<float> condition) {
  return _mm256_movemask_ps(__m256(condition)) != 0;
}
template <>
PYCL_INLINE bool any<double>(IVec<double> condition) {
  return _mm256_movemask_pd(__m256d(condition)) != 0;
}
#endif

// 2^x: minimax polynomials for 2^r on [-1/2, 1/2] that are 1 at 0 (relative error 9.1e-8 and 3e-18), then the exponent.
// 0 gives exactly 1, so a saturated softmax has no error. -inf and all below 0.7 of the smallest normal number give
// exactly 0.
template <class T>
struct Exp2;
template <>
struct Exp2<float> {
  static PYCL_INLINE Vec<float> polynomial(Vec<float> r) {
    Vec<float> p = r * 0.00132647275519f + 0.00967151264138f;
    p = p * r + 0.0555073374212f;
    p = p * r + 0.240222420854f;
    p = p * r + 0.6931469776f;
    return p * r + 1.f;
  }
  static constexpr float kRound = 12582912.f + 127.f, kSmallest = -127.f;
  static constexpr Int<float> kMantissa = 23;
};
template <>
struct Exp2<double> {
  static PYCL_INLINE Vec<double> polynomial(Vec<double> r) {
    Vec<double> p = r * 4.43528270695727915e-10 + 7.0741056135081428e-9;
    p = p * r + 1.01781980216719308e-7;
    p = p * r + 1.32154330896763992e-6;
    p = p * r + 0.0000152527334899885256;
    p = p * r + 0.000154035304625144321;
    p = p * r + 0.00133335581467899217;
    p = p * r + 0.00961812910758833524;
    p = p * r + 0.0555041086648199216;
    p = p * r + 0.240226506959101562;
    p = p * r + 0.69314718055994533;
    return p * r + 1.0;
  }
  static constexpr double kRound = 6755399441055744. + 1023., kSmallest = -1023.;
  static constexpr Int<double> kMantissa = 52;
};

template <class T>
PYCL_INLINE Vec<T> exp2(Vec<T> x) {
  using E = Exp2<T>;
  x = max<T>(splat<T>(E::kSmallest), x);
  const Vec<T> shifted = x + E::kRound;  // the biased exponent sits in the low mantissa bits
  const Vec<T> rest = x + (E::kRound - shifted);
  return E::polynomial(rest) * reinterpret_cast<Vec<T>>(reinterpret_cast<IVec<T>>(shifted) << E::kMantissa);
}
#ifdef __AVX512F__
template <>
PYCL_INLINE Vec<float> exp2<float>(Vec<float> x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.f), x);  // -inf has no remainder
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(Exp2<float>::polynomial(x - whole), whole);
}
template <>
PYCL_INLINE Vec<double> exp2<double>(Vec<double> x) {
  x = _mm512_max_pd(_mm512_set1_pd(-1200.), x);
  const __m512d whole = _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_pd(Exp2<double>::polynomial(x - whole), whole);
}
#endif

// 2^x, and at least 2^100 where x is more than 100. exp2() may return anything where 2^x is out of range.
template <class T>
PYCL_INLINE Vec<T> saturating_exp2(Vec<T> x) {
#ifdef __AVX512F__
  return exp2<T>(x);
#else
  return exp2<T>(min<T>(splat<T>(100), x));
#endif
}

// 1 / x for x in [1, 2^124]. An estimate and one step of Newton's method were within 1.5 units of the last place of
// 32 million numbers with AVX-512, and within 2.6 of 16 million with AVX2. With a division in their place a step with a
// PairMLP of 8192 points took 1.04 times as long on two idle cores and 1.2 times on busy ones (AVX-512).
template <class T>
PYCL_INLINE Vec<T> reciprocal(Vec<T> x) {
  return T(1) / x;
}
#ifdef __AVX512F__
template <>
PYCL_INLINE Vec<float> reciprocal<float>(Vec<float> x) {
  const Vec<float> r = _mm512_rcp14_ps(x);
  return r * (2.f - x * r);
}
#elif defined(__AVX2__)
template <>
PYCL_INLINE Vec<float> reciprocal<float>(Vec<float> x) {
  const Vec<float> r = _mm256_rcp_ps(x);
  return r * (2.f - x * r);
}
#endif

// log(1 + u) for u in [0, 1] as 2 atanh(u / (2 + u)); the argument of the series is at most 1/3.
template <class T>
PYCL_INLINE Vec<T> log1p(Vec<T> u) {
  constexpr int kTerms = sizeof(T) == 4 ? 7 : 17;
  const Vec<T> s = u / (u + T(2));
  const Vec<T> s2 = s * s;
  Vec<T> series = splat<T>(T(1) / (2 * kTerms + 1));
#pragma GCC unroll 17
  for (int k = kTerms - 1; k >= 0; --k) series = series * s2 + T(1) / (2 * k + 1);
  return series * s * T(2);
}

PYCL_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
PYCL_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
PYCL_INLINE float bf16_to_float(uint16_t x) { return from_bits(uint32_t(x) << 16); }
PYCL_INLINE uint16_t float_to_bf16(float x) {
  if (x != x) return 0x7fc0;
  const uint32_t bits = to_bits(x);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
PYCL_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  // 2^112 moves the exponent from bias 15 to bias 127 and makes subnormal halves normal.
  const float x = from_bits(magnitude << 13) * 0x1p112f;
  const uint32_t bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : to_bits(x);
  return from_bits(bits | sign);
}
PYCL_INLINE uint16_t float_to_half(float x) {
  const uint32_t sign = (to_bits(x) >> 16) & 0x8000, bits = to_bits(x) & 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
  if (bits < 0x38800000) {                                 // below 2^-14: the sum rounds to multiples of 2^-24
    const uint32_t subnormal = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f);
    return uint16_t(sign | subnormal);
  }
  return uint16_t(sign | ((bits + 0xfff + ((bits >> 13) & 1) - 0x38000000) >> 13));
}

}  // namespace
