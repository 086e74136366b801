// SPDX-License-Identifier: Apache-2.0
// Pair classes: ids and views in the width of a lane, the classes that can occur in a tile, and the class of each pair.
#pragma once
#include "pack.h"

namespace {

using pycl::Problem;
using pycl::Side;

// Integers of the points of one side, and their range in every block.
template <class T>
struct Attribute {
  Int<T>* value;
  Int<T>*low, *high;  // per block

  // Where `source` is null, `numbered` gives each point its number.
  template <class Numbered>
  void fill(const ExecutionContext& host, const int64_t* source, Numbered numbered, int64_t n, int64_t base,
            int block) {
    const auto at = [&](int64_t i) { return Int<T>(source ? source[i] - base : numbered(i)); };
    const int64_t blocks = (n + block - 1) / block;
    value = allocate<Int<T>>(host, blocks * block);
    low = allocate<Int<T>>(host, blocks);
    high = allocate<Int<T>>(host, blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t start = b * block, stop = start + block < n ? start + block : n;
      low[b] = high[b] = at(start);
      for (int64_t i = start; i < start + block; ++i) {
        value[i] = i < stop ? at(i) : 0;
        if (i < stop) low[b] = value[i] < low[b] ? value[i] : low[b];
        if (i < stop) high[b] = value[i] > high[b] ? value[i] : high[b];
      }
    }
  }
};

inline int64_t lowest(const int64_t* a, int64_t n, const int64_t* b, int64_t m) {
  if (!a) return 0;
  int64_t low = a[0];
  for (int64_t i = 0; i < n; ++i) low = a[i] < low ? a[i] : low;
  for (int64_t i = 0; i < m; ++i) low = b[i] < low ? b[i] : low;
  return low;
}

template <class T>
struct Labels {
  Attribute<T> ids, views;

  void fill(const ExecutionContext& host, const Side& side, int64_t id_base, int64_t view_base, int block) {
    const uint32_t instances = uint32_t(side.instances);  // 31 bits are enough, and 64 would divide slower
    ids.fill(host, side.ids, [=](int64_t i) { return uint32_t(i) % instances; }, side.z.n, id_base, block);
    views.fill(host, side.views, [=](int64_t i) { return uint32_t(i) / instances; }, side.z.n, view_base, block);
  }
};

enum class TileKind { kSkip, kFull, kPartial };  // full: every pair is in the first set, none is a positive

template <class T>
struct Classes {
  Labels<T> rows, cols;
  uint32_t pairs, positives;
  bool has_self;
  int64_t offset, n_rows, n_cols;
  int block;

  void fill(const ExecutionContext& host, const Problem& p, int block_size) {
    block = block_size;
    pairs = p.pairs;
    positives = p.positives;
    has_self = p.has_self;
    offset = p.offset;
    n_rows = p.rows.z.n;
    n_cols = p.cols.z.n;
    const int64_t id_base = lowest(p.rows.ids, n_rows, p.cols.ids, n_cols);
    const int64_t view_base = lowest(p.rows.views, n_rows, p.cols.views, n_cols);
    rows.fill(host, p.rows, id_base, view_base, block);
    if (p.symmetric)
      cols = rows;
    else
      cols.fill(host, p.cols, id_base, view_base, block);
  }

  // The union of the classes that pairs of the tile can have, from the ranges of its sides.
  uint32_t possible(int64_t ib, int64_t jb) const {
    auto overlap = [&](const Attribute<T>& a, const Attribute<T>& b) {
      return a.low[ib] <= b.high[jb] && b.low[jb] <= a.high[ib];
    };
    auto uniform = [&](const Attribute<T>& a, const Attribute<T>& b) {
      return a.low[ib] == a.high[ib] && b.low[jb] == b.high[jb] && a.low[ib] == b.low[jb];
    };
    uint32_t by_view_pos = 0, by_view_neg = 0;
    if (overlap(rows.views, cols.views)) by_view_pos |= pycl::kPosSameView, by_view_neg |= pycl::kNegSameView;
    if (!uniform(rows.views, cols.views)) by_view_pos |= pycl::kPosOtherView, by_view_neg |= pycl::kNegOtherView;
    uint32_t classes = 0;
    if (overlap(rows.ids, cols.ids)) classes |= by_view_pos;
    if (!uniform(rows.ids, cols.ids)) classes |= by_view_neg;
    const int64_t first = ib * block + offset, last = first + block - 1;
    if (has_self && first <= jb * block + block - 1 && jb * block <= last) classes |= pycl::kSelf;
    return classes;
  }

  TileKind kind(int64_t ib, int64_t jb) const {
    const uint32_t classes = possible(ib, jb);
    if (!(classes & (pairs | positives))) return TileKind::kSkip;
    return (classes & ~pairs) || (classes & positives) ? TileKind::kPartial : TileKind::kFull;
  }

  // The classes of row i with the lanes of columns [j, j + lanes); 0 beyond the last column.
  struct Row {
    Int<T> id, view, self;
  };
  Row row(int64_t i, int64_t jb) const {
    const int64_t self = i + offset - jb * block;  // relative to the tile, so that it fits the lane
    return {rows.ids.value[i], rows.views.value[i], Int<T>(has_self && self >= 0 && self < block ? self : -1)};
  }
  PYCL_INLINE IVec<T> of(const Row& row, int64_t jb, int j) const {
    const IVec<T> id = load_int<T>(cols.ids.value + jb * block + j),
                  view = load_int<T>(cols.views.value + jb * block + j);
    const IVec<T> position = lane_index<T>() + Int<T>(j);
    const IVec<T> zero{};
    const auto all = [&](pycl::PairClass c) { return zero + Int<T>(c); };
    const IVec<T> pos = view == row.view ? all(pycl::kPosSameView) : all(pycl::kPosOtherView);
    const IVec<T> neg = view == row.view ? all(pycl::kNegSameView) : all(pycl::kNegOtherView);
    IVec<T> cls = id == row.id ? pos : neg;
    cls = position == row.self ? all(pycl::kSelf) : cls;
    const int64_t left = n_cols - jb * block;
    return position < Int<T>(left < block ? left : block) ? cls : zero;
  }
};

}  // namespace
