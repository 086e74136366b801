// SPDX-License-Identifier: Apache-2.0
// Drops pairs outside of the positives whose value is above a limit of their row or of their column. The value is the
// logit, or a guide's product of the same tile.
#pragma once
#include "tile.h"

namespace {

using pycl::Modifier;

template <class T>
struct Limit final : TileModifier<T> {
  using Guide = FmaProduct<T>;  // a limit is a step: a guide is taken as exactly as it is given

  T *of_rows, *of_cols;
  bool guided;
  int block;
  Packed<Guide> g, h;
  T* products;  // of the guide, a tile of each worker

  Limit(const Grid& grid, const Modifier& m) {
    const pycl::Modifiers& data = grid.problem.modifiers;
    const T *rows = static_cast<const T*>(data.row_values) + m.row_value,
            *cols = static_cast<const T*>(data.col_values) + m.col_value;
    const int64_t m_rows = grid.problem.rows.z.n, n = grid.problem.cols.z.n, features = m.sizes[0];
    block = grid.block;
    guided = features > 0;
    const T unit = guided ? T(1) : T(grid.unit);
    of_rows = allocate<T>(grid.host, grid.padded_rows());
    of_cols = allocate<T>(grid.host, grid.padded_cols());
    for (int64_t i = 0; i < grid.padded_rows(); ++i) of_rows[i] = i < m_rows ? rows[i * data.row_width] * unit : T(0);
    for (int64_t j = 0; j < grid.padded_cols(); ++j) of_cols[j] = j < n ? cols[j * data.col_width] * unit : T(0);
    products = allocate<T>(grid.host, guided ? int64_t(grid.workers) * block * block : 0);
    if (!guided) return;
    const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
    g.lay_out(grid.host, {rows + 1, m_rows, features, data.row_width, 1, dtype}, false, block,
              {true, false, false, false}, nullptr, false);
    h.lay_out(grid.host, {cols + 1, n, features, data.col_width, 1, dtype}, false, block, {false, true, false, false},
              nullptr, false);
    pack<Guide>(grid.host, g, &h);
  }

  bool reads_logits() const override { return !guided; }

  void change(const Tile<T>& tile, const Classes<T>& classes) const override {
    const T* values = tile.products;
    if (guided) {
      T* to = products + int64_t(tile.worker) * block * block;
      Guide::multiply(g.points_as_a(tile.ib), h.points_as_b(tile.jb), block, block, int(g.width), to, block, false);
      values = to;
    }
    const bool spares = tile.kind == TileKind::kPartial && classes.positives;
    spares ? drop<true>(tile, classes, values) : drop<false>(tile, classes, values);
  }

  template <bool kSpares>
  void drop(const Tile<T>& tile, const Classes<T>& classes, const T* values) const {
    for (int i = 0; i < tile.rows; ++i) {
      const auto row = classes.row(tile.i0 + i, tile.jb);
      const Vec<T> most = splat<T>(of_rows[tile.i0 + i]);
      T* l = tile.products + int64_t(i) * block;
      for (int j = 0; j < block; j += kLanes<T>) {
        const Vec<T> value = load<T>(values + int64_t(i) * block + j);
        IVec<T> above = (value > most) | (value > load<T>(of_cols + tile.j0 + j));
        if (kSpares) above &= (classes.of(row, tile.jb, j) & Int<T>(classes.positives)) == 0;
        store<T>(l + j, above ? splat<T>(-kInf<T>) : load<T>(l + j));
      }
    }
  }
};

// Adds a number of the row, which is a constant. It serves sums that need no bound.
template <class T>
struct RowShift final : TileModifier<T> {
  T* shift;
  int block;

  RowShift(const Grid& g, const Modifier& m) {
    const pycl::Modifiers& data = g.problem.modifiers;
    const T* values = static_cast<const T*>(data.row_values) + m.row_value;
    block = g.block;
    shift = allocate<T>(g.host, g.padded_rows());
    for (int64_t i = 0; i < g.problem.rows.z.n; ++i) shift[i] = T(values[i * data.row_width] * g.unit);
  }

  void change(const Tile<T>& tile, const Classes<T>&) const override {
    for (int i = 0; i < tile.rows; ++i) {
      const Vec<T> add = splat<T>(shift[tile.i0 + i]);
      T* l = tile.products + int64_t(i) * block;
      for (int j = 0; j < block; j += kLanes<T>) store<T>(l + j, load<T>(l + j) + add);
    }
  }
};

}  // namespace
