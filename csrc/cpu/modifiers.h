// SPDX-License-Identifier: Apache-2.0
// The modifiers of a problem on a tile: its products become logits, and weights of logits become gradients of the
// modifiers' data. One modifier changes a whole tile before the next one does: the tile is in a cache.
#pragma once
#include "limits.h"
#include "pair_mlp.h"
#include "pair_weights.h"

namespace {

using pycl::ModifierKind;

// What makes logits of products: see Tile.
template <class T>
struct Affine {
  T *row_factor, *row_bias, *col_bias;
};

template <class T>
struct TileModifiers {
  const pycl::Modifiers* data = nullptr;
  int count = 0;
  TileModifier<T>* list[pycl::kMostModifiers];
  Affine<T> affine;

  void lay_out(const Grid& g, const Affine<T>& of_products) {
    data = &g.problem.modifiers;
    count = data->count;
    affine = of_products;
    for (int k = 0; k < count; ++k) list[k] = made(g, data->list[k]);
  }

  template <class One>
  static TileModifier<T>* put(const Grid& g, const Modifier& m) {
    return new (allocate<One>(g.host, 1)) One(g, m);
  }
  static TileModifier<T>* made(const Grid& g, const Modifier& m) {
    switch (m.kind) {
      case ModifierKind::kLabelTable:
        return put<LabelTable<T>>(g, m);
      case ModifierKind::kAgreement:
        return put<AgreementWeights<T>>(g, m);
      case ModifierKind::kPairMlp:
        return put<PairMlp<T>>(g, m);
      case ModifierKind::kLimit:
        return put<Limit<T>>(g, m);
      case ModifierKind::kRowShift:
        break;
    }
    return put<RowShift<T>>(g, m);
  }

  double bound() const {
    double sum = 0;
    for (int k = 0; k < count; ++k) sum += list[k]->bound();
    return sum;
  }

  bool tell_sides_apart() const {
    bool any = false;
    for (int k = 0; k < count; ++k) any = any || list[k]->tells_sides_apart();
    return any;
  }

  // Those that read the logits come first. The others add, in any order.
  void change(const Tile<T>& tile, const Classes<T>& classes) const {
    make_logits(tile);
    for (int k = 0; k < count; ++k)
      if (list[k]->reads_logits()) list[k]->change(tile, classes);
    for (int k = 0; k < count; ++k)
      if (!list[k]->reads_logits()) list[k]->change(tile, classes);
  }

  void make_logits(const Tile<T>& tile) const {
    for (int i = 0; i < tile.rows; ++i) {
      const Vec<T> a = splat<T>(affine.row_factor[tile.i0 + i]), b = splat<T>(affine.row_bias[tile.i0 + i]);
      T* l = tile.products + int64_t(i) * tile.block;
      for (int j = 0; j < tile.block; j += kLanes<T>)
        store<T>(l + j, load<T>(l + j) * a + (b + load<T>(affine.col_bias + tile.j0 + j)));
    }
  }

  void add_gradients(const Tile<T>& tile) const {
    for (int k = 0; k < count; ++k) list[k]->add_gradients(tile);
  }

  // See Gradients. Those of constants are 0.
  void store_gradients(const Problem& p, void* out) const {
    const int64_t of_rows = p.rows.z.n * data->row_width, of_cols = p.symmetric ? 0 : p.cols.z.n * data->col_width;
    T *rows = static_cast<T*>(out), *cols = rows + of_rows, *shared = cols + of_cols;
    std::memset(out, 0, sizeof(T) * size_t(of_rows + of_cols + data->n_shared));
    for (int k = 0; k < count; ++k) {
      const Modifier& m = data->list[k];
      list[k]->store_gradients(rows + m.row_value, cols + m.col_value, shared + m.shared);
    }
  }
};

}  // namespace
