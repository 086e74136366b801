// SPDX-License-Identifier: Apache-2.0
// Which tiles are visited when, and by whom. Blocks are dealt out to groups round-robin, and a task is the tiles of a
// group of rows and a group of columns. Tasks form rounds, in each of which every group has one task. A task waits for
// those that its two groups had in the round before, and for nothing else. So each output has one writer, no worker
// needs a private copy of an output, and the order of additions depends on the number of threads alone. Workers take
// tasks as they get on: one that shares its core with another program holds nobody up. Where nothing is written by
// column a task is a group of rows and all columns, and none waits.
#pragma once
#include "problem.h"

namespace {

constexpr int kFiner = 4;  // tasks for each that a worker has to have

// Calls visit(worker, group, i, j) for every tile: all (i, j) of rows x cols, or each unordered pair once and the
// diagonal. At no time have two workers the same group.
template <class Visit>
struct Schedule {
  const pycl::ExecutionContext& host;
  bool symmetric, by_col;  // by_col: something is written by column
  int64_t row_blocks, col_blocks;
  int workers, groups;
  Visit& visit;
  int* rounds;   // of each group of rows, then of columns: how many are behind it
  int next = 0;  // the first task that nobody has taken

  void run() {
    std::memset(rounds, 0, sizeof(int) * 2 * size_t(groups));
    host.run(host, workers, [](void* self, int worker) { static_cast<Schedule*>(self)->work(worker); }, this);
  }

  int tasks() const { return !by_col ? groups : symmetric ? groups + (groups - 1) * (groups / 2) : groups * groups; }

  void work(int worker) {
    const int n = tasks();
    for (int task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < n;)
      if (!by_col)
        match(worker, task, 0, 1);
      else if (symmetric)
        take_of_tournament(worker, task);
      else  // a Latin square
        take(worker, task / groups, task % groups, (task % groups + task / groups) % groups);
  }

  // A round-robin tournament: the last group stays, the others turn. Before it every group meets itself.
  void take_of_tournament(int worker, int task) {
    if (task < groups) return take(worker, 0, task, task);
    const int others = groups - 1, turn = (task - groups) / (groups / 2), k = (task - groups) % (groups / 2);
    take(worker, turn + 1, k == 0 ? others : (turn + k) % others, k == 0 ? turn : (turn - k + others) % others);
  }

  void take(int worker, int round, int rows, int cols) {
    int *const of_rows = rounds + rows, *const of_cols = symmetric ? rounds + cols : rounds + groups + cols;
    wait_for(*of_rows, round);
    wait_for(*of_cols, round);
    if (symmetric && rows == cols)
      within(worker, rows);
    else
      match(worker, rows, cols, groups);
    __atomic_store_n(of_rows, round + 1, __ATOMIC_RELEASE);
    __atomic_store_n(of_cols, round + 1, __ATOMIC_RELEASE);
  }

  // Tasks are taken in order, so who is waited for has begun.
  void wait_for(const int& rounds_of_group, int round) const {
    for (int polls = 0; __atomic_load_n(&rounds_of_group, __ATOMIC_ACQUIRE) < round; ++polls) host.relax(polls);
  }

  void match(int worker, int rows, int cols, int col_groups) {
    for (int64_t i = rows; i < row_blocks; i += groups)
      for (int64_t j = cols; j < col_blocks; j += col_groups) visit_unless_cancelled(worker, rows, i, j);
  }

  void within(int worker, int group) {
    for (int64_t i = group; i < row_blocks; i += groups)
      for (int64_t j = i; j < row_blocks; j += groups) visit_unless_cancelled(worker, group, i, j);
  }

  void visit_unless_cancelled(int worker, int group, int64_t i, int64_t j) {
    if (!host.cancelled(host)) visit(worker, group, i, j);
  }
};

// How many groups workers take their tasks from: two for each, which meet themselves at first, where a problem is
// symmetric, else one; or up to four times as many, as long as a group has two blocks.
inline int group_count(bool symmetric, int workers, int64_t blocks) {
  const int least = symmetric ? 2 * workers : workers;
  const int64_t times = blocks / (2 * least);
  return least * (workers == 1 || times < 1 ? 1 : times < kFiner ? int(times) : kFiner);
}

// Fewer elements are not worth handing out to workers.
constexpr int64_t kElementsPerWorker = 1 << 13;

// Calls body(task) for every task, in shares that threads take as they get on; `elements` is the work of one task.
template <class Body>
void parallel(const pycl::ExecutionContext& host, int64_t tasks, int64_t elements, Body body) {
  const int64_t worth = tasks * elements / kElementsPerWorker + 1, most = worth < tasks ? worth : tasks;
  const int workers = int(most < host.threads ? most : host.threads);
  struct Shares {
    Body& body;
    int64_t tasks, n;
    int64_t next;
  } shares{body, tasks, workers < 2 || tasks < kFiner * workers ? workers : kFiner * workers, 0};
  host.run(
      host, workers,
      [](void* arg, int) {
        Shares& s = *static_cast<Shares*>(arg);
        for (int64_t k; (k = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.n;)
          for (int64_t t = s.tasks * k / s.n; t < s.tasks * (k + 1) / s.n; ++t) s.body(t);
      },
      &shares);
}

}  // namespace
