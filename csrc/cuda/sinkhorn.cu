// SPDX-License-Identifier: Apache-2.0
// The launch of Sinkhorn's kernel and what the library exports.
#include "device.cuh"
// the order matters: the kernel is written in the words above
#include "sinkhorn.cuh"

namespace pycl {
namespace {

constexpr int kThreads = 512;

template <class S, int N, bool kStaged>
__global__ void __launch_bounds__(kThreads, 1)
    sinkhorn(const __grid_constant__ PyclSinkhorn problem, const __grid_constant__ PyclSinkhornPlan plan,
             void* workspace) {
  Sinkhorn<S, N, kStaged>(problem, plan, workspace).run();
}

template <class S>
const void* kernel_for(const PyclSinkhornPlan& plan) {
  constexpr int kVector = 16 / sizeof(S);
  if (plan.slots > 0) return reinterpret_cast<const void*>(sinkhorn<S, kVector, true>);
  if (plan.vector > 1) return reinterpret_cast<const void*>(sinkhorn<S, kVector, false>);
  return reinterpret_cast<const void*>(sinkhorn<S, 1, false>);
}

const void* kernel_for(const PyclSinkhorn& problem, const PyclSinkhornPlan& plan) {
  switch (problem.dtype) {
    case kPyclFloat32:
      return kernel_for<float>(plan);
    case kPyclFloat64:
      return kernel_for<double>(plan);
    case kPyclBFloat16:
      return kernel_for<bfloat16>(plan);
    default:
      return kernel_for<float16>(plan);
  }
}

struct Launch {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  Launch(int teams, int cluster, int threads, int64_t shared_bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.gridDim = dim3(teams * cluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
  }
};

cudaError_t allow_shared(const void* kernel, int64_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

// How many clusters run at once where each block takes a multiprocessor of its own.
cudaError_t count_clusters(PyclDevice* device) {
  const void* kernel = reinterpret_cast<const void*>(sinkhorn<bfloat16, 8, true>);
  cudaError_t error = allow_shared(kernel, device->shared_bytes);
  for (int i = 0; i < 3 && error == cudaSuccess; ++i) {
    const int cluster = 2 << i;
    Launch launch(device->processors / cluster, cluster, kThreads, device->shared_bytes, nullptr);
    launch.config.attrs = launch.attributes + 1;  // the cluster's size alone
    launch.config.numAttrs = 1;
    error = cudaOccupancyMaxActiveClusters(&device->clusters[i], kernel, &launch.config);
    if (error == cudaErrorInvalidClusterSize) {
      cudaGetLastError();  // smaller clusters than that, which is no error
      error = cudaSuccess;
      device->clusters[i] = 0;
    }
    device->clusters[i] = std::min(device->clusters[i], device->processors / cluster);
  }
  return error;
}

cudaError_t describe(int ordinal, PyclDevice* device, int* cooperative) {
  int l2 = 0, clusters = 0;
  const struct {
    int* value;
    cudaDeviceAttr attribute;
  } wanted[] = {{&l2, cudaDevAttrL2CacheSize},
                {&clusters, cudaDevAttrClusterLaunch},
                {cooperative, cudaDevAttrCooperativeLaunch},
                {&device->processors, cudaDevAttrMultiProcessorCount},
                {&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin}};
  cudaError_t error = cudaSetDevice(ordinal);
  for (const auto& each : wanted) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(each.value, each.attribute, ordinal);
  }
  device->l2_bytes = l2;
  device->threads = kThreads;
  return error == cudaSuccess && clusters ? count_clusters(device) : error;
}

}  // namespace
}  // namespace pycl

int pycl_cuda_check() {
  int driver = 0, runtime = 0;
  cudaError_t error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&runtime);
  const bool is_older = driver != 0 && driver / 1000 < runtime / 1000;
  return error == cudaSuccess && is_older ? cudaErrorInsufficientDriver : error;
}

int pycl_cuda_device(int ordinal, PyclDevice* device) {
  *device = PyclDevice{};
  int cooperative = 0;
  const cudaError_t error = pycl::describe(ordinal, device, &cooperative);
  return error == cudaSuccess && !cooperative ? static_cast<int>(kPyclNotCooperative) : error;
}

int pycl_sinkhorn_plan(const PyclSinkhorn* problem, const PyclDevice* device, PyclSinkhornPlan* plan) {
  return pycl::make_plan(*problem, *device, plan) ? 0 : kPyclInvalid;
}

int pycl_sinkhorn_run(int ordinal, const PyclSinkhorn* problem, const PyclSinkhornPlan* plan, void* workspace,
                      void* stream) {
  const void* kernel = pycl::kernel_for(*problem, *plan);
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = pycl::allow_shared(kernel, plan->shared_bytes);
  if (error != cudaSuccess) return error;
  const pycl::Launch launch(plan->teams, plan->cluster, plan->threads, plan->shared_bytes,
                            static_cast<cudaStream_t>(stream));
  void* arguments[] = {const_cast<PyclSinkhorn*>(problem), const_cast<PyclSinkhornPlan*>(plan), &workspace};
  return cudaLaunchKernelExC(&launch.config, kernel, arguments);
}

const char* pycl_cuda_message(int code) {
  switch (code) {
    case kPyclInvalid:
      return "the problem fits no plan of the kernel";
    case kPyclNotCooperative:
      return "the device has no cooperative launches";
    default:
      return cudaGetErrorString(static_cast<cudaError_t>(code));
  }
}
