// SPDX-License-Identifier: Apache-2.0
// Weights of pairs by integers of their points: a table of two labels, or the number of labels that agree.
#pragma once
#include "tile.h"

namespace {

using pycl::Modifier;

// Integers of the points of one side, one of several each; 0 for those that fill the last block.
template <class T>
void fill_codes(const int64_t* codes, int64_t n, int64_t each, int64_t which, int64_t base, int64_t padded, Int<T>* out,
                int64_t step) {
  for (int64_t i = 0; i < padded; ++i) out[i * step] = i < n ? Int<T>(codes[i * each + which] - base) : Int<T>(0);
}

// Adds table[a_i, b_j]. Rows of a tile with one label share a line of the table, spread over the tile's columns; so do
// their gradients, which then go to the table once for the line and not once for each row.
template <class T>
struct LabelTable final : TileModifier<T> {
  const T* table;  // natural logarithms
  int64_t height, width;
  T unit;
  int64_t n_cols;
  int block, groups;
  bool symmetric;
  Int<T>* col_label;
  int* line;           // of each row, within its block
  Int<T>* line_label;  // of each line
  int* n_lines;        // of each block of rows
  T* lines;            // of each worker
  double* sums;        // of each group, [height, width]

  LabelTable(const Grid& g, const Modifier& m) {
    const pycl::Modifiers& data = g.problem.modifiers;
    table = static_cast<const T*>(data.shared) + m.shared;
    height = m.sizes[0];
    width = m.sizes[1];
    unit = T(g.unit);
    n_cols = g.problem.cols.z.n;
    block = g.block;
    groups = g.groups;
    symmetric = g.problem.symmetric;
    const int64_t m_rows = g.problem.rows.z.n;
    col_label = allocate<Int<T>>(g.host, g.padded_cols());
    Int<T>* label = allocate<Int<T>>(g.host, g.padded_rows());
    fill_codes<T>(data.col_codes, n_cols, data.n_codes, m.code, 0, g.padded_cols(), col_label, 1);
    fill_codes<T>(data.row_codes, m_rows, data.n_codes, m.code, 0, g.padded_rows(), label, 1);
    line = allocate<int>(g.host, g.padded_rows());
    line_label = allocate<Int<T>>(g.host, g.padded_rows());
    n_lines = allocate<int>(g.host, g.row_blocks);
    for (int64_t b = 0; b < g.row_blocks; ++b) number_lines(b, label + b * block, m_rows - b * block);
    lines = allocate<T>(g.host, int64_t(g.workers) * block * block);
    sums = zeros<double>(g.host, g.wants_gradients, groups * height * width);
  }

  void number_lines(int64_t b, const Int<T>* label, int64_t left) {
    Int<T>* found = line_label + b * block;
    int n = 0;
    for (int i = 0; i < block && i < left; ++i) {
      int k = 0;
      while (k < n && found[k] != label[i]) ++k;
      if (k == n) found[n++] = label[i];
      line[b * block + i] = k;
    }
    n_lines[b] = n;
  }

  double bound() const override { return largest(table, height * width); }
  // Entry [a, b] gets the gradients of rows with label a, and [b, a] those of columns that are the rows there.
  bool tells_sides_apart() const override { return symmetric; }
  T* line_of(const Tile<T>& tile, int k) const { return lines + (int64_t(tile.worker) * block + k) * block; }
  int columns(const Tile<T>& tile) const { return n_cols - tile.j0 < block ? int(n_cols - tile.j0) : block; }

  void change(const Tile<T>& tile, const Classes<T>&) const override {
    for (int k = 0; k < n_lines[tile.ib]; ++k) {
      T* spread = line_of(tile, k);
      const T* from = table + int64_t(line_label[tile.i0 + k]) * width;
      for (int j = 0; j < block; ++j) spread[j] = from[col_label[tile.j0 + j]] * unit;
    }
    for (int i = 0; i < tile.rows; ++i) {
      const T* spread = line_of(tile, line[tile.i0 + i]);
      T* l = tile.products + int64_t(i) * block;
      for (int j = 0; j < block; j += kLanes<T>) store<T>(l + j, load<T>(l + j) + load<T>(spread + j));
    }
  }

  void add_gradients(const Tile<T>& tile) const override {
    double* to = sums + tile.group * height * width;
    if (!tile.row_share) {
      add_up(tile, [&](int64_t at) { return load<T>(tile.products + at); });
      return add_lines(tile, to, width, 1);
    }
    add_up(tile, [&](int64_t at) { return load<T>(tile.row_share + at); });
    add_lines(tile, to, width, 1);
    add_up(tile, [&](int64_t at) { return load<T>(tile.products + at) - load<T>(tile.row_share + at); });
    add_lines(tile, to, 1, width);
  }

  template <class Weights>
  void add_up(const Tile<T>& tile, Weights weights) const {
    std::memset(line_of(tile, 0), 0, sizeof(T) * size_t(n_lines[tile.ib]) * block);
    for (int i = 0; i < tile.rows; ++i) {
      T* sum = line_of(tile, line[tile.i0 + i]);
      for (int j = 0; j < block; j += kLanes<T>) store<T>(sum + j, load<T>(sum + j) + weights(int64_t(i) * block + j));
    }
  }

  // To the entries of a row's and a column's label, which are so many steps from the first.
  void add_lines(const Tile<T>& tile, double* to, int64_t row_step, int64_t col_step) const {
    const int n = columns(tile);
    for (int k = 0; k < n_lines[tile.ib]; ++k) {
      const T* sum = line_of(tile, k);
      double* of_line = to + line_label[tile.i0 + k] * row_step;
      for (int j = 0; j < n; ++j) of_line[col_label[tile.j0 + j] * col_step] += double(sum[j]);
    }
  }

  void store_gradients(T*, T*, T* d_shared) const override { store_sums(sums, groups, height * width, d_shared); }
};

// Adds weights[number of labels that agree].
template <class T>
struct AgreementWeights final : TileModifier<T> {
  const T* weights;  // natural logarithms
  int n_labels, groups;
  int64_t padded_cols;
  T* scaled;                 // weights in the unit of the tiles
  Int<T>*row_ids, *col_ids;  // [rows][n_labels] and [n_labels][columns]
  Int<T>* counts;            // of each worker, a row
  double* sums;              // of each group, [n_labels + 1]

  AgreementWeights(const Grid& g, const Modifier& m) {
    const pycl::Modifiers& data = g.problem.modifiers;
    const int64_t m_rows = g.problem.rows.z.n, n = g.problem.cols.z.n;
    weights = static_cast<const T*>(data.shared) + m.shared;
    n_labels = int(m.sizes[0]);
    groups = g.groups;
    padded_cols = g.padded_cols();
    scaled = allocate<T>(g.host, n_labels + 1);
    for (int t = 0; t <= n_labels; ++t) scaled[t] = T(weights[t] * g.unit);
    row_ids = allocate<Int<T>>(g.host, n_labels * g.padded_rows());
    col_ids = allocate<Int<T>>(g.host, n_labels * padded_cols);
    for (int t = 0; t < n_labels; ++t) {
      const int64_t which = m.code + t, base = lowest_code(data, which, m_rows, n);
      fill_codes<T>(data.row_codes, m_rows, data.n_codes, which, base, g.padded_rows(), row_ids + t, n_labels);
      fill_codes<T>(data.col_codes, n, data.n_codes, which, base, padded_cols, col_ids + t * padded_cols, 1);
    }
    counts = allocate<Int<T>>(g.host, int64_t(g.workers) * g.block);
    sums = zeros<double>(g.host, g.wants_gradients, groups * (n_labels + 1));
  }

  static int64_t lowest_code(const pycl::Modifiers& data, int64_t which, int64_t m, int64_t n) {
    int64_t low = data.row_codes[which];
    auto take = [&](int64_t code) { low = code < low ? code : low; };
    for (int64_t i = 0; i < m; ++i) take(data.row_codes[i * data.n_codes + which]);
    for (int64_t j = 0; j < n; ++j) take(data.col_codes[j * data.n_codes + which]);
    return low;
  }

  double bound() const override { return largest(weights, n_labels + 1); }

  // How many labels of a row agree with those of some columns; `ids` are theirs, `next` apart.
  static PYCL_INLINE IVec<T> count(const Int<T>* of_row, const Int<T>* ids, int64_t next, int n) {
    IVec<T> agreeing{};
    for (int t = 0; t < n; ++t) agreeing -= load_int<T>(ids + t * next) == of_row[t];  // true is -1
    return agreeing;
  }

  void change(const Tile<T>& tile, const Classes<T>&) const override {
    const int n = n_labels;
    const int64_t next = padded_cols;
    for (int i = 0; i < tile.rows; ++i) {
      T* l = tile.products + int64_t(i) * tile.block;
      const Int<T>*of_row = row_ids + (tile.i0 + i) * n, *ids = col_ids + tile.j0;
      for (int j = 0; j < tile.block; j += kLanes<T>) {
        const IVec<T> agreeing = count(of_row, ids + j, next, n);
        Vec<T> add = splat<T>(scaled[0]);
        for (int t = 1; t <= n; ++t) add = agreeing == Int<T>(t) ? splat<T>(scaled[t]) : add;
        store<T>(l + j, load<T>(l + j) + add);
      }
    }
  }

  void add_gradients(const Tile<T>& tile) const override {
    const int n = n_labels, block = tile.block;
    const int64_t next = padded_cols;
    Int<T>* agreeing = counts + int64_t(tile.worker) * block;
    double* to = sums + int64_t(tile.group) * (n + 1);
    for (int i = 0; i < tile.rows; ++i) {
      const T* w = tile.products + int64_t(i) * block;
      const Int<T>*of_row = row_ids + (tile.i0 + i) * n, *ids = col_ids + tile.j0;
      for (int j = 0; j < block; j += kLanes<T>) store_int<T>(agreeing + j, count(of_row, ids + j, next, n));
      for (int t = 0; t <= n; ++t) {
        Vec<T> sum{};
        for (int j = 0; j < block; j += kLanes<T>)
          sum += load_int<T>(agreeing + j) == Int<T>(t) ? load<T>(w + j) : Vec<T>{};
        to[t] += double(reduce_add<T>(sum));
      }
    }
  }

  void store_gradients(T*, T*, T* d_shared) const override { store_sums(sums, groups, n_labels + 1, d_shared); }
};

}  // namespace
