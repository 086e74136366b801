// SPDX-License-Identifier: Apache-2.0
// Sinkhorn's iterations in one launch: see docs/gpu-kernels.md. Include the device's words first, device.cuh.
//
// Logits and potentials are in units of log 2 until they are written out.
#pragma once
#include "block_partition.cuh"

namespace pycl {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// What to subtract from exponents whose maximum is x: nothing, where all of them are minus infinity.
template <class A>
__device__ A shift_of(A x) {
  return x == minus_infinity<A>() ? A(0) : x;
}

// What was added is sum 2^max; a NaN shows in the sum.
template <class A>
struct LogSum {
  A max = minus_infinity<A>(), sum = 0;

  template <int M>
  __device__ void add(const A (&logits)[M]) {
    A top = max;
#pragma unroll
    for (int i = 0; i < M; ++i) top = larger(top, logits[i]);
    const A shift = shift_of(top);
    sum *= exp_2(max - shift);
#pragma unroll
    for (int i = 0; i < M; ++i) sum += exp_2(logits[i] - shift);
    max = top;
  }

  // Over the lanes whose numbers differ in the bits below a power of two.
  __device__ void merge_lanes(int lanes) {
    A top = max;
    for (int mask = lanes / 2; mask > 0; mask /= 2) top = larger(top, from_lane_xor(top, mask));
    sum *= exp_2(max - shift_of(top));
    for (int mask = lanes / 2; mask > 0; mask /= 2) sum += from_lane_xor(sum, mask);
    max = top;
  }
};

template <class S, int N, bool kStaged>
class Sinkhorn {
  using A = AccumulatorOf<S>;

 public:
  __device__ Sinkhorn(const PyclSinkhorn& problem, const PyclSinkhornPlan& plan, void* workspace)
      : problem_(problem), plan_(plan), partition_(problem, plan), scale_(static_cast<A>(kLog2E / problem.epsilon)) {
    char* const shared = shared_memory();
    const SharedLayout at(plan, sizeof(S), sizeof(A));
    stats_ = reinterpret_cast<A*>(shared + at.stats);
    row_terms_ = reinterpret_cast<A*>(shared + at.row_terms);
    scratch_ = reinterpret_cast<A*>(shared + at.scratch);

    const int64_t pitch = workspace_pitch(problem.n_prototypes);
    new_potential_ = static_cast<A*>(workspace);
    all_sums_ = new_potential_ + pitch;
    all_maxima_ = all_sums_ + plan.teams * pitch;
    team_sums_ = all_sums_ + partition_.team * pitch + partition_.first_column;
    team_maxima_ = all_maxima_ + partition_.team * pitch + partition_.first_column;
    if (kStaged) {
      potential_ = maxima_ = reinterpret_cast<A*>(shared + at.potential);
      sums_ = reinterpret_cast<A*>(shared + at.sums);
    } else {
      potential_ = new_potential_ + partition_.first_column;
      maxima_ = team_maxima_;
      sums_ = team_sums_;
    }
  }

  __device__ void run() {
    const int iterations = problem_.iterations;
    for (int read = 0; read <= iterations; ++read) {
      partition_.sweep(read, [=](const Tile<S>& tile, bool is_first) {
        if (read == 0) {
          first_column_step(tile, is_first);
          return;
        }
        row_step(tile, read == iterations);
        if (read < iterations) {
          column_step(tile, is_first);
        } else {
          write_codes(tile);
        }
      });
      if (read < iterations) prototype_step(read == 0, read + 1 == iterations);
    }
    if (plan_.cluster > 1) cluster_barrier();  // others may still read this block's shared memory
  }

 private:
  // Maxima and sums over the rows of 2^L: there is no potential yet that bounds L.
  __device__ void first_column_step(const Tile<S>& tile, bool is_first) {
    partition_.own_vectors([&](int vector, int group) {
      A before[N], top[N], sum[N], x[N];
      A* const maxima = maxima_ + group * plan_.slice;
      A* const sums = sums_ + group * plan_.slice;
      if (is_first) {
#pragma unroll
        for (int i = 0; i < N; ++i) before[i] = minus_infinity<A>(), sum[i] = 0;
      } else {
        partition_.load(maxima, vector, before);
        partition_.load(sums, vector, sum);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) top[i] = before[i];
#pragma unroll 2
      for (int r = group; r < tile.rows; r += plan_.groups) {
        partition_.load_scores(tile.row(r), vector, x);
#pragma unroll
        for (int i = 0; i < N; ++i) top[i] = larger(top[i], x[i] * scale_);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] *= exp_2(before[i] - shift_of(top[i]));
#pragma unroll 2
      for (int r = group; r < tile.rows; r += plan_.groups) {
        partition_.load_scores(tile.row(r), vector, x);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += exp_2(multiply_add(x[i], scale_, -shift_of(top[i])));
      }
      partition_.store(maxima, vector, top);
      partition_.store(sums, vector, sum);
    });
  }

  // Sums over the rows of 2^(L + v + u). They need no maximum: with the u before, a column's terms add up to B m_k, and
  // u has since fallen by no more than -log a_b, so that with uniform marginals a sum is between 1 / K and B.
  __device__ void column_step(const Tile<S>& tile, bool is_first) {
    partition_.own_vectors([&](int vector, int group) {
      A potential[N], sum[N], x[N];
      A* const sums = sums_ + group * plan_.slice;
      partition_.load(potential_, vector, potential);
      if (is_first) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] = 0;
      } else {
        partition_.load(sums, vector, sum);
      }
#pragma unroll 2
      for (int r = group; r < tile.rows; r += plan_.groups) {
        const A u = row_terms_[r];
        partition_.load_scores(tile.row(r), vector, x);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += exp_2(multiply_add(x[i], scale_, potential[i] + u));
      }
      partition_.store(sums, vector, sum);
    });
  }

  // u = log(B a) - LSE_k(L + v) of the rows of a tile, to row_terms_. The last sweep writes it out and keeps -LSE.
  __device__ void row_step(const Tile<S>& tile, bool is_last) {
    A* const maxima = stats_ + row_steps_ % 2 * 2 * plan_.row_capacity * plan_.parts;
    A* const sums = maxima + plan_.row_capacity * plan_.parts;
    ++row_steps_;
    partition_.own_parts(tile.rows, [&](int r, int part, int first, int stride) {
      LogSum<A> total;
      if (r >= 0) {
        const S* const row = tile.row(r);
        for (int vector = first; vector < partition_.vectors; vector += stride) {
          A x[N], potential[N];
          partition_.load_scores(row, vector, x);
          partition_.load(potential_, vector, potential);
#pragma unroll
          for (int i = 0; i < N; ++i) x[i] = multiply_add(x[i], scale_, potential[i]);
          total.add(x);
        }
      }
      total.merge_lanes(plan_.lanes);
      if (r >= 0 && threadIdx.x % plan_.lanes == 0) {
        maxima[r * plan_.parts + part] = total.max;
        sums[r * plan_.parts + part] = total.sum;
      }
    });
    // One barrier a step: the next step writes the other buffer, and the one after it waits for all to have read.
    if (plan_.cluster > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
    for (int r = threadIdx.x; r < tile.rows; r += blockDim.x) {
      const A lse = merge_parts(maxima, sums, r * plan_.parts);
      const int64_t row = partition_.first_row + tile.first + r;
      const A target = target_of(problem_.sample_target, row);
      row_terms_[r] = is_last ? -lse : target - lse;
      if (is_last && partition_.rank == 0) static_cast<A*>(problem_.u)[row] = (target - lse) * static_cast<A>(kLn2);
    }
    __syncthreads();
  }

  // The logarithm of a row's sum over its parts in all blocks of the cluster.
  __device__ A merge_parts(A* maxima, A* sums, int row) const {
    const bool alone = plan_.cluster == 1;
    A top = minus_infinity<A>(), sum = 0;
    for (int rank = 0; rank < plan_.cluster; ++rank) {
      const A* const tops = alone ? maxima : in_block(maxima, rank);
      for (int part = row; part < row + plan_.parts; ++part) top = larger(top, tops[part]);
    }
    const A shift = shift_of(top);
    for (int rank = 0; rank < plan_.cluster; ++rank) {
      const A* const tops = alone ? maxima : in_block(maxima, rank);
      const A* const theirs = alone ? sums : in_block(sums, rank);
      for (int part = row; part < row + plan_.parts; ++part) sum += theirs[part] * exp_2(tops[part] - shift);
    }
    return shift + log_2(sum);
  }

  __device__ static A target_of(const void* targets, int64_t i) {
    return targets ? static_cast<const A*>(targets)[i] * static_cast<A>(kLog2E) : A(0);
  }

  // From the sums of all teams to the potential of this block's columns.
  __device__ void prototype_step(bool is_first, bool is_last) {
    if (kStaged) publish(is_first);
    grid_barrier();
    reduce_teams(is_first, is_last);
    grid_barrier();
    if (kStaged) {
      for (int c = threadIdx.x; c < partition_.vectors * N; c += blockDim.x) {
        potential_[partition_.place(c)] =
            c < partition_.columns ? load_fresh(new_potential_ + partition_.first_column + c) : A(0);
      }
      __syncthreads();
    }
  }

  // The groups' sums, added up, to the workspace.
  __device__ void publish(bool is_first) {
    for (int c = threadIdx.x; c < partition_.columns; c += blockDim.x) {
      const int at = partition_.place(c);
      A top = minus_infinity<A>(), sum = 0;
      if (is_first) {
        for (int group = 0; group < plan_.groups; ++group) top = larger(top, maxima_[group * plan_.slice + at]);
        team_maxima_[c] = top;
      }
      for (int group = 0; group < plan_.groups; ++group) {
        const A part = sums_[group * plan_.slice + at];
        sum += is_first ? part * exp_2(maxima_[group * plan_.slice + at] - shift_of(top)) : part;
      }
      team_sums_[c] = sum;
    }
  }

  // v = log(B m) - LSE_b(L + u), 32 columns at a time: each warp adds up some of the teams.
  __device__ void reduce_teams(bool is_first, bool is_last) {
    const int64_t k = problem_.n_prototypes, pitch = workspace_pitch(k);
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    for (int64_t first = int64_t{blockIdx.x} * kWarp; first < k; first += int64_t{gridDim.x} * kWarp) {
      const int64_t column = first + threadIdx.x % kWarp;
      const int teams = column < k ? plan_.teams : 0;
      A shift = 0, sum = 0;
      if (is_first) {
        A top = minus_infinity<A>();
#pragma unroll 4
        for (int team = warp; team < teams; team += warps) {
          top = larger(top, load_fresh(all_maxima_ + team * pitch + column));
        }
        shift = shift_of(over_warps(top, [](A x, A y) { return larger(x, y); }));
      }
#pragma unroll 4
      for (int team = warp; team < teams; team += warps) {
        const A part = load_fresh(all_sums_ + team * pitch + column);
        sum += is_first ? part * exp_2(load_fresh(all_maxima_ + team * pitch + column) - shift) : part;
      }
      sum = over_warps(sum, [](A x, A y) { return x + y; });
      if (warp == 0 && column < k) {
        const A before = is_first ? -shift : load_fresh(new_potential_ + column);
        const A v = target_of(problem_.prototype_target, column) + before - log_2(sum);
        new_potential_[column] = v;
        if (is_last) static_cast<A*>(problem_.v)[column] = v * static_cast<A>(kLn2);
      }
    }
  }

  // Of the values that this lane has in all warps, in the order of the warps.
  template <class Merge>
  __device__ A over_warps(A x, Merge merge) {
    const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
    scratch_[threadIdx.x] = x;
    __syncthreads();
    x = scratch_[lane];
    for (int warp = 1; warp < warps; ++warp) x = merge(x, scratch_[warp * kWarp + lane]);
    __syncthreads();
    return x;
  }

  __device__ void write_codes(const Tile<S>& tile) {
    if (problem_.codes_dtype == problem_.dtype) {
      write_codes_as<S>(tile);
    } else if constexpr (!std::is_same_v<S, float>) {
      write_codes_as<float>(tile);
    }
  }

  template <class C>
  __device__ void write_codes_as(const Tile<S>& tile) {
    if (N > 1 && problem_.n_prototypes % N == 0) {
      write_vectors<C, N>(tile);
    } else {
      write_vectors<C, 1>(tile);  // rows of codes are not aligned: lanes write neighbouring columns
    }
  }

  template <class C, int M>
  __device__ void write_vectors(const Tile<S>& tile) {
    partition_.own_parts(tile.rows, [&](int r, int, int first, int stride) {
      if (r < 0) return;
      const S* const row = tile.row(r);
      const A term = row_terms_[r];
      const int64_t at = (partition_.first_row + tile.first + r) * problem_.n_prototypes + partition_.first_column;
      auto* const codes = reinterpret_cast<Pack<C, M>*>(static_cast<C*>(problem_.codes) + at);
      for (int vector = first; vector < partition_.columns / M; vector += stride) {
        A x[M], potential[M];
        partition_.load_scores(row, vector, x);
        if constexpr (M == N) {
          partition_.load(potential_, vector, potential);
        } else {
          potential[0] = potential_[partition_.place(vector)];
        }
        Pack<C, M> pack;
#pragma unroll
        for (int i = 0; i < M; ++i) narrow(exp_2(multiply_add(x[i], scale_, potential[i] + term)), &pack.at[i]);
        codes[vector] = pack;
      }
    });
  }

  const PyclSinkhorn& problem_;
  const PyclSinkhornPlan& plan_;
  BlockPartition<S, N, kStaged> partition_;
  const A scale_;
  int row_steps_ = 0;
  A *potential_, *maxima_, *sums_;  // over this block's columns; maxima_ in the first sweep only
  A *stats_, *row_terms_, *scratch_;
  A *new_potential_, *all_sums_, *all_maxima_, *team_sums_, *team_maxima_;  // in the workspace
};

}  // namespace
}  // namespace pycl
