// SPDX-License-Identifier: Apache-2.0
// CUDA's words, and those of csrc/cuda/device.cuh, on a CPU: every CUDA thread is a fiber that runs until it waits.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __host__

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace pycl {

// Fibers that have arrived wait for the others; a deadlock is one in which all of them wait.
struct Barrier {
  int expected = 0, arrived = 0;
  int64_t generation = 0;
};

struct Copy {
  void* to;
  const void* from;
  int bytes, group;
};

struct Fiber {
  ucontext_t context;  // until it has started; from then on its place is in here, for a swapcontext is a system call
  jmp_buf place;
  bool started = false;
  std::unique_ptr<char[]> stack;
  unsigned thread, block;
  bool done = false;
  Barrier* waits_for = nullptr;
  int64_t generation = 0;
  std::vector<Copy> copies;
  int copy_groups = 0;
};

// The last one lets a block run as far as it can before others get a turn.
enum class Order : int { kForward, kBackward, kShuffled, kBlockByBlock };

class Grid {
 public:
  static Grid*& current() {
    static Grid* grid = nullptr;
    return grid;
  }

  Grid(int blocks, int threads, int cluster, int64_t shared_bytes, Order order)
      : threads_(threads), cluster_(cluster), shared_bytes_(shared_bytes), order_(order), fibers_(blocks * threads) {
    gridDim.x = blocks;
    blockDim.x = threads;
    grid_.expected = blocks * threads;
    for (int i = 0; i < blocks; ++i) {
      // poison: what a kernel reads before it is written is NaN, and a guard shows what it writes beyond the end
      shared_.emplace_back(static_cast<char*>(std::aligned_alloc(128, (shared_bytes + kGuard + 127) / 128 * 128)));
      std::memset(shared_.back().get(), 0xff, shared_bytes + kGuard);
    }
    blocks_.assign(blocks, {threads, 0, 0});
    clusters_.assign(blocks / cluster, {threads * cluster, 0, 0});
    warps_.assign(blocks * threads / 32, {32, 0, 0});
    lanes_.resize(blocks * threads);
    finished_.resize(blocks);
  }

  // False where all fibers wait, or shared memory was written beyond its end.
  bool run(const std::function<void()>& kernel) {
    current() = this;
    kernel_ = &kernel;
    for (size_t i = 0; i < fibers_.size(); ++i) start(i);
    std::vector<int> turns(fibers_.size());
    for (size_t i = 0; i < turns.size(); ++i) turns[i] = static_cast<int>(i);
    if (order_ == Order::kBackward) std::reverse(turns.begin(), turns.end());
    std::mt19937 random(1);
    const size_t stint = order_ == Order::kBlockByBlock ? threads_ : turns.size();
    for (bool moved = true; moved;) {
      moved = false;
      if (order_ == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
      for (size_t first = 0; first < turns.size(); first += stint) {
        while (give_turns(&turns[first], stint)) {
          moved = true;
          if (order_ == Order::kShuffled) break;
        }
      }
    }
    for (const Fiber& fiber : fibers_) {
      if (!fiber.done)
        return std::fprintf(stderr, "block %u thread %u waits for ever\n", fiber.block, fiber.thread), false;
    }
    for (const auto& block : shared_) {
      for (int i = 0; i < kGuard; ++i) {
        if (block.get()[shared_bytes_ + i] != '\xff') return std::fprintf(stderr, "shared memory overrun\n"), false;
      }
    }
    return true;
  }

  void wait(Barrier& barrier) {
    Fiber& self = *running_;
    if (++barrier.arrived == barrier.expected) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    self.waits_for = &barrier;
    self.generation = barrier.generation;
    if (!_setjmp(self.place)) _longjmp(scheduler_, 1);
  }

  Fiber& self() { return *running_; }
  int number() const { return running_->block * threads_ + running_->thread; }
  char* shared(int block) { return shared_[block].get(); }
  Barrier& grid() { return grid_; }
  Barrier& block() { return blocks_[running_->block]; }
  Barrier& warp() { return warps_[number() / 32]; }
  Barrier& cluster() { return clusters_[running_->block / cluster_]; }
  int first_of_cluster() const { return running_->block / cluster_ * cluster_; }
  double& lane(int number) { return lanes_[number]; }

 private:
  static constexpr int kGuard = 256, kStack = 32 << 10;
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  // Whether any of them could go on.
  bool give_turns(const int* turns, size_t n) {
    bool moved = false;
    for (size_t i = 0; i < n; ++i) {
      Fiber& fiber = fibers_[turns[i]];
      if (fiber.done || (fiber.waits_for && fiber.waits_for->generation == fiber.generation)) continue;
      fiber.waits_for = nullptr;
      running_ = &fiber;
      threadIdx.x = fiber.thread;
      blockIdx.x = fiber.block;
      resume(fiber);
      moved = true;
    }
    return moved;
  }

  static void body() {
    Grid* grid = current();
    (*grid->kernel_)();
    grid->running_->done = true;
    const unsigned block = grid->running_->block;
    if (++grid->finished_[block] == grid->threads_) std::memset(grid->shared(block), 0xff, grid->shared_bytes_);
    _longjmp(grid->scheduler_, 1);
  }

  void resume(Fiber& fiber) {
    if (_setjmp(scheduler_)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  void start(size_t i) {
    Fiber& fiber = fibers_[i];
    fiber.thread = i % threads_;
    fiber.block = i / threads_;
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Grid::body, 0);
  }

  int threads_, cluster_;
  int64_t shared_bytes_;
  Order order_;
  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<char, Free>> shared_;
  Barrier grid_;
  std::vector<Barrier> blocks_, clusters_, warps_;
  std::vector<double> lanes_;
  std::vector<int> finished_;  // threads of a block; its shared memory goes with the last one
  const std::function<void()>* kernel_ = nullptr;
  Fiber* running_ = nullptr;
  jmp_buf scheduler_;
};

inline char* shared_memory() { return Grid::current()->shared(blockIdx.x); }

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return bits_as<float>(uint32_t{x.bits} << 16); }
inline float widen(float16 x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                     : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return x.bits >> 15 ? -size : size;
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(double x, double* to) { *to = x; }
inline void narrow(double x, float* to) { *to = static_cast<float>(x); }
inline void narrow(float x, bfloat16* to) {
  const uint32_t bits = bits_as<uint32_t>(x);
  to->bits = std::isnan(x) ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// Of what the kernel narrows: codes, which are at most 1, and what is not finite.
inline void narrow(float x, float16* to) {
  if (!std::isfinite(x)) {
    to->bits = std::isnan(x) ? 0x7fff : x < 0 ? 0xfc00 : 0x7c00;
    return;
  }
  const int exponent = std::max(std::ilogb(std::max(x, 0x1p-24f)), -14);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(x, 10 - exponent)));
  to->bits = static_cast<uint16_t>(mantissa + ((exponent + 14) << 10));
}

inline float exp_2(float x) { return std::exp2(x); }
inline double exp_2(double x) { return std::exp2(x); }
inline float log_2(float x) { return std::log2(x); }
inline double log_2(double x) { return std::log2(x); }
inline float larger(float x, float y) { return std::fmax(x, y); }
inline double larger(double x, double y) { return std::fmax(x, y); }
inline float multiply_add(float x, float y, float z) { return std::fma(x, y, z); }
inline double multiply_add(double x, double y, double z) { return std::fma(x, y, z); }

template <class T>
T from_lane_xor(T x, int mask) {
  Grid& grid = *Grid::current();
  const int self = grid.number();
  grid.lane(self) = x;
  grid.wait(grid.warp());
  const T theirs = static_cast<T>(grid.lane(self ^ mask));
  grid.wait(grid.warp());
  return theirs;
}

template <class T>
T load_fresh(const T* from) {
  return *from;
}

// Copies happen as late as they may: when their thread waits for them.
template <int kBytes>
void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes) std::abort();
  Fiber& self = Grid::current()->self();
  self.copies.push_back({to, from, kBytes, self.copy_groups});
}
inline void copy_commit() { ++Grid::current()->self().copy_groups; }
template <int kPending>
void copy_wait() {
  Fiber& self = Grid::current()->self();
  std::vector<Copy> later;
  for (const Copy& copy : self.copies) {
    if (copy.group < self.copy_groups - kPending) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      later.push_back(copy);
    }
  }
  self.copies.swap(later);
}

inline void grid_barrier() { Grid::current()->wait(Grid::current()->grid()); }
inline void cluster_barrier() { Grid::current()->wait(Grid::current()->cluster()); }

template <class T>
const T* in_block(T* shared, int rank) {
  Grid& grid = *Grid::current();
  const auto offset = reinterpret_cast<const char*>(shared) - shared_memory();
  return reinterpret_cast<const T*>(grid.shared(grid.first_of_cluster() + rank) + offset);
}

}  // namespace pycl

inline void __syncthreads() { pycl::Grid::current()->wait(pycl::Grid::current()->block()); }
