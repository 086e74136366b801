// SPDX-License-Identifier: Apache-2.0
// The C interface of libpycl_cuda.so: plain data and pointers. pycl/backends/cuda_library.py has the same structures.
#pragma once
#include <stdint.h>

#define PYCL_EXPORT extern "C" __attribute__((visibility("default")))

enum PyclDType { kPyclFloat32 = 0, kPyclFloat64 = 1, kPyclBFloat16 = 2, kPyclFloat16 = 3 };

// What is not an error of CUDA's; those are positive.
enum PyclError { kPyclInvalid = -1, kPyclNotCooperative = -2 };

// "Accumulation type" is double for float64 scores and float for others.
struct PyclSinkhorn {
  const void* scores;            // [n_samples, n_prototypes], columns next to each other
  const void* sample_target;     // log(B a_b) [n_samples] in the accumulation type, null where uniform
  const void* prototype_target;  // log(B m_k) [n_prototypes], in the accumulation type
  void* codes;                   // [n_samples, n_prototypes], contiguous
  void* u;                       // [n_samples], accumulation type
  void* v;                       // [n_prototypes], accumulation type
  int64_t n_samples, n_prototypes;
  int64_t row_stride;  // of the scores, in elements
  double epsilon;
  int32_t iterations;
  int32_t dtype, codes_dtype;  // PyclDType; that of the codes is the scores' or float32
};

struct PyclDevice {
  int64_t l2_bytes;
  int32_t processors;    // multiprocessors; one block runs on each
  int32_t shared_bytes;  // most that a block may have
  int32_t clusters[3];   // how many clusters of 2, 4 and 8 blocks run at once; 0 where there are none
  int32_t threads;       // of a block
};

// Who does what. A team is a cluster of blocks that own the same samples and a slice of the prototypes each.
struct PyclSinkhornPlan {
  int64_t shared_bytes, workspace_bytes;
  int32_t cluster, teams, threads;
  int32_t slice;         // prototypes of a block, whole vectors of 16 bytes
  int32_t vector;        // prototypes a thread takes at once
  int32_t tile_rows;     // samples of a tile
  int32_t slots;         // tiles in shared memory; 0: too many prototypes, tiles stay in global memory
  int32_t resident;      // all of a block's scores stay in shared memory
  int32_t row_capacity;  // samples of a row step
  int32_t lanes, parts;  // of a warp that share a row; runs of vectors that share a row
  int32_t groups;        // of threads that add up columns, each of samples of its own
  int32_t copy_bytes;    // of one asynchronous copy; 0: alignment allows none
};

// Whether a driver, where there is one, is new enough; touches no device.
PYCL_EXPORT int pycl_cuda_check();
PYCL_EXPORT int pycl_cuda_device(int ordinal, PyclDevice* device);
PYCL_EXPORT int pycl_sinkhorn_plan(const PyclSinkhorn* problem, const PyclDevice* device, PyclSinkhornPlan* plan);
// Launches one kernel on the stream and returns. The workspace is aligned to 16 bytes and may hold anything.
PYCL_EXPORT int pycl_sinkhorn_run(int ordinal, const PyclSinkhorn* problem, const PyclSinkhornPlan* plan,
                                  void* workspace, void* stream);
PYCL_EXPORT const char* pycl_cuda_message(int code);
