// SPDX-License-Identifier: Apache-2.0
// What a kernel gets from outside for one call: threads of torch's pool, memory, and the signals of Python meanwhile.
#pragma once
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "block_cache.h"
#include "cpu/problem.h"
#include "team.h"

namespace pycl {

// torch_parallel_for of libtorch_cpu, a C symbol of its stable interface.
using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);
inline ParallelFor torch_parallel_for = nullptr;

inline bool use_thread_pool_of(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (!handle) return false;
  torch_parallel_for = reinterpret_cast<ParallelFor>(dlsym(handle, "torch_parallel_for"));
  return torch_parallel_for != nullptr;
}

// Never destroyed: a thread may still be in a call when a process ends.
inline BlockCache& block_cache() {
  static auto* const cache = new BlockCache;
  return *cache;
}

// What a handler of Python raised, for a signal since the last time; null where none did. In bindings.cpp.
std::exception_ptr raised_by_signals();

// Memory and threads of one call, and the signals that Python gets while it lasts.
struct Call : ExecutionContext {
  using Clock = std::chrono::steady_clock;
  // Shorter calls never ask for signals: where other threads hold the interpreter, asking may take 5 ms.
  static constexpr auto kBetweenSignals = std::chrono::milliseconds(200);

  std::vector<BlockCache::Block> blocks;
  Team team;
  const std::thread::id caller = std::this_thread::get_id();
  Clock::time_point next = Clock::now() + kBetweenSignals;
  std::atomic<bool> is_cancelled{false};
  std::exception_ptr error;

  explicit Call(int n_threads) {
    threads = n_threads;
    owner = this;
    cancelled = [](const ExecutionContext& host) {
      auto* call = static_cast<Call*>(host.owner);
      call->take_signals();
      return call->is_cancelled.load(std::memory_order_relaxed);
    };
    relax = Team::relax;
    allocate = [](const ExecutionContext& host, size_t bytes) {
      auto& blocks = static_cast<Call*>(host.owner)->blocks;
      blocks.push_back({nullptr, 0, 0});
      blocks.back() = block_cache().take(bytes);
      void* const memory = blocks.back().memory;
      if (!memory) blocks.pop_back(), throw std::bad_alloc();
      return memory;
    };
    run = [](const ExecutionContext& host, int tasks, Team::Body body, void* arg) {
      static_cast<Call*>(host.owner)->team.run(tasks, body, arg);
    };
  }

  ~Call() { block_cache().give_back(blocks); }

  // Python's handlers run in the thread that called; what they raise ends the call.
  void take_signals() {
    if (std::this_thread::get_id() != caller || Clock::now() < next || is_cancelled) return;
    error = raised_by_signals();
    is_cancelled = error != nullptr;
    next = Clock::now() + kBetweenSignals;
  }

  // Runs a kernel in this thread while the others help; afterwards `error` is what it, or Python, has raised.
  template <class Kernel>
  void lead(Kernel& kernel) {
    try {
      kernel(*this);
    } catch (...) {  // not through the region, which may have no way for it
      error = std::current_exception();
    }
    team.finish();
  }
};

// body(arg, k) for every k in [0, n), in threads of torch's pool where there is one; 0 in this thread.
inline void in_threads(int n, Team::Body body, void* arg) {
  if (torch_parallel_for) {
    struct Range {
      Team::Body body;
      void* arg;
    } range{body, arg};
    auto run = [](int64_t begin, int64_t end, void* context) {
      const Range& r = *static_cast<Range*>(context);
      for (int64_t k = begin; k < end; ++k) r.body(r.arg, int(k));
    };
    torch_parallel_for(0, n, 1, run, &range);
    return;
  }
  std::vector<std::thread> threads;
  for (int k = 1; k < n; ++k) threads.emplace_back(body, arg, k);
  body(arg, 0);
  for (std::thread& thread : threads) thread.join();
}

// Runs kernel(host) with so many threads; raises what it, or a handler of Python, has raised.
template <class Kernel>
void run_kernel(int threads, Kernel kernel) {
  Call call(threads);
  struct Region {
    Call& call;
    Kernel& kernel;
  } region{call, kernel};
  auto take_part = [](void* arg, int k) {
    Region& r = *static_cast<Region*>(arg);
    k == 0 ? r.call.lead(r.kernel) : r.call.team.help();
  };
  threads == 1 ? take_part(&region, 0) : in_threads(threads, take_part, &region);
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace pycl
