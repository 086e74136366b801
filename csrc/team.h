// SPDX-License-Identifier: Apache-2.0
// Threads that share the work of one call. All of it happens in one parallel region: one thread leads, and the others
// help with whatever job there is. Who comes late, because another program has its core, finds less to do, and is
// waited for once, when the region ends. With a region for each job, which waits every time, and four other programs on
// two cores a step of 128 x 512 took 48 ms in place of 12, one of 512 x 512 60 in place of 32 (medians; with two other
// programs or none both ways took the same time).
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace pycl {

class Team {
 public:
  using Body = void (*)(void* arg, int task);

  // Calls body(arg, task) for every task in [0, tasks). For the thread that leads.
  void run(int tasks, Body body, void* arg) {
    if (tasks == 1) return body(arg, 0);
    const uint64_t job = (next_.load(std::memory_order_relaxed) & ~kClosed) + kClosed + 1;
    next_.store(job | kClosed, std::memory_order_relaxed);  // nobody takes a task by what is written now
    std::atomic_thread_fence(std::memory_order_release);
    body_.store(body, std::memory_order_relaxed);
    arg_.store(arg, std::memory_order_relaxed);
    tasks_.store(tasks, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    next_.store(job, std::memory_order_release);
    take_tasks();
    for (int polls = 0; done_.load(std::memory_order_acquire) < tasks; ++polls) relax(polls);
  }

  // For the others, until the one that leads calls finish().
  void help() {
    for (int polls = 0; !finished_.load(std::memory_order_acquire); ++polls)
      if (take_tasks())
        polls = 0;
      else
        relax(polls);
  }

  void finish() { finished_.store(true, std::memory_order_release); }

  // Between two looks at what a thread waits for. It keeps its core for about a millisecond: one that yields to another
  // program has it back after 4 to 20.
  static void relax(int polls) {
    if (polls > kPolls) return std::this_thread::sleep_for(std::chrono::microseconds(50));
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

 private:
  static constexpr int kPolls = 1 << 15;
  static constexpr uint64_t kClosed = (uint64_t(1) << 32) - 1;  // as a task: beyond the last

  // Whether there was one.
  bool take_tasks() {
    bool any = false;
    for (uint64_t at = next_.load(std::memory_order_acquire);;) {
      const Body body = body_.load(std::memory_order_relaxed);
      void* const arg = arg_.load(std::memory_order_relaxed);
      const uint64_t task = at & kClosed, tasks = uint64_t(tasks_.load(std::memory_order_relaxed));
      if (task >= tasks) return any;
      std::atomic_thread_fence(std::memory_order_acquire);
      if (!next_.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      body(arg, int(task));
      any = true;
      done_.fetch_add(1, std::memory_order_acq_rel);
      at = next_.load(std::memory_order_acquire);
    }
  }

  std::atomic<uint64_t> next_{0};  // the number of the job, and the first task of it that nobody has taken
  std::atomic<Body> body_{nullptr};
  std::atomic<void*> arg_{nullptr};
  std::atomic<int> tasks_{0}, done_{0};
  std::atomic<bool> finished_{false};
};

}  // namespace pycl
