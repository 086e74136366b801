// SPDX-License-Identifier: Apache-2.0
// Which worker visits which tile when. Blocks are dealt out to groups round-robin. The sweep is a sequence of rounds.
// In one round every group of rows and every group of columns has one worker. So each output has one writer, no worker
// needs a private copy of an output, and the order of additions depends on the number of threads alone. Where nothing
// is written by column there is one round: each worker has rows of its own and all columns.
#pragma once
#include "problem.h"

namespace {

// Calls visit(worker, i, j) for every tile: all (i, j) of rows x cols, or each unordered pair once and the diagonal.
template <class Visit>
struct Schedule {
  const pycl::ExecutionContext& host;
  bool symmetric, by_col;  // by_col: something is written by column
  int64_t row_blocks, col_blocks;
  int workers;
  Visit& visit;
  int round = 0;

  void run() {
    const int rounds = !by_col ? 1 : symmetric ? 2 * workers : workers;
    for (round = 0; round < rounds; ++round)
      host.run(host, workers, [](void* self, int worker) { static_cast<Schedule*>(self)->work(worker); }, this);
  }

  void work(int w) {
    if (!by_col) {
      match(w, w, 0, 1);
    } else if (!symmetric) {
      match(w, w, (w + round) % workers, workers);  // a Latin square
    } else if (round == 0) {
      within(w, 2 * w);
      within(w, 2 * w + 1);
    } else {  // a round-robin tournament: the last group stays, the others turn
      const int others = 2 * workers - 1, turn = round - 1;
      const int a = w == 0 ? others : (turn + w) % others;
      const int b = w == 0 ? turn : (turn - w + others) % others;
      match(w, a, b, 2 * workers);
    }
  }

  void match(int w, int rows, int cols, int col_groups) {
    for (int64_t i = rows; i < row_blocks; i += symmetric ? 2 * workers : workers)
      for (int64_t j = cols; j < col_blocks; j += col_groups) visit_unless_cancelled(w, i, j);
  }

  void within(int w, int group) {
    for (int64_t i = group; i < row_blocks; i += 2 * workers)
      for (int64_t j = i; j < row_blocks; j += 2 * workers) visit_unless_cancelled(w, i, j);
  }

  void visit_unless_cancelled(int w, int64_t i, int64_t j) {
    if (!host.cancelled(host)) visit(w, i, j);
  }
};

template <class Visit>
void for_each_tile(const pycl::ExecutionContext& host, bool symmetric, bool by_col, int64_t row_blocks,
                   int64_t col_blocks, int workers, Visit visit) {
  Schedule<Visit>{host, symmetric, by_col, row_blocks, col_blocks, workers, visit}.run();
}

// A worker is not worth waking for fewer elements: a parallel region costs as much as copying this many.
constexpr int64_t kElementsPerWorker = 1 << 15;

// Calls body(task) for every task, split among the threads; `elements` is the work of one task.
template <class Body>
void parallel(const pycl::ExecutionContext& host, int64_t tasks, int64_t elements, Body body) {
  const int64_t worth = tasks * elements / kElementsPerWorker + 1;
  struct Range {
    Body& body;
    int64_t tasks, workers;
  } range{body, tasks, worth < host.threads ? worth : host.threads};
  if (range.workers > tasks) range.workers = tasks;
  host.run(
      host, int(range.workers),
      [](void* arg, int w) {
        const Range& r = *static_cast<Range*>(arg);
        for (int64_t t = r.tasks * w / r.workers; t < r.tasks * (w + 1) / r.workers; ++t) r.body(t);
      },
      &range);
}

}  // namespace
