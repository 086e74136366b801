// SPDX-License-Identifier: Apache-2.0
// Rows divided by their norms, for losses that take their points so, and the gradients of that.
#pragma once
#include "pack.h"

namespace {

constexpr double kLongest = 1e300, kShrink = 0x1p-600;  // the inverse of a longer norm would lose digits
constexpr double kCommon = 1e30;                        // up to here float holds the inverse, too

// What divided a row. Where it was shrunk, the norm is that of kShrink times the row, and so is what it makes of a
// gradient to be multiplied by kShrink.
struct UnitRow {
  double norm;
  bool shrunk;
  // Conversions take a third of the time of a row in double, whose digits are needed for the sum of squares alone.
  bool is_common() const { return norm > kNormEps && norm < kCommon; }
};

template <class T>
UnitRow load_unit(const Matrix& z, int64_t i, T* line) {
  load_row(z, i, line);
  UnitRow row{norm_of(line, z.d), false};
  if (row.norm > kLongest) {
    scale_row(line, z.d, kShrink);
    row = {norm_of(line, z.d), true};
    if (row.norm > kLongest) row.norm = __builtin_nan("");  // an entry is infinite, and inf / inf is NaN
  }
  if (row.is_common())
    scale_row(line, z.d, T(inverse_norm(row.norm)));
  else
    scale_row(line, z.d, inverse_norm(row.norm));
  return row;
}

// Contiguous rows [n, d] in the accumulation type.
template <class P>
void unit(const Matrix& z, const ExecutionContext& host, void* out) {
  using T = typename P::T;
  parallel(host, z.n, z.d, [&](int64_t i) { load_unit(z, i, static_cast<T*>(out) + i * z.d); });
}

template <class T>
void unit_gradient(const UnitRow& row, const T* x, int64_t d, DType dtype, T* g) {
  if (row.is_common()) return normalized_gradient<T>(x, d, row.norm, dtype, g);
  if (row.norm == 0 && dtype == DType::kFloat16)  // 1 / kNormEps is beyond float16
    std::memset(g, 0, sizeof(T) * d);
  else
    normalized_gradient<double>(x, d, row.norm, dtype, g);
  if (row.shrunk) scale_row(g, d, kShrink);
}

// From the gradient of the unit rows to that of z, contiguous and in its dtype.
template <class P>
void unit_backward(const Matrix& z, const ExecutionContext& host, const Matrix& d_unit, void* out) {
  using T = typename P::T;
  const int64_t n = z.n, d = z.d, shares = n < host.threads ? n : host.threads;
  T* lines = allocate<T>(host, shares * 2 * d);
  parallel(host, shares, n * d / shares, [&](int64_t w) {
    T *x = lines + w * 2 * d, *g = x + d;
    for (int64_t i = n * w / shares; i < n * (w + 1) / shares; ++i) {
      const UnitRow row = load_unit(z, i, x);
      load_row(d_unit, i, g);
      unit_gradient(row, x, d, z.dtype, g);
      store_row(out, z.dtype, i, d, g);
    }
  });
}

}  // namespace
