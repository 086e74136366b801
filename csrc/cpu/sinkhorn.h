// SPDX-License-Identifier: Apache-2.0
// Sinkhorn on stored scores. A call reads the scores once. Logits are L = scores / epsilon, inside in units of log 2.
//
// With a potential the sums over columns in sinkhorn_columns() need no maximum. The prototype step before has made
// sum_b exp(L_bk + u_b + v_k) = B m_k with the old u, and the sum of these over all k is B. So the sample step lowers
// u_b by at most -log a_b. Every term is then at most B a_b, and the terms of a column add up to at least
// B m_k min_b a_b.
#pragma once
#include "stats_forward.h"
#include "storage.h"

namespace {

using pycl::SinkhornProblem;

constexpr int kRowsAtOnce = 4;            // samples between two visits of the column sums
constexpr int kAtOnce = 8;                // vectors of logits in registers
constexpr int64_t kPrefetch = 3072;       // scores ahead; a step took 3.0 ms without, 1.7 with it
constexpr int kRowsPerTotal = 64;         // samples whose weights are summed in T, before a sum in double takes them
constexpr int kRowsPerShift = 16;         // samples between two visits of the sums at the start
constexpr int64_t kPastCache = 32 << 20;  // bytes of codes; more of them are written faster past the cache

// Exponentials are 2^(l - shift). The shift need not be the maximum: it is the largest of the first logits and stays
// until a sum exceeds kCeiling. That is rare; the terms and sums so far are then scaled to a new shift.
constexpr double kCeiling = 0x1p60;

template <class T, class S>
struct SinkhornKernels {
  const SinkhornProblem& t;
  const ExecutionContext& host;
  const int64_t n, d, width;  // samples, prototypes, prototypes padded to whole vectors
  const T scale;
  const int workers;
  T* const potential;  // of the prototypes, in units of log 2; -inf in the padding
  struct {
    T *terms, *sums;
    double* totals;
  } step{};  // of a step with a potential

  SinkhornKernels(const SinkhornProblem& problem, const ExecutionContext& h, const void* v)
      : t(problem),
        host(h),
        n(t.scores.n),
        d(t.scores.d),
        width(round_up(d, kLanes<T>)),
        scale(T(kLog2E / t.epsilon)),
        workers(n < host.threads ? int(n) : host.threads),
        potential(allocate<T>(host, width)) {
    take(static_cast<const T*>(v));
  }

  void take(const T* v) {
    for (int64_t k = 0; k < width; ++k) potential[k] = k >= d ? -kInf<T> : v ? T(double(v[k]) * kLog2E) : T(0);
  }

  // Calls body(worker, first, end) with each worker's share of the samples.
  template <class Body>
  void share(Body body) {
    struct Shares {
      Body& body;
      int64_t n, workers;
    } shares{body, n, workers};
    host.run(
        host, workers,
        [](void* arg, int w) {
          const Shares& s = *static_cast<Shares*>(arg);
          s.body(w, s.n * w / s.workers, s.n * (w + 1) / s.workers);
        },
        &shares);
  }

  const S* row(int64_t b) const { return static_cast<const S*>(t.scores.data) + b * t.scores.row_stride; }

  // A vector of a sample's logits without the potential, from column k on; finite beyond the last column.
  PYCL_INLINE Vec<T> logits(const S* from, int64_t k) const {
    if (k + kLanes<T> <= d) return Storage<T, S>::load(from + k) * scale;
    S padded[kLanes<T>] = {};
    for (int64_t r = k; r < d; ++r) padded[r - k] = from[r];
    return Storage<T, S>::load(padded) * scale;
  }

  // The softmax of a sample before its division: terms 2^(l - shift), and their sum.
  struct Softmax {
    T shift, sum;
    double lse() const { return double(shift) + ::log2(double(sum)); }
  };

  PYCL_INLINE Softmax softmax(int64_t b, T* terms) const {
    const S* const from = row(b);
    // Copies: a store to `terms` may change what a pointer refers to, and `this` is one.
    const T *const v = potential, factor = scale;
    const int64_t whole = d, end = width;
    T shift = 0;
    Vec<T> total{};
    int64_t k = 0;
    for (; k + kAtOnce * kLanes<T> <= whole; k += kAtOnce * kLanes<T>) {
      Vec<T> l[kAtOnce];
      for (int r = 0; r < kAtOnce; ++r) {
        const int64_t at = k + r * kLanes<T>;
        __builtin_prefetch(from + at + kPrefetch, 0, 2);
        l[r] = Storage<T, S>::load(from + at) * factor + load<T>(v + at);
      }
      add_terms<kAtOnce>(l, k, terms, shift, total);
    }
    for (; k < end; k += kLanes<T>) {
      const Vec<T> l = logits(from, k) + load<T>(v + k);
      add_terms<1>(&l, k, terms, shift, total);
    }
    return {shift, reduce_add<T>(total)};
  }

  template <int kVectors>
  static PYCL_INLINE void add_terms(const Vec<T>* l, int64_t k, T* terms, T& shift, Vec<T>& total) {
    if (k == 0) shift = top<kVectors>(l);
    Vec<T> sum = exponentials<kVectors>(l, shift, terms + k);
    if (any<T>(sum > T(kCeiling))) {
      const T next = top<kVectors>(l), factor = T(::exp2(double(shift) - double(next)));
      for (int64_t before = 0; before < k; before += kLanes<T>)
        store<T>(terms + before, load<T>(terms + before) * factor);
      total *= factor;
      shift = next;
      sum = exponentials<kVectors>(l, shift, terms + k);
    }
    total += sum;
  }

  // The largest of some logits; finite where all are -inf.
  template <int kVectors>
  static PYCL_INLINE T top(const Vec<T>* l) {
    Vec<T> x = splat<T>(-kLargest<T>);
    for (int r = 0; r < kVectors; ++r) x = ::max<T>(l[r], x);
    return reduce_max<T>(x);
  }

  // Sums these terms by themselves: what a sum loses to rounding grows with the number of its terms.
  template <int kVectors>
  static PYCL_INLINE Vec<T> exponentials(const Vec<T>* l, T shift, T* terms) {
    Vec<T> sum{};
    for (int r = 0; r < kVectors; ++r) {
      const Vec<T> e = saturating_exp2<T>(l[r] - shift);
      store<T>(terms + r * kLanes<T>, e);
      sum += e;
    }
    return sum;
  }

  T sample_target(int64_t b) const { return t.sample_target ? static_cast<const T*>(t.sample_target)[b] : T(0); }

  // log sum_b exp L_bk.
  void columns_at_start(T* out) {
    RunningLse<T> parts;
    parts.start(host, workers * width, -kLargest<T>);
    share([&](int w, int64_t first, int64_t end) {
      T *shift = parts.max + w * width, *sum = parts.sum + w * width;
      int64_t b = first;
      for (; b + kRowsPerShift <= end; b += kRowsPerShift) add_rows<kRowsPerShift>(b, shift, sum);
      for (; b < end; ++b) add_rows<1>(b, shift, sum);
    });
    for (int w = 1; w < workers; ++w) parts.merge(0, int(width), parts.max + w * width, false, parts.sum + w * width);
    for (int64_t k = 0; k < d; ++k) out[k] = T(parts.total(k) * kLn2);
  }

  template <int kRows>
  PYCL_INLINE void add_rows(int64_t b, T* shifts, T* sums) const {
    const S* const from = row(b);
    const int64_t stride = t.scores.row_stride, end = width;
    for (int64_t k = 0; k < end; k += kLanes<T>) {
      Vec<T> l[kRows], shift = load<T>(shifts + k), before = load<T>(sums + k), sum{};
      for (int r = 0; r < kRows; ++r) {
        __builtin_prefetch(from + r * stride + k + kPrefetch, 0, 2);
        l[r] = logits(from + r * stride, k);
        sum += saturating_exp2<T>(l[r] - shift);
      }
      if (any<T>(sum > T(kCeiling))) {
        Vec<T> next = shift;
        for (int r = 0; r < kRows; ++r) next = ::max<T>(next, l[r]);
        before *= exp2<T>(shift - next);
        sum = Vec<T>{};
        for (int r = 0; r < kRows; ++r) sum += exp2<T>(l[r] - next);
        store<T>(shifts + k, next);
      }
      store<T>(sums + k, before + sum);
    }
  }

  // log sum_b exp(L_bk + u_b), with u from the sample step with the potential; `out` may be `v`.
  void columns_after_step(const T* v, T* out) {
    const int64_t terms_size = kRowsAtOnce * width;
    if (!step.terms)  // further iterations take the same memory
      step = {allocate<T>(host, workers * terms_size), allocate<T>(host, workers * width),
              allocate<double>(host, workers * width)};
    share([&](int w, int64_t first, int64_t end) {
      T *mine = step.terms + w * terms_size, *sum = step.sums + w * width;
      double* total = step.totals + w * width;
      std::memset(total, 0, sizeof(double) * width);
      for (int64_t start = first; start < end; start += kRowsPerTotal) {
        const int64_t stop = start + kRowsPerTotal < end ? start + kRowsPerTotal : end;
        std::memset(sum, 0, sizeof(T) * width);
        int64_t b = start;
        for (; b + kRowsAtOnce <= stop; b += kRowsAtOnce) add_codes<kRowsAtOnce>(b, mine, sum);
        for (; b < stop; ++b) add_codes<1>(b, mine, sum);
        for (int64_t k = 0; k < d; ++k) total[k] += double(sum[k]);
      }
    });
    for (int64_t k = 0; k < d; ++k) {
      double total = 0;
      for (int w = 0; w < workers; ++w) total += step.totals[w * width + k];
      out[k] = T(::log(total) - double(v[k]));
    }
  }

  template <int kRows>
  PYCL_INLINE void add_codes(int64_t b, T* terms, T* sums) const {
    T weight[kRows];
    for (int r = 0; r < kRows; ++r) {
      const double mass = t.sample_target ? ::exp(double(sample_target(b + r))) : 1;
      weight[r] = T(mass / double(softmax(b + r, terms + r * width).sum));
    }
    for (int64_t k = 0; k < width; k += kLanes<T>) {
      Vec<T> total = load<T>(sums + k);
      for (int r = 0; r < kRows; ++r) total += load<T>(terms + r * width + k) * weight[r];
      store<T>(sums + k, total);
    }
  }

  // log sum_k exp(L_bk + v_k).
  void samples(T* out) {
    T* terms = allocate<T>(host, workers * width);
    share([&](int w, int64_t first, int64_t end) {
      for (int64_t b = first; b < end; ++b) out[b] = T(softmax(b, terms + w * width).lse() * kLn2);
    });
  }

  template <class Out>
  PYCL_INLINE void write_codes(const T* terms, T weight, Out* line) const {
    const int64_t whole = d / kLanes<T> * kLanes<T>;
    for (int64_t k = 0; k < whole; k += kLanes<T>) Storage<T, Out>::store(line + k, load<T>(terms + k) * weight);
    if (whole == width) return;
    Out last[kLanes<T>];
    Storage<T, Out>::store(last, load<T>(terms + whole) * weight);
    std::memcpy(line + whole, last, (d - whole) * sizeof(Out));
  }

  template <class Out>
  void codes(Out* out, T* u) {
    T* terms = allocate<T>(host, workers * width);
    const bool past_cache = n * d * int64_t(sizeof(Out)) >= kPastCache;
    Out* lines = allocate<Out>(host, past_cache ? workers * width : 1);
    share([&](int w, int64_t first, int64_t end) {
      T* mine = terms + w * width;
      for (int64_t b = first; b < end; ++b) {
        const Softmax s = softmax(b, mine);
        u[b] = T(double(sample_target(b)) - s.lse() * kLn2);
        Out* const line = past_cache ? lines + w * width : out + b * d;
        write_codes(mine, T(1 / double(s.sum)), line);
        if (past_cache) copy_past_cache(out + b * d, line, d * sizeof(Out));
      }
      if (past_cache) fence_past_cache();
    });
  }
};

template <class S>
struct StoredAs {
  using Type = S;
};

// Calls body with the type in memory of a dtype whose numbers are computed in T.
template <class T, class Body>
void with_storage(DType dtype, Body body) {
  if constexpr (sizeof(T) == 8) {
    if (dtype == DType::kFloat64) return body(StoredAs<double>{});
  } else {
    if (dtype == DType::kBFloat16) return body(StoredAs<BFloat16>{});
    if (dtype == DType::kFloat16) return body(StoredAs<Float16>{});
  }
  body(StoredAs<float>{});
}

template <class P>
void sinkhorn(const SinkhornProblem& t, const ExecutionContext& host, int64_t iterations, const void* prototype_target,
              DType dtype, void* codes, void* u, void* v) {
  using T = typename P::T;
  const T* const target = static_cast<const T*>(prototype_target);
  T* const potential = static_cast<T*>(v);
  with_storage<T>(t.scores.dtype, [&](auto scores) {
    SinkhornKernels<T, typename decltype(scores)::Type> kernels(t, host, nullptr);
    for (int64_t i = 0; i < iterations && !host.cancelled(host); ++i) {
      if (i == 0)
        kernels.columns_at_start(potential);
      else
        kernels.columns_after_step(potential, potential);
      for (int64_t k = 0; k < t.scores.d; ++k) potential[k] = target[k] - potential[k];
      kernels.take(potential);
    }
    with_storage<T>(dtype, [&](auto code) {
      kernels.codes(static_cast<typename decltype(code)::Type*>(codes), static_cast<T*>(u));
    });
  });
}

template <class P>
void sinkhorn_columns(const SinkhornProblem& t, const ExecutionContext& host, const void* v, void* out) {
  using T = typename P::T;
  with_storage<T>(t.scores.dtype, [&](auto scores) {
    SinkhornKernels<T, typename decltype(scores)::Type> kernels(t, host, v);
    if (v)
      kernels.columns_after_step(static_cast<const T*>(v), static_cast<T*>(out));
    else
      kernels.columns_at_start(static_cast<T*>(out));
  });
}

template <class P>
void sinkhorn_samples(const SinkhornProblem& t, const ExecutionContext& host, const void* v, void* out) {
  using T = typename P::T;
  with_storage<T>(t.scores.dtype, [&](auto scores) {
    SinkhornKernels<T, typename decltype(scores)::Type>(t, host, v).samples(static_cast<T*>(out));
  });
}

template <class P>
void sinkhorn_codes(const SinkhornProblem& t, const ExecutionContext& host, const void* v, DType dtype, void* out,
                    void* u) {
  using T = typename P::T;
  with_storage<T>(t.scores.dtype, [&](auto scores) {
    SinkhornKernels<T, typename decltype(scores)::Type> kernels(t, host, v);
    with_storage<T>(
        dtype, [&](auto code) { kernels.codes(static_cast<typename decltype(code)::Type*>(out), static_cast<T*>(u)); });
  });
}

}  // namespace
