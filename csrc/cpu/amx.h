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

inline void configure() {
  struct __attribute__((packed)) {
    uint8_t palette = 1, start = 0, reserved[14] = {0};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}
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
// 32 x 32 of A (row-major) times 32 x 32 of B (pairs of rows interleaved).
inline void step(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_step) {
  _tile_loadd(4, a, a_row * 2);
  _tile_loadd(5, a + 16 * a_row, a_row * 2);
  _tile_loadd(6, b, b_step * 2);
  _tile_loadd(7, b + 32, b_step * 2);
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

inline void configure() {}
inline void release() {}
inline void start(const float* c, int64_t c_row) {
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 32; ++j) sums[i][j] = c ? c[i * c_row + j] : 0.f;
}
inline void step(const uint16_t* a, int64_t a_row, const uint16_t* b, int64_t b_step) {
  for (int i = 0; i < 32; ++i)
    for (int pair = 0; pair < 16; ++pair) {
      const float a0 = bf16_to_float(a[i * a_row + 2 * pair]), a1 = bf16_to_float(a[i * a_row + 2 * pair + 1]);
      const uint16_t* bp = b + pair * b_step;
      for (int j = 0; j < 32; ++j) sums[i][j] += a0 * bf16_to_float(bp[2 * j]) + a1 * bf16_to_float(bp[2 * j + 1]);
    }
}
inline void finish(float* c, int64_t c_row) {
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 32; ++j) c[i * c_row + j] = sums[i][j];
}

#endif

}  // namespace amx
}  // namespace
