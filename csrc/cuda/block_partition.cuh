// SPDX-License-Identifier: Apache-2.0
// What one block of a launch owns: rows of its team, columns of its own, and how both come to it and to its threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "plan.h"
#include "sinkhorn.h"

namespace pycl {
namespace {

template <class S>
using AccumulatorOf = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

template <class A>
__device__ A minus_infinity() {
  return -static_cast<A>(INFINITY);
}

__device__ inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

// Rows of scores, on chip or in global memory.
template <class S>
struct Tile {
  const S* scores;
  int64_t stride, first;  // the first row's place among those of the team
  int rows;

  __device__ const S* row(int r) const { return scores + r * stride; }
};

// N columns are one vector, the unit of a thread. Scores are staged in shared memory or read where they are.
template <class S, int N, bool kStaged>
struct BlockPartition {
  using A = AccumulatorOf<S>;
  static constexpr int kChunk = kStaged ? 16 / sizeof(A) : N;  // columns that lie together in an array over columns

  const PyclSinkhorn& problem;
  const PyclSinkhornPlan& plan;
  int team, rank;  // rank: of the block in its team
  int64_t first_row, rows, tiles;
  int64_t first_column;
  int columns, vectors;
  const S* scores;
  S* slots;
  int64_t fetched = 0;  // turns

  __device__ BlockPartition(const PyclSinkhorn& problem, const PyclSinkhornPlan& plan) : problem(problem), plan(plan) {
    const int64_t n = problem.n_samples, k = problem.n_prototypes;
    team = blockIdx.x / plan.cluster;
    rank = blockIdx.x % plan.cluster;
    first_row = n * team / plan.teams;
    rows = n * (team + 1) / plan.teams - first_row;
    tiles = (rows + plan.tile_rows - 1) / plan.tile_rows;
    first_column = smaller(k, int64_t{rank} * plan.slice);
    columns = static_cast<int>(smaller(k - first_column, plan.slice));
    vectors = (columns + N - 1) / N;
    scores = static_cast<const S*>(problem.scores) + first_row * problem.row_stride + first_column;
    slots = reinterpret_cast<S*>(shared_memory() + SharedLayout(plan, sizeof(S), sizeof(A)).tiles);
  }

  // Calls step(tile, is_first) for all tiles of one read of the scores. The reads are numbered.
  template <class Step>
  __device__ void sweep(int number, Step step) {
    const bool whole = kStaged && plan.resident && number > 0;  // everything is on chip, one tile to the steps
    for (int64_t t = 0; t < (whole ? 1 : tiles); ++t) {
      const int64_t first = t * plan.tile_rows;
      Tile<S> tile{scores + first * problem.row_stride, problem.row_stride, first, rows_of_tile(t)};
      if (kStaged) {
        const int64_t turn = number * tiles + t;
        if (!whole) {
          for (; fetched <= turn + 1; ++fetched) fetch(fetched);
          copy_wait<1>();
          __syncthreads();
        }
        tile.scores = whole ? slots : slot(turn);
        tile.stride = plan.slice;
        if (whole) tile.rows = static_cast<int>(rows);
      }
      step(tile, t == 0);
      __syncthreads();  // before the slot is filled again
    }
  }

  __device__ int rows_of_tile(int64_t t) const {
    return static_cast<int>(smaller(rows - t * plan.tile_rows, plan.tile_rows));
  }

  __device__ S* slot(int64_t turn) const {
    return slots + turn % plan.slots * plan.tile_rows * static_cast<int64_t>(plan.slice);
  }

  // Start to copy the tile of a turn, if there is one that is not on chip. The tiles of all sweeps are one sequence, so
  // that the first tile of the next sweep comes while the blocks wait for each other.
  __device__ void fetch(int64_t turn) const {
    if (turn < tiles * (plan.resident ? 1 : int64_t{problem.iterations} + 1)) {
      if (plan.copy_bytes == 16) {
        copy_tile<16>(turn);
      } else if (plan.copy_bytes == 8) {
        copy_tile<8>(turn);
      } else if (plan.copy_bytes == 4) {
        copy_tile<4>(turn);
      } else {
        copy_tile<0>(turn);
      }
    }
    copy_commit();
  }

  template <int kBytes>
  __device__ void copy_tile(int64_t turn) const {
    constexpr int kWidth = kBytes / static_cast<int>(sizeof(S));
    const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
    const int64_t t = turn % tiles;
    const S* const tile = scores + t * plan.tile_rows * problem.row_stride;
    S* const room = slot(turn);
    for (int r = threadIdx.x / kWarp; r < rows_of_tile(t); r += warps) {
      const S* const from = tile + r * problem.row_stride;
      S* const to = room + r * int64_t{plan.slice};
      int done = 0;
      if constexpr (kWidth > 0) {
        const int whole = columns / kWidth;
#pragma unroll 2
        for (int i = lane; i < whole; i += kWarp) copy_async<kBytes>(to + i * kWidth, from + i * kWidth);
        done = whole * kWidth;
      }
#pragma unroll 1
      for (int c = done + lane; c < vectors * N; c += kWarp) {
        if (c < columns) {
          to[c] = from[c];
        } else {
          narrow(minus_infinity<A>(), to + c);  // weighs nothing, so that whole vectors need no bound
        }
      }
    }
  }

  template <int M>
  __device__ static void load_scores(const S* row, int vector, A (&x)[M]) {
    const auto pack = reinterpret_cast<const Pack<S, M>*>(row)[vector];
#pragma unroll
    for (int i = 0; i < M; ++i) x[i] = widen(pack.at[i]);
  }

  // Where a column's entry is in an array over the columns. In shared memory chunks of 16 bytes of neighbouring
  // vectors lie side by side: the banks serve a warp that reads one chunk of each vector without a conflict.
  __device__ int place(int column) const {
    if (!kStaged) return column;
    const int vector = column / N, i = column % N;
    return (i / kChunk * (plan.slice / N) + vector) * kChunk + i % kChunk;
  }

  __device__ void load(const A* array, int vector, A (&x)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i += kChunk) {
      const auto chunk = *reinterpret_cast<const Pack<A, kChunk>*>(array + place(vector * N + i));
#pragma unroll
      for (int j = 0; j < kChunk; ++j) x[i + j] = chunk.at[j];
    }
  }

  __device__ void store(A* array, int vector, const A (&x)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i += kChunk) {
      Pack<A, kChunk> chunk;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) chunk.at[j] = x[i + j];
      *reinterpret_cast<Pack<A, kChunk>*>(array + place(vector * N + i)) = chunk;
    }
  }

  // Calls step(vector, group) for this thread's vectors and the group of rows that it adds up.
  template <class Step>
  __device__ void own_vectors(Step step) const {
    if (plan.groups == 1) {
      for (int vector = threadIdx.x; vector < vectors; vector += blockDim.x) step(vector, 0);
    } else if (vectors > 0 && static_cast<int>(threadIdx.x) / vectors < plan.groups) {
      step(static_cast<int>(threadIdx.x) % vectors, static_cast<int>(threadIdx.x) / vectors);
    }
  }

  // Calls step(row, part, first, stride) with the vectors of this thread's part of a row. Whole warps call it equally
  // often: the row is negative where there is none.
  template <class Step>
  __device__ void own_parts(int n_rows, Step step) const {
    const int lanes = plan.lanes, parts = plan.parts;
    const int lane = threadIdx.x % lanes;
    for (int first = 0; first < n_rows * parts; first += blockDim.x / lanes) {
      const int task = first + threadIdx.x / lanes;
      const int part = task % parts;
      step(task < n_rows * parts ? task / parts : -1, part, part * lanes + lane, parts * lanes);
    }
  }
};

}  // namespace
}  // namespace pycl
