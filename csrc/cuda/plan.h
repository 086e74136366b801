// SPDX-License-Identifier: Apache-2.0
// How a Sinkhorn problem is laid out on a device. Integers only, so that it is tested where there is no GPU.
#pragma once
#include <algorithm>
#include <cstdint>

#include "sinkhorn.h"

#ifdef __CUDACC__
#define PYCL_EVERYWHERE __host__ __device__
#else
#define PYCL_EVERYWHERE
#endif

namespace pycl {

constexpr int kWarp = 32;

PYCL_EVERYWHERE inline int64_t up(int64_t n, int64_t d) { return (n + d - 1) / d; }
PYCL_EVERYWHERE inline int64_t padded(int64_t n, int64_t to) { return up(n, to) * to; }

inline int size_of(int dtype) { return dtype == kPyclFloat64 ? 8 : dtype == kPyclFloat32 ? 4 : 2; }
inline int accumulator_size(int dtype) { return dtype == kPyclFloat64 ? 8 : 4; }

// Prototypes between two teams' sums in the workspace.
PYCL_EVERYWHERE inline int64_t workspace_pitch(int64_t n_prototypes) { return padded(n_prototypes, kWarp); }

// Offsets into shared memory, in bytes. The kernel and the plan read the same ones.
struct SharedLayout {
  int64_t potential, sums, stats, row_terms, scratch, tiles, end;

  PYCL_EVERYWHERE SharedLayout(const PyclSinkhornPlan& plan, int score, int accumulator) {
    const bool staged = plan.slots > 0;
    const int64_t columns = staged ? int64_t{plan.groups} * plan.slice * accumulator : 0;
    potential = 0;  // maxima in the first sweep
    sums = potential + columns;
    stats = sums + columns;
    row_terms = stats + round16(int64_t{4} * plan.row_capacity * plan.parts * accumulator);
    scratch = row_terms + round16(int64_t{plan.row_capacity} * accumulator);
    tiles = scratch + int64_t{plan.threads} * accumulator;
    end = tiles + int64_t{plan.slots} * plan.tile_rows * plan.slice * score;
  }

  PYCL_EVERYWHERE static int64_t round16(int64_t bytes) { return padded(bytes, 16); }
};

// The widest copy that the address and the stride of the scores allow.
inline int copy_bytes(const PyclSinkhorn& p) {
  const int64_t size = size_of(p.dtype);
  const int64_t address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.scores));
  for (int bytes : {16, 8, 4}) {
    const bool stride_fits = p.n_samples == 1 || p.row_stride * size % bytes == 0;
    if (bytes >= size && address % bytes == 0 && stride_fits) return bytes;
  }
  return 0;
}

// Lanes and parts that read a row in the fewest steps of the slowest thread.
inline void share_rows(PyclSinkhornPlan* plan) {
  const int64_t vectors = up(plan->slice, plan->vector);
  plan->lanes = 1;
  while (plan->lanes < kWarp && plan->lanes < vectors) plan->lanes *= 2;
  int64_t fewest = INT64_MAX;
  for (int parts = 1; parts <= 16; ++parts) {
    const int64_t rounds = up(int64_t{plan->row_capacity} * parts, plan->threads / plan->lanes);
    const int64_t steps = rounds * up(vectors, int64_t{plan->lanes} * parts);
    if (steps < fewest) fewest = steps, plan->parts = parts;
  }
}

enum class Place { kResident, kStreamed, kGlobal };

// A plan for one size of clusters, or false where shared memory does not hold it.
inline bool plan_for(const PyclSinkhorn& p, const PyclDevice& device, int cluster, Place place,
                     PyclSinkhornPlan* plan) {
  const int size = size_of(p.dtype), accumulator = accumulator_size(p.dtype);
  const int vector = 16 / size;
  const int most = cluster == 1   ? device.processors
                   : cluster == 2 ? device.clusters[0]
                   : cluster == 4 ? device.clusters[1]
                                  : device.clusters[2];
  if (most < 1) return false;
  *plan = PyclSinkhornPlan{};
  plan->cluster = cluster;
  plan->threads = device.threads;
  plan->teams = static_cast<int32_t>(std::min<int64_t>(most, p.n_samples));
  plan->slice = static_cast<int32_t>(up(up(p.n_prototypes, vector), cluster) * vector);
  plan->vector = vector;
  plan->copy_bytes = copy_bytes(p);
  plan->groups = std::max(1, std::min(64, device.threads / (plan->slice / vector)));
  const int64_t rows = up(p.n_samples, plan->teams);

  const auto fits = [&](int64_t tile_rows, int64_t slots) {
    if (tile_rows * slots * plan->slice * size > device.shared_bytes) return false;
    plan->tile_rows = static_cast<int32_t>(tile_rows);
    plan->slots = static_cast<int32_t>(slots);
    plan->row_capacity = static_cast<int32_t>(plan->resident ? rows : tile_rows);
    share_rows(plan);
    plan->shared_bytes = SharedLayout(*plan, size, accumulator).end;
    return plan->shared_bytes <= device.shared_bytes;
  };
  plan->workspace_bytes = workspace_pitch(p.n_prototypes) * (1 + 2 * plan->teams) * accumulator;
  if (place == Place::kResident) {
    plan->resident = 1;
    const int64_t tile_rows = up(rows, 4);  // a quarter is reduced while the next one is on its way
    return fits(tile_rows, up(rows, tile_rows));
  }
  if (place == Place::kStreamed) {
    const int64_t fewest = std::min<int64_t>(rows, 2);  // with less, barriers would take longer than memory
    int64_t tile_rows = std::min<int64_t>(rows, device.shared_bytes / (2 * int64_t{plan->slice} * size));
    for (; tile_rows >= fewest; tile_rows -= std::max<int64_t>(1, tile_rows / 16)) {
      if (fits(tile_rows, 2)) return true;
    }
    return false;
  }
  plan->groups = 1;
  if (plan->copy_bytes != 16 || p.n_prototypes % vector != 0) plan->vector = 1;
  const int64_t grid_row = int64_t{plan->teams} * cluster * plan->slice * size;
  // the row step's read is to find the column step's half of the second level cache
  return fits(std::max<int64_t>(1, std::min({device.l2_bytes / 2 / grid_row, rows, int64_t{8}})), 0);
}

// The best place that any size of clusters allows. Of those within a quarter of the least work the smallest, which wait
// the least; from global memory the largest, whose samples in flight fit the second level cache best.
inline bool make_plan(const PyclSinkhorn& p, const PyclDevice& device, PyclSinkhornPlan* plan) {
  if (p.n_samples < 1 || p.n_prototypes < 1 || p.n_prototypes > 1 << 30) return false;
  constexpr int64_t kOverhead = 16384;  // entries that take about as long as the barriers of a sweep
  for (Place place : {Place::kResident, Place::kStreamed, Place::kGlobal}) {
    int64_t least = INT64_MAX;
    const auto work = [&](const PyclSinkhornPlan& of) { return up(p.n_samples, of.teams) * of.slice + kOverhead; };
    PyclSinkhornPlan found;
    for (int cluster : {1, 2, 4, 8}) {
      if (plan_for(p, device, cluster, place, &found)) least = std::min(least, work(found));
    }
    for (int i : {0, 1, 2, 3}) {
      const int cluster = place == Place::kGlobal ? 8 >> i : 1 << i;
      if (plan_for(p, device, cluster, place, &found) && work(found) * 4 <= least * 5) {
        *plan = found;
        return true;
      }
    }
  }
  return false;
}

}  // namespace pycl
