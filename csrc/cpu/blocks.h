// SPDX-License-Identifier: Apache-2.0
// Into which blocks the sides of a problem are cut, the numbers of their tiles, and the bytes that kept products take.
#pragma once
#include "labels.h"

namespace {

inline bool all_negatives_count(const Problem& p) {
  return !((pycl::kNegSameView | pycl::kNegOtherView) & ~(p.pairs | p.positives));
}

// If a loss ignores the negatives of the same view or of other views, whole tiles can be skipped, but only tiles that
// lie within one view. So this is the largest block size <= `size` that divides the length of the first view, unless
// that is less than half of `size`. Of shorter views one is a block by itself, where all but its own pairs are ignored.
template <class P>
int64_t aligned_to_views(const Problem& problem, int64_t size) {
  if (all_negatives_count(problem)) return size;
  const int64_t* views = problem.rows.views;
  int64_t length = views ? 1 : problem.rows.instances;
  while (views && length < problem.rows.z.n && views[length] == views[0]) ++length;
  for (int64_t candidate = size; candidate >= P::kMinBlock && 2 * candidate >= size; candidate -= P::kBlockUnit)
    if (length % candidate == 0) return candidate;
  const bool own_alone = !((problem.pairs | problem.positives) & pycl::kNegOtherView);
  const bool fits = length >= P::kMinBlock && length < size && length % P::kBlockUnit == 0;
  return own_alone && fits ? length : size;
}

// The size that makes as many blocks as the schedule has groups, or a multiple: every worker then has its share, and
// little is padding. A side that is shorter than the smallest of them is one block.
template <class P>
int block_size(const Problem& problem, int threads) {
  const int64_t m = problem.rows.z.n, n = problem.cols.z.n;
  const int64_t smaller = m < n ? m : n, shares = threads < 2 ? 2 : threads;
  const int64_t groups = problem.symmetric ? 2 * shares : shares;
  const int64_t each = round_up(smaller, groups * P::kMaxBlock) / (groups * P::kMaxBlock);
  const int64_t size = round_up((smaller + each * groups - 1) / (each * groups), P::kBlockUnit);
  if (size >= P::kMinBlock) return int(aligned_to_views<P>(problem, size));
  const int64_t whole = round_up(smaller, P::kBlockUnit);
  return int(whole < P::kMinBlock ? whole : P::kMinBlock);
}

// Tiles by number: all of them, or where some are skipped those that are not.
struct TileNumbers {
  bool symmetric;
  int64_t col_blocks, count;
  int64_t* visited;  // their numbers; null where all are visited

  template <class T>
  void fill(const ExecutionContext& host, const Problem& p, const Classes<T>& classes, int64_t rows, int64_t cols) {
    symmetric = p.symmetric;
    col_blocks = cols;
    count = symmetric ? rows * (rows + 1) / 2 : rows * cols;
    visited = nullptr;
    if (all_negatives_count(p)) return;
    int64_t* const numbers = allocate<int64_t>(host, count);
    int64_t next = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = symmetric ? i : 0; j < cols; ++j)
        numbers[of(i, j)] = classes.kind(i, j) == TileKind::kSkip ? -1 : next++;
    visited = numbers;
    count = next;
  }

  // In a symmetric problem a tile and its mirror image are one.
  int64_t of(int64_t i, int64_t j) const {
    const int64_t high = i < j ? j : i, low = i < j ? i : j;
    const int64_t at = symmetric ? high * (high + 1) / 2 + low : i * col_blocks + j;
    return visited ? visited[at] : at;
  }
};

// Bytes of a header and of the products of whole tiles, of all that are visited or as many as fit.
template <class P>
size_t residual_bytes(const Problem& problem, const ExecutionContext& host, size_t limit) {
  const int block = block_size<P>(problem, host.threads);
  Classes<typename P::T> classes;
  if (!all_negatives_count(problem)) classes.fill(host, problem, block);
  TileNumbers numbers;
  numbers.fill(host, problem, classes, (problem.rows.z.n + block - 1) / block, (problem.cols.z.n + block - 1) / block);
  const size_t tile = size_t(block) * block * sizeof(typename P::T), header = sizeof(pycl::ResidualHeader);
  const size_t fitting = limit < header ? 0 : (limit - header) / tile, all = numbers.count;
  const size_t kept = fitting < all ? fitting : all;
  return kept ? header + kept * tile : 0;
}

}  // namespace
