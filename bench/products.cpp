// SPDX-License-Identifier: Apache-2.0
// The three products of a step alone, as the kernels have them: S = X Y^T, W Y and X^T W over the tiles of two packed
// sides. Compiled by products.py, for the instruction set that its flags name.
#define PYCL_VECTOR_BYTES PRODUCTS_VECTOR_BYTES
#include <cstdlib>

#include "isa.h"

namespace {

using P = FmaProduct<float>;

void* allocate_here(const ExecutionContext&, size_t bytes) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }
void run_here(const ExecutionContext&, int tasks, void (*body)(void*, int), void* arg) {
  for (int task = 0; task < tasks; ++task) body(arg, task);
}

struct Sides {
  Packed<P> x, y;
  int block;
  float *tile, *direct, *transposed;
};

}  // namespace

extern "C" Sides* sides_of(const float* x, const float* y, int64_t n, int64_t d, int block) {
  ExecutionContext host{};
  host.threads = 1;
  host.run = run_here;
  host.allocate = allocate_here;
  auto* sides = new Sides{};
  sides->block = block;
  sides->x.lay_out(host, {x, n, d, d, 1, DType::kFloat32}, false, block, {true, false, false, true}, nullptr, false);
  sides->y.lay_out(host, {y, n, d, d, 1, DType::kFloat32}, false, block, {false, true, true, false}, nullptr, false);
  pack<P>(host, sides->x, &sides->y);
  sides->tile = allocate<float>(host, int64_t(block) * block);
  for (int k = 0; k < block * block; ++k) sides->tile[k] = 0.01f;
  sides->direct = allocate<float>(host, sides->x.blocks * block * sides->y.sum_row);
  sides->transposed = allocate<float>(host, sides->y.blocks * block * sides->x.width);
  return sides;
}

// One of the products over all tiles; the blocks of rows first, first + step, ...
extern "C" void multiply_tiles(Sides* s, int which, int first, int step) {
  const int block = s->block, width = int(s->x.width);
  const P::Weights weights = P::weights(s->tile, nullptr, block);
  for (int64_t ib = first; ib < s->x.blocks; ib += step)
    for (int64_t jb = 0; jb < s->y.blocks; ++jb)
      if (which == 0)
        P::multiply(s->x.points_as_a(ib), s->y.points_as_b(jb), block, block, width, s->tile, block, false);
      else if (which == 1)
        P::multiply(weights.as_a(), s->y.features_as_b(jb), block, width, block, s->direct + ib * block * s->y.sum_row,
                    s->y.sum_row, true);
      else
        P::multiply(s->x.features_as_a(ib), weights.as_b(), width, block, block, s->transposed + jb * block * width,
                    block, true);
}
