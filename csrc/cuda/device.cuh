// SPDX-License-Identifier: Apache-2.0
// What kernels need of the device beyond CUDA's own words. tests/cuda_on_cpu/device.h has the same names for a CPU.
#pragma once
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pycl {
namespace {

using float16 = __half;
using bfloat16 = __nv_bfloat16;

__device__ inline char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(float16 x) { return __half2float(x); }

__device__ inline void narrow(float x, float* to) { *to = x; }
__device__ inline void narrow(double x, double* to) { *to = x; }
__device__ inline void narrow(double x, float* to) { *to = static_cast<float>(x); }
__device__ inline void narrow(float x, bfloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ inline void narrow(float x, float16* to) { *to = __float2half_rn(x); }

// One instruction: exp2f also rescales results that are subnormal, which are flushed to zero here.
__device__ inline float exp_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline double exp_2(double x) { return exp2(x); }
__device__ inline float log_2(float x) { return log2f(x); }
__device__ inline double log_2(double x) { return log2(x); }

// The larger one; a NaN loses, and has to show in a sum.
__device__ inline float larger(float x, float y) { return fmaxf(x, y); }
__device__ inline double larger(double x, double y) { return fmax(x, y); }

__device__ inline float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
__device__ inline double multiply_add(double x, double y, double z) { return fma(x, y, z); }

template <class T>
__device__ T from_lane_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// Written by other blocks of this launch: past the first level cache, which is not coherent.
template <class T>
__device__ T load_fresh(const T* from) {
  return __ldcg(from);
}

template <int kBytes>
__device__ void copy_async(void* to_shared, const void* from) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes) : "memory");
  }
}

__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the latest kPending groups of this thread's copies are there.
template <int kPending>
__device__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline void grid_barrier() { cooperative_groups::this_grid().sync(); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline void cluster_barrier() { cooperative_groups::this_cluster().sync(); }

// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ const T* in_block(T* shared, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
}
#else
__device__ inline void cluster_barrier() { __syncthreads(); }

template <class T>
__device__ const T* in_block(T* shared, int) {
  return shared;
}
#endif

}  // namespace
}  // namespace pycl
