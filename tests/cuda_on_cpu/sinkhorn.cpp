// SPDX-License-Identifier: Apache-2.0
// csrc/cuda's kernel behind the library's own interface, with a grid of fibers for a GPU. A stream is the order in
// which fibers get their turn, and a device is what the caller says.
#include "device.h"
// the order matters: the kernel is written in the words above
#include "../../csrc/cuda/sinkhorn.cuh"

namespace {

template <class S, int N, bool kStaged>
int launch(const PyclSinkhorn& problem, const PyclSinkhornPlan& plan, void* workspace, pycl::Order order) {
  const int blocks = plan.teams * plan.cluster;
  pycl::Grid grid(blocks, plan.threads, plan.cluster, plan.shared_bytes, order);
  return grid.run([&] { pycl::Sinkhorn<S, N, kStaged>(problem, plan, workspace).run(); }) ? 0 : 1;
}

template <class S>
int launch_as(const PyclSinkhorn& problem, const PyclSinkhornPlan& plan, void* workspace, pycl::Order order) {
  constexpr int kVector = 16 / sizeof(S);
  if (plan.slots > 0) return launch<S, kVector, true>(problem, plan, workspace, order);
  if (plan.vector > 1) return launch<S, kVector, false>(problem, plan, workspace, order);
  return launch<S, 1, false>(problem, plan, workspace, order);
}

}  // namespace

int pycl_cuda_device(int, PyclDevice*) { return kPyclNotCooperative; }

int pycl_sinkhorn_plan(const PyclSinkhorn* problem, const PyclDevice* device, PyclSinkhornPlan* plan) {
  return pycl::make_plan(*problem, *device, plan) ? 0 : kPyclInvalid;
}

int pycl_sinkhorn_run(int, const PyclSinkhorn* problem, const PyclSinkhornPlan* plan, void* workspace, void* stream) {
  const auto order = static_cast<pycl::Order>(reinterpret_cast<uintptr_t>(stream));
  switch (problem->dtype) {
    case kPyclFloat32:
      return launch_as<float>(*problem, *plan, workspace, order);
    case kPyclFloat64:
      return launch_as<double>(*problem, *plan, workspace, order);
    case kPyclBFloat16:
      return launch_as<pycl::bfloat16>(*problem, *plan, workspace, order);
    default:
      return launch_as<pycl::float16>(*problem, *plan, workspace, order);
  }
}

const char* pycl_cuda_message(int code) { return code > 0 ? "the fibers' report is on stderr" : "no GPU"; }
