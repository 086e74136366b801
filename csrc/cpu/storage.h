// SPDX-License-Identifier: Apache-2.0
// Vectors from and to memory of another type: half types are computed as float, float as double.
#pragma once
#include "vec.h"

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

typedef uint32_t UVec __attribute__((vector_size(PYCL_VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(PYCL_VECTOR_BYTES / 2)));
typedef uint16_t HalfVecU __attribute__((vector_size(PYCL_VECTOR_BYTES / 2), aligned(2), may_alias));

PYCL_INLINE UVec load_halves(const void* p) {
#if defined(__AVX2__) && PYCL_VECTOR_BYTES == 32
  return UVec(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(HalfVec(*static_cast<const HalfVecU*>(p)), UVec);
#endif
}
// load_halves(p) << 16. Here one shuffle does both.
PYCL_INLINE UVec load_upper_halves(const void* p) {
#if defined(__AVX2__) && PYCL_VECTOR_BYTES == 32
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  const __m256i places = _mm256_set_epi8(15, 14, -1, -1, 13, 12, -1, -1, 11, 10, -1, -1, 9, 8, -1, -1,  //
                                         7, 6, -1, -1, 5, 4, -1, -1, 3, 2, -1, -1, 1, 0, -1, -1);
  return UVec(_mm256_shuffle_epi8(twice, places));
#else
  return load_halves(p) << 16;
#endif
}
// Of numbers below 2^16.
PYCL_INLINE void store_halves(void* p, UVec bits) {
#if defined(__AVX2__) && PYCL_VECTOR_BYTES == 32
  const __m256i pairs = _mm256_packus_epi32(__m256i(bits), __m256i(bits));  // each half of the vector by itself
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0xd8)));
#else
  *static_cast<HalfVecU*>(p) = __builtin_convertvector(bits, HalfVec);
#endif
}

// kLanes<T> numbers at p, kept there as S.
template <class T, class S>
struct Storage;

template <class T>
struct Storage<T, T> {
  static PYCL_INLINE Vec<T> load(const T* p) { return ::load<T>(p); }
  static PYCL_INLINE void store(T* p, Vec<T> x) { ::store<T>(p, x); }
};

template <>
struct Storage<double, float> {
  static PYCL_INLINE Vec<double> load(const float* p) {
    Vec<double> x;
    for (int k = 0; k < kLanes<double>; ++k) x[k] = p[k];
    return x;
  }
  static PYCL_INLINE void store(float* p, Vec<double> x) {
    for (int k = 0; k < kLanes<double>; ++k) p[k] = float(x[k]);
  }
};

template <>
struct Storage<float, BFloat16> {
  static PYCL_INLINE Vec<float> load(const BFloat16* p) { return reinterpret_cast<Vec<float>>(load_upper_halves(p)); }
  static PYCL_INLINE void store(BFloat16* p, Vec<float> x) {
    const UVec bits = reinterpret_cast<UVec>(x);
    const UVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    store_halves(p, x != x ? UVec{} + 0x7fc0 : rounded);
  }
};

#ifdef __F16C__
template <>
struct Storage<float, Float16> {
#if PYCL_VECTOR_BYTES == 64
  static PYCL_INLINE Vec<float> load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static PYCL_INLINE void store(Float16* p, Vec<float> x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static PYCL_INLINE Vec<float> load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static PYCL_INLINE void store(Float16* p, Vec<float> x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
};
#else
template <>
struct Storage<float, Float16> {
  // As half_to_float() and float_to_half(), a vector at a time.
  static PYCL_INLINE Vec<float> load(const Float16* p) {
    const UVec half = load_halves(p), sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
    const Vec<float> x = reinterpret_cast<Vec<float>>(magnitude << 13) * 0x1p112f;
    const UVec bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : reinterpret_cast<UVec>(x);
    return reinterpret_cast<Vec<float>>(bits | sign);
  }
  static PYCL_INLINE void store(Float16* p, Vec<float> x) {
    const UVec all = reinterpret_cast<UVec>(x), sign = (all >> 16) & 0x8000, bits = all & 0x7fffffff;
    const Vec<float> half = Vec<float>{} + 0.5f;
    const UVec subnormal =
        reinterpret_cast<UVec>(reinterpret_cast<Vec<float>>(bits) + half) - reinterpret_cast<UVec>(half);
    UVec y = (bits + 0xfff + ((bits >> 13) & 1) - 0x38000000) >> 13;
    y = bits < 0x38800000 ? subnormal : y;
    y = bits >= 0x477ff000 ? UVec{} + 0x7c00 : y;
    y = bits > 0x7f800000 ? UVec{} + 0x7e00 : y;
    store_halves(p, y | sign);
  }
};
#endif

// memcpy to memory that is not read soon. It writes whole lines of the cache and does not read them first.
PYCL_INLINE void copy_past_cache(void* to, const void* from, size_t bytes) {
  size_t k = 0;
#ifdef __AVX2__
  constexpr size_t kBytes = sizeof(__m256i);
  char* t = static_cast<char*>(to);
  const char* f = static_cast<const char*>(from);
  const size_t lead = -reinterpret_cast<uintptr_t>(t) % kBytes;
  k = lead < bytes ? lead : bytes;
  std::memcpy(t, f, k);
  for (; k + kBytes <= bytes; k += kBytes)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(t + k), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(f + k)));
#endif
  std::memcpy(static_cast<char*>(to) + k, static_cast<const char*>(from) + k, bytes - k);
}

// Makes what copy_past_cache() wrote visible to the other threads.
PYCL_INLINE void fence_past_cache() {
#ifdef __AVX2__
  _mm_sfence();
#endif
}

}  // namespace
