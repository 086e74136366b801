// SPDX-License-Identifier: Apache-2.0
// Points in the layouts that the products read: converted, normalised, padded with zeros. Gradients on their way back.
#pragma once
#include "product_fma.h"
#include "schedule.h"
#include "storage.h"

namespace {

using pycl::DType;
using pycl::ExecutionContext;
using pycl::Matrix;

constexpr double kNormEps = 1e-12;  // as torch.nn.functional.normalize

template <class T>
T* allocate(const ExecutionContext& host, int64_t n) {
  return static_cast<T*>(host.allocate(host, size_t(n > 0 ? n : 1) * sizeof(T)));
}
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// From element k on.
template <class T, class S, class Convert>
void load_row_of(const Matrix& z, int64_t i, T* line, Convert convert, int64_t k = 0) {
  const S* from = static_cast<const S*>(z.data) + i * z.row_stride;
  if (z.col_stride == 1)
    for (; k < z.d; ++k) line[k] = T(convert(from[k]));
  else
    for (; k < z.d; ++k) line[k] = T(convert(from[k * z.col_stride]));
}

// Vectors as long as they are whole.
template <class T, class S, class Convert>
void load_halves_of(const Matrix& z, int64_t i, T* line, Convert convert) {
  int64_t k = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    const S* from = static_cast<const S*>(z.data) + i * z.row_stride;
    for (; z.col_stride == 1 && k + kLanes<T> <= z.d; k += kLanes<T>) store<T>(line + k, Storage<T, S>::load(from + k));
  }
  load_row_of<T, uint16_t>(z, i, line, convert, k);
}

template <class T>
void load_row(const Matrix& z, int64_t i, T* line) {
  switch (z.dtype) {
    case DType::kFloat32:
      return load_row_of<T, float>(z, i, line, [](float x) { return x; });
    case DType::kFloat64:
      return load_row_of<T, double>(z, i, line, [](double x) { return x; });
    case DType::kBFloat16:
      return load_halves_of<T, BFloat16>(z, i, line, [](uint16_t x) { return bf16_to_float(x); });
    case DType::kFloat16:
      return load_halves_of<T, Float16>(z, i, line, [](uint16_t x) { return half_to_float(x); });
  }
}

// Row i of a contiguous matrix of the given dtype.
template <class T>
void store_row(void* data, DType dtype, int64_t i, int64_t d, const T* line) {
  switch (dtype) {
    case DType::kFloat32:
      for (int64_t k = 0; k < d; ++k) static_cast<float*>(data)[i * d + k] = float(line[k]);
      break;
    case DType::kFloat64:
      for (int64_t k = 0; k < d; ++k) static_cast<double*>(data)[i * d + k] = double(line[k]);
      break;
    case DType::kBFloat16:
      for (int64_t k = 0; k < d; ++k) static_cast<uint16_t*>(data)[i * d + k] = float_to_bf16(float(line[k]));
      break;
    case DType::kFloat16:
      for (int64_t k = 0; k < d; ++k) static_cast<uint16_t*>(data)[i * d + k] = float_to_half(float(line[k]));
      break;
  }
}

// Eight sums side by side, so that the additions overlap.
template <class T>
double dot(const T* a, const T* b, int64_t n) {
  double part[8] = {};
  int64_t k = 0;
  for (; k + 8 <= n; k += 8)
    for (int r = 0; r < 8; ++r) part[r] += double(a[k + r]) * double(b[k + r]);
  for (; k < n; ++k) part[0] += double(a[k]) * double(b[k]);
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

// The norm. Where squares would leave the range of double, entries are divided by the largest one first.
template <class T>
double norm_of(const T* line, int64_t d) {
  double sum = dot(line, line, d);
  if (sizeof(T) == 4 || (sum > 1e-200 && sum < 1e200)) return __builtin_sqrt(sum);
  double peak = 0;
  for (int64_t k = 0; k < d; ++k) {
    const double size = __builtin_fabs(double(line[k]));
    peak = size <= peak ? peak : size;  // keeps a NaN
  }
  if (!(peak > 0)) return peak;
  sum = 0;
  for (int64_t k = 0; k < d; ++k) sum += (double(line[k]) / peak) * (double(line[k]) / peak);
  return peak * __builtin_sqrt(sum);
}

// At least the norm, and hardly more: sums of float squares, where those neither overflow nor vanish. norm_of() in its
// place was 4 % of a step with 128 points and 512 features (AVX2).
template <class T>
double bound_of_norm(const T* line, int64_t d) {
  if (sizeof(T) != 4) return norm_of(line, d);
  Vec<T> sum[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes<T> <= d; k += 4 * kLanes<T>)
    for (int r = 0; r < 4; ++r) {
      const Vec<T> x = load<T>(line + k + r * kLanes<T>);
      sum[r] += x * x;
    }
  const Vec<T> sums = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = 0;
  for (int r = 0; r < kLanes<T>; ++r) total += double(sums[r]);
  if (k > 0 && !(total > 1e-20 && total < 1e30)) return norm_of(line, d);
  for (; k < d; ++k) total += double(line[k]) * double(line[k]);
  // a sum of n float squares is off by a factor of at most 1 + n 2^-24
  return __builtin_sqrt(total * (1 + double(d / (4 * kLanes<T>)+4) * 0x1p-24));
}

inline double inverse_norm(double norm) { return 1 / (norm < kNormEps ? kNormEps : norm); }

// In the precision of the factor.
template <class T, class F>
void scale_row(T* line, int64_t d, F factor) {
  for (int64_t k = 0; k < d; ++k) line[k] = T(F(line[k]) * factor);
}

// From the gradient of the unit row x to that of the row, which has this norm and will be stored as `dtype`; both sides
// of the subtraction in F.
template <class F, class T>
void normalized_gradient(const T* x, int64_t d, double norm, DType dtype, T* g) {
  const double inverse = inverse_norm(norm);
  if (norm < kNormEps) {  // the norm was clamped, so it is a constant
    scale_row(g, d, inverse);
    if (dtype == DType::kFloat16)  // 1 / kNormEps is beyond float16
      for (int64_t k = 0; k < d; ++k) g[k] = g[k] > T(65504) ? T(65504) : g[k] < T(-65504) ? T(-65504) : g[k];
    return;
  }
  const F along = F(dot(x, g, d)), factor = F(inverse);
  for (int64_t k = 0; k < d; ++k) g[k] = T((F(g[k]) - F(x[k]) * along) * factor);
}

// The sums over tiles that gradients of points are made of: direct [points, sum_row] from the points as rows,
// transposed [blocks][width][block] from the points as columns. Either may be null. d_scale, if wanted, is <x_i,
// direct_i>.
template <class T>
struct TileSums {
  const T* direct;
  const T* row_scale;
  bool row_scale_per_row;
  const T* transposed;
  T transposed_scale;
  void* out;
  T* d_scale;
};

struct Layouts {
  bool by_row, panels_t, panels, by_col;
};

// n points of one side. A block is `block` points; the last one is padded with points that are zero.
template <class P>
struct Packed {
  using T = typename P::T;
  using E = typename P::E;

  Matrix z;
  bool normalize;
  int block;
  int64_t blocks, width, row;  // width: padded feature size; row: distance of the rows of by_row
  int64_t sum_row;             // distance of the rows of sums of these features
  Layouts has;
  const T* scale;  // multiplies by_col, and by_row where the product asks for it; null for 1
  bool scale_per_row;
  E *by_row, *panels_t, *panels, *by_col;
  double* norm;
  double max_norm;
  T* lines;  // for each block, room for the points that are packed together

  void lay_out(const ExecutionContext& host, const Matrix& matrix, bool normalized, int block_size, Layouts layouts,
               const T* scales, bool per_row) {
    z = matrix;
    normalize = normalized;
    block = block_size;
    has = layouts;
    scale = scales;
    scale_per_row = per_row;
    blocks = (z.n + block - 1) / block;
    width = round_up(z.d, P::kAlign);
    row = P::kGroup > 1 ? width : P::kSpan ? P::kSpan : odd_lines<E>(width);
    sum_row = odd_lines<T>(width);
    by_row = allocate<E>(host, has.by_row ? row_plane() * P::kPlanes : 0);
    panels_t = allocate<E>(host, has.panels_t ? panels_t_plane() * P::kPlanes : 0);
    panels = allocate<E>(host, has.panels ? panel_plane() * P::kPlanes : 0);
    by_col = allocate<E>(host, has.by_col ? by_col_plane() * P::kPlanes : 0);
    norm = allocate<double>(host, blocks * block);
    lines = allocate<T>(host, blocks * kStripRoom * width);
  }

  void find_max_norm() {
    max_norm = 0;
    for (int64_t i = 0; i < z.n; ++i) {
      const double size = normalize ? norm[i] / (norm[i] < kNormEps ? kNormEps : norm[i]) : norm[i];
      max_norm = size <= max_norm ? max_norm : size;  // keeps a NaN
    }
  }

  // At a distance of 4096 bytes rows would share a set of the cache.
  template <class Element>
  static int64_t odd_lines(int64_t n) {
    const int64_t line = 64 / sizeof(Element), lines = (n + line - 1) / line;
    return (lines % 2 ? lines : lines + 1) * line;
  }

  // The last group of a block is written with the points that 8 would have.
  int64_t by_row_block() const {
    if (P::kSpan) return block * width;
    return round_up(block, P::kGroup) * row + (P::kGroup > 1 ? 64 / sizeof(E) : 0);
  }
  int64_t row_plane() const { return blocks * by_row_block(); }
  int64_t by_col_block() const { return round_up(width, P::kGroup) * block; }
  int64_t by_col_plane() const { return blocks * by_col_block(); }
  int64_t panels_t_block() const { return round_up(block, P::kPanel) * width; }
  int64_t panels_t_plane() const { return blocks * panels_t_block(); }
  int64_t panel_block() const { return round_up(width, P::kPanel) * block; }
  int64_t panel_plane() const { return blocks * panel_block(); }

  // n lines, whole and `pitch` apart, or in pieces.
  static AView<E> lines_as_a(const E* p, int64_t n, int64_t pitch, int64_t plane) {
    constexpr int64_t kGroup = P::kGroup;
    if (P::kSpan) return {p, P::kRows * P::kSpan, P::kSpan, P::kSpan * n, plane};
    return {p, P::kRows * pitch, kGroup > 1 ? 1 : pitch, kGroup, plane};
  }
  AView<E> points_as_a(int64_t b) const { return lines_as_a(by_row + b * by_row_block(), block, row, row_plane()); }
  BView<E> points_as_b(int64_t b) const {  // features along k, points across
    return {panels_t + b * panels_t_block(), width * P::kPanel, int64_t(P::kPanel) * P::kPair, panels_t_plane()};
  }
  BView<E> features_as_b(int64_t b) const {  // points along k, features across
    return {panels + b * panel_block(), int64_t(block) * P::kPanel, int64_t(P::kPanel) * P::kPair, panel_plane()};
  }
  AView<E> features_as_a(int64_t b, int64_t first = 0) const {  // A(first + feature, point)
    AView<E> a = lines_as_a(by_col + b * by_col_block(), width, block, by_col_plane());
    if (P::kGroup > 1)
      a.first = first;
    else
      a.p += first * a.row;
    return a;
  }

  // The point as the logits see it.
  void load_point(int64_t i, T* line) const {
    load_row(z, i, line);
    if (normalize) scale_row(line, z.d, inverse_norm(norm[i]));
  }

  // A strip of points at a time: whole groups, and a block is made of strips and of some times 8 points. The last group
  // is read as 8 points, too.
  static constexpr int kStrip = P::kGroup > 1 ? 24 : 16, kStripRoom = kStrip + 2;

  void pack_block(int64_t b) {
    T* const strip = lines + b * kStripRoom * width;
    for (int first = 0; first < block; first += kStrip) {
      const int n = block - first < kStrip ? block - first : kStrip;
      for (int r = 0; r < n; ++r) load_padded(b * block + first + r, strip + r * width);
      if constexpr (P::kGroup > 1)
        pack_strip(b, first, n, strip);
      else
        pack_halves(b, first, strip);
    }
  }

  T factor(int64_t i) const { return scale && i < z.n ? scale[scale_per_row ? i : 0] : T(1); }

  // A point as the logits see it, and its norm; zeros beyond the last point and feature.
  void load_padded(int64_t i, T* line) const {
    if (i < z.n) {
      load_row(z, i, line);
      norm[i] = normalize ? norm_of(line, z.d) : bound_of_norm(line, z.d);
      if (normalize) scale_row(line, z.d, inverse_norm(norm[i]));
    }
    const int64_t filled = i < z.n ? z.d : 0;
    std::memset(line + filled, 0, sizeof(T) * size_t(width - filled));
  }

  // The strip is lost.
  void pack_strip(int64_t b, int first, int n, T* strip) const {
    constexpr int kGroup = P::kGroup, kPanel = P::kPanel, kAcross = kPanel < 8 ? kPanel : 8;
    for (int r = 0, at = first; has.panels_t && r < n; r += kAcross, at += kAcross)
      copy_across<kAcross, kPanel>(strip + r * width,
                                   panels_t + b * panels_t_block() + at / kPanel * width * kPanel + at % kPanel);
    for (int r = 0; has.panels && r < n; ++r)
      copy_chunks<kPanel>(strip + r * width, width, panels + b * panel_block() + (first + r) * kPanel,
                          int64_t(block) * kPanel);
    for (int r = 0; scale && r < n; ++r) scale_row(strip + r * width, width, factor(b * block + first + r));
    for (int r = 0; has.by_row && r < n; r += kGroup)
      copy_across<8, kGroup>(strip + r * width, by_row + b * by_row_block() + (first + r) * row);
    for (int r = 0; has.by_col && r < n; ++r)
      copy_chunks<kGroup>(strip + r * width, width, by_col + b * by_col_block() + (first + r) * kGroup, kGroup * block);
  }

  // to[k][i], rows kStep apart, is feature k of point i. Of more points than kStep the others are written over by the
  // next feature, and after the last one by who comes next.
  template <int kPoints, int kStep>
  void copy_across(const T* from, T* to) const {
    int64_t k = 0;
    for (; kPoints == 8 && k + 8 <= width; k += 8) transpose8(from + k, width, to + k * kStep, kStep);
    for (; k < width; ++k)
      for (int i = 0; i < kPoints; ++i) to[k * kStep + i] = from[i * width + k];
  }

  template <int kLength>
  static void copy_chunks(const E* line, int64_t n, E* to, int64_t step) {
    int64_t k = 0;
    for (; k + kLength <= n; k += kLength, to += step) std::memcpy(to, line + k, sizeof(E) * kLength);
    if (k < n) std::memcpy(to, line + k, sizeof(E) * size_t(n - k));
  }

  // The same in planes of 16 bits, a chunk of the features at a time: whole panels, or what there is.
  static constexpr int kChunk = 96, kPiece = P::kSpan ? P::kSpan : kChunk;
  void pack_halves(int64_t b, int first, T* strip) const {
    for (int64_t k = 0; k < width; k += kChunk) {
      const int n = int(width - k < kChunk ? width - k : kChunk);
      E rows[P::kPlanes][kStrip][kChunk], pairs[P::kPlanes][kStrip / 2][2 * kChunk];
      auto split = [&] {
        for (int r = 0; r < kStrip; r += 2)
          P::split_rows(strip + r * width + k, width, n, rows[0][r], kChunk, kStrip * kChunk, pairs[0][r / 2],
                        kStrip * kChunk);
      };
      split();
      for (int plane = 0; plane < P::kPlanes; ++plane) {
        E* const of_rows = by_row + plane * row_plane() + b * by_row_block();
        for (int r = 0; has.by_row && r < kStrip; ++r)
          for (int at = 0; at < n; at += kPiece)
            std::memcpy(of_rows + (P::kSpan ? (k + at) * block + (first + r) * kPiece : (first + r) * row + k),
                        &rows[plane][r][at], sizeof(E) * size_t(n < kPiece ? n : kPiece));
        E* const across = panels_t + plane * panels_t_plane() + b * panels_t_block() + k * P::kPanel;
        if (has.panels_t)
          transpose_pairs(kStrip, rows[plane][0], kChunk, n,
                          across + first / P::kPanel * width * P::kPanel + first % P::kPanel * 2, 2 * P::kPanel);
        E* const along = panels + plane * panel_plane() + b * panel_block() + k * block + first * P::kPanel;
        for (int r = 0; has.panels && r < kStrip; r += 2)
          copy_chunks<2 * P::kPanel>(pairs[plane][r / 2], 2 * n, along + r * P::kPanel, int64_t(block) * P::kPanel);
      }
      if (!has.by_col) continue;
      if (scale) {
        for (int r = 0; r < kStrip; ++r) scale_row(strip + r * width + k, n, factor(b * block + first + r));
        split();
      }
      const int64_t span = P::kSpan ? P::kSpan : block;
      E* const of_features = by_col + b * by_col_block() + first / span * span * width + k * span + first % span;
      for (int plane = 0; plane < P::kPlanes; ++plane)
        transpose_pairs(kStrip / 2, pairs[plane][0], 2 * kChunk, 2 * n, of_features + plane * by_col_plane(), span);
    }
  }

  // Lines of n numbers, `from_row` apart, become columns, two numbers at a time.
  static void transpose_pairs(int lines, const E* from, int64_t from_row, int n, E* to, int64_t to_row) {
    for (int k = 0; k < n; k += 16)
      for (int i = 0; i < lines; i += 8)
        transpose8(reinterpret_cast<const T*>(from + i * from_row + k), from_row / 2,
                   reinterpret_cast<T*>(to + k / 2 * to_row + 2 * i), to_row / 2);
  }

  static constexpr int kUnpacked = 8;  // points whose transposed sums are read together
  int64_t unpacking_size() const { return (kUnpacked + 2) * width; }

  // Gradients of the points of a block.
  void unpack_block(int64_t b, const TileSums<T>& sums, T* memory) const {
    T *x = memory, *g = x + width, *transposed = g + width;
    for (int64_t i = b * block; i < (b + 1) * block && i < z.n; ++i) {
      if (sums.transposed && i % kUnpacked == 0) {
        const T* ti = sums.transposed + b * block * width + i % block;
        int64_t k = 0;
        for (; k + 8 <= z.d; k += 8) transpose8(ti + k * block, block, transposed + k, width);
        for (; k < z.d; ++k)
          for (int r = 0; r < kUnpacked; ++r) transposed[r * width + k] = ti[k * block + r];
      }
      if (normalize || sums.d_scale) load_point(i, x);
      const T* di = sums.direct ? sums.direct + i * sum_row : nullptr;
      if (sums.d_scale) sums.d_scale[i] = T(dot(x, di, z.d));
      const T factor = sums.row_scale[sums.row_scale_per_row ? i : 0];
      for (int64_t k = 0; k < z.d; ++k) g[k] = di ? di[k] * factor : T(0);
      if (sums.transposed) {
        const T* ti = transposed + i % kUnpacked * width;
        for (int64_t k = 0; k < z.d; ++k) g[k] += ti[k] * sums.transposed_scale;
      }
      if (normalize) normalized_gradient<double>(x, z.d, norm[i], z.dtype, g);
      store_row(sums.out, z.dtype, i, z.d, g);
    }
  }
};

// Calls body(side, block) for the blocks of one side or of two, in one parallel region. On small problems a second
// region costs as much as its work.
template <class P, class Body>
void for_each_block(const ExecutionContext& host, const Packed<P>& a, const Packed<P>* b, Body body) {
  parallel(host, a.blocks + (b ? b->blocks : 0), a.block * a.width,
           [&](int64_t t) { t < a.blocks ? body(0, t) : body(1, t - a.blocks); });
}

template <class P>
void pack(const ExecutionContext& host, Packed<P>& a, Packed<P>* b) {
  for_each_block<P>(host, a, b, [&](int side, int64_t block) { (side ? b : &a)->pack_block(block); });
  a.find_max_norm();
  if (b) b->find_max_norm();
}

}  // namespace
