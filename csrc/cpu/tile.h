// SPDX-License-Identifier: Apache-2.0
// One block x block tile, and what its loops and those of the modifiers know of the sweep that it is from.
#pragma once
#include "labels.h"

namespace {

// Logits in units of log 2 are row_factor[i] * products[i][j] + row_bias[i] + col_bias[j].
template <class T>
struct Tile {
  int worker;       // who visits it, and has memory of its own
  int group;        // sums over all tiles are kept apart by it: it decides their order, whoever visits
  int64_t ib, jb;   // blocks
  int64_t i0, j0;   // first row and column
  int rows, block;  // rows < block at the lower edge; columns beyond the last have a bias of -inf
  TileKind kind;
  bool both_sides;  // columns take their share, too; false on the diagonal of a symmetric problem
  T* products;
  const T* kept = nullptr;  // where products of an earlier sweep are, if they are not in `products`
  T* row_share = nullptr;   // dL/dl of the rows' share alone, where a modifier wants the two apart

  const T* found() const { return kept ? kept : products; }

  Tile with_products(T* others) const {
    Tile tile = *this;
    tile.products = others;
    tile.kept = nullptr;
    return tile;
  }

  Tile of_rows_alone() const {
    Tile tile = with_products(row_share);
    tile.both_sides = false;
    return tile;
  }
};

struct Grid {
  const Problem& problem;
  const ExecutionContext& host;
  int block, workers, groups;
  int64_t row_blocks, col_blocks;
  double unit;           // tiles hold logits in nats times this
  bool wants_gradients;  // gradients of the modifiers' data

  int64_t padded_rows() const { return row_blocks * block; }
  int64_t padded_cols() const { return col_blocks * block; }
};

// A modifier of the logits of pairs.
template <class T>
struct TileModifier {
  static void* operator new(size_t, void* memory) { return memory; }  // in memory of the call, and never destroyed
  // The most that it adds to a logit or takes from one, in nats, where it does not drop the pair.
  virtual double bound() const { return 0; }
  // Whether it reads the tile's logits, and so comes before those that change them.
  virtual bool reads_logits() const { return false; }
  // Whether a pair in its two roles, in one tile of a symmetric problem, has different numbers.
  virtual bool tells_sides_apart() const { return false; }
  virtual void change(const Tile<T>&, const Classes<T>&) const = 0;
  // Adds up the gradients of its data from the tile's dL/dl.
  virtual void add_gradients(const Tile<T>&) const {}
  // To the first of its own numbers in an output laid out as the data.
  virtual void store_gradients(T*, T*, T*) const {}
};

template <class T>
T* zeros(const ExecutionContext& host, bool wanted, int64_t n) {
  if (!wanted) return nullptr;
  T* x = allocate<T>(host, n);
  const int64_t chunk = 1 << 16, chunks = (n + chunk - 1) / chunk;
  parallel(host, chunks, chunk, [&](int64_t c) {
    std::memset(x + c * chunk, 0, sizeof(T) * size_t(c + 1 < chunks ? chunk : n - c * chunk));
  });
  return x;
}

// n numbers of every group, added in the order of the groups, to an output.
template <class T>
void store_sums(const double* sums, int groups, int64_t n, T* out) {
  for (int64_t k = 0; k < n; ++k) {
    double sum = 0;
    for (int group = 0; group < groups; ++group) sum += sums[group * n + k];
    out[k] = T(sum);
  }
}

// The largest size of some numbers. A NaN is kept, and -inf is a pair that is dropped.
template <class T>
double largest(const T* x, int64_t n) {
  double most = 0;
  for (int64_t k = 0; k < n; ++k) {
    const double size = __builtin_fabs(double(x[k]));
    if (x[k] != -kInf<T>) most = size <= most ? most : size;
  }
  return most;
}

}  // namespace
