// SPDX-License-Identifier: Apache-2.0
// Large blocks of memory of calls and of their results, which the next ones of the same sizes take over. The system
// clears the pages that it hands out: with 512 points that took a fifth of a step, and for 49 MB of codes 3 of 13 ms.
// Nobody waits for the lock: who does not get it does without the cache, and so does the child of a fork whose parent
// held it.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace pycl {

class BlockCache {
 public:
  struct Block {
    void* memory;
    size_t bytes;
    uint64_t last_call;
  };
  static constexpr size_t kMinBytes = 1 << 16;  // malloc has smaller ones at hand
  static constexpr size_t kMinMappedBytes = 1 << 20;
  static constexpr size_t kMaxIdleBytes = 256 << 20;  // of all that wait
  static constexpr uint64_t kMaxAge = 8;              // calls that a block waits for one that needs it

  // 64-byte aligned; null where there is no memory.
  Block take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes < kMinBytes) return {std::aligned_alloc(64, bytes), bytes, 0};
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    for (size_t k = lock ? idle_.size() : 0; k-- > 0;)
      if (idle_[k].bytes == bytes) {
        const Block found = idle_[k];
        idle_.erase(idle_.begin() + k);
        idle_bytes_ -= bytes;
        return found;
      }
    return {fresh(bytes), bytes, 0};
  }

  // What a call has taken.
  void give_back(const std::vector<Block>& blocks) {
    if (blocks.empty()) return;  // only asked something: no call that others age by
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) ++calls_;
    for (const Block& block : blocks) keep(block, bool(lock));
    if (lock) trim();
  }

  // The memory of a result.
  void give_back(const Block& block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    keep(block, bool(lock));
    if (lock) trim();
  }

 private:
  void keep(const Block& block, bool locked) {
    if (!locked || block.bytes < kMinBytes) return release(block);
    idle_.push_back({block.memory, block.bytes, calls_});
    idle_bytes_ += block.bytes;
  }

  void trim() {
    size_t oldest = 0;  // blocks are in the order in which they came
    for (; oldest < idle_.size() && (idle_bytes_ > kMaxIdleBytes || idle_[oldest].last_call + kMaxAge < calls_);
         ++oldest) {
      idle_bytes_ -= idle_[oldest].bytes;
      release(idle_[oldest]);
    }
    idle_.erase(idle_.begin(), idle_.begin() + oldest);
  }

  // From the system, to which free() would not give back all.
  static bool is_mapped(size_t bytes) { return bytes >= kMinMappedBytes; }

  static void* fresh(size_t bytes) {
    if (!is_mapped(bytes)) return std::aligned_alloc(64, bytes);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
  }

  static void release(const Block& block) {
    if (is_mapped(block.bytes))
      munmap(block.memory, block.bytes);
    else
      std::free(block.memory);
  }

  std::mutex mutex_;
  std::vector<Block> idle_;
  size_t idle_bytes_ = 0;
  uint64_t calls_ = 0;
};

}  // namespace pycl
