// SPDX-License-Identifier: Apache-2.0
// The AMX tiles of one 32 x 32 block of sums: four tiles of C, two of A, two of B. PYCL_AMX_EMULATED replaces the tile
// unit by loops with the same memory layout, so that packing and schedules are tested on machines without AMX.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef PYCL_AMX
#include <immintrin.h>
#else
#include "vec.h"
#endif

namespace {
namespace amx {

#ifdef PYCL_AMX

struct __attribute__((packed)) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {0};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// In static memory: GCC 12 takes the instruction to read eight bytes, and left out the stores of the others, to the
// stack.
alignas(64) constexpr Config kConfig;

inline void configure() { _tile_loadconfig(&kConfig); }
inline void release() { _tile_release(); }

// The sums begin with those at c, or with 0 where it is null.
inline void start(const float* c, int64_t c_row) {
  if (c) {
    _tile_loadd(0, c, c_row * 4);
    _tile_loadd(1, c + 16, c_row * 4);
    _tile_loadd(2, c + 16 * c_row, c_row * 4);
    _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
}
// 32 x 32 of A, row-major, and of B, pairs of rows interleaved; contiguous both.
inline void load_a(const uint16_t* a) {
  _tile_loadd(4, a, 64);
  _tile_loadd(5, a + 512, 64);
}
inline void load_b(const uint16_t* b) {
  _tile_loadd(6, b, 128);
  _tile_loadd(7, b + 32, 128);
}
// Of A or B.
inline void fetch(const uint16_t* operand) {
#pragma GCC unroll 32
  for (int line = 0; line < 32; ++line) __builtin_prefetch(operand + 32 * line);
}
inline void fetch_sums(const float* c, int64_t c_row) {
  for (int i = 0; i < 32; ++i) __builtin_prefetch(c + i * c_row, 1), __builtin_prefetch(c + i * c_row + 16, 1);
}
// Adds the product of the two that were loaded last.
inline void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}
inline void finish(float* c, int64_t c_row) {
  _tile_stored(0, c, c_row * 4);
  _tile_stored(1, c + 16, c_row * 4);
  _tile_stored(2, c + 16 * c_row, c_row * 4);
  _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
}

#else

static thread_local float sums[32][32];
static thread_local const uint16_t *a_loaded, *b_loaded;

inline void configure() {}
inline void release() {}
inline void start(const float* c, int64_t c_row) {
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 32; ++j) sums[i][j] = c ? c[i * c_row + j] : 0.f;
}
inline void load_a(const uint16_t* a) { a_loaded = a; }
inline void load_b(const uint16_t* b) { b_loaded = b; }
inline void fetch(const uint16_t*) {}
inline void fetch_sums(const float*, int64_t) {}
// A tile unit adds up what a step gives before it adds that to the sums, even and odd numbers apart.
inline void multiply() {
  for (int i = 0; i < 32; ++i) {
    const uint16_t* a = a_loaded + 32 * i;
    float even[32] = {}, odd[32] = {};
    for (int pair = 0; pair < 16; ++pair) {
      const float a0 = bf16_to_float(a[2 * pair]), a1 = bf16_to_float(a[2 * pair + 1]);
      const uint16_t* b = b_loaded + 64 * pair;
      for (int j = 0; j < 32; ++j) {
        even[j] += a0 * bf16_to_float(b[2 * j]);
        odd[j] += a1 * bf16_to_float(b[2 * j + 1]);
      }
    }
    for (int j = 0; j < 32; ++j) sums[i][j] += even[j] + odd[j];
  }
}
inline void finish(float* c, int64_t c_row) {
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 32; ++j) c[i * c_row + j] = sums[i][j];
}

#endif

}  // namespace amx
}  // namespace
