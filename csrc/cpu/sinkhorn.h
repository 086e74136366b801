// SPDX-License-Identifier: Apache-2.0
// Sinkhorn on stored scores, one read of them a call. Logits are L = scores / epsilon; inside, in units of log 2.
//
// The sums over columns in sinkhorn_columns() with a potential need no maximum. The prototype step before has made
// sum_b exp(L_bk + u_b + v_k) = B m_k with the old u, all k together B, so the sample step lowers u_b by at most
// -log a_b: every term is at most B a_b, and in every column they add up to at least B m_k min_b a_b.
#pragma once
#include "stats_forward.h"
#include "storage.h"

namespace {

using pycl::Transport;

constexpr int kRowsAtOnce = 4;       // samples between two visits of the column sums
constexpr int kAtOnce = 8;           // vectors of logits in registers
constexpr int64_t kPrefetch = 1024;  // scores ahead; took a third off a step, which its exponentials bound then
constexpr int kSlack = 40;           // how far above its shift a logit may be, in units of log 2
constexpr int kRowsPerTotal = 64;    // samples whose weights are added up in T before they join a sum in double
constexpr int kRowsPerMaximum = 16;  // samples that share one new maximum of a column

template <class T, class S>
struct Transporter {
  const Transport& t;
  const Host& host;
  const int64_t n, d, width;  // samples, prototypes, prototypes padded to whole vectors
  const T scale;
  const int workers;
  T* potential;  // of the prototypes; -inf in the padding

  Transporter(const Transport& transport, const Host& h, const void* v)
      : t(transport),
        host(h),
        n(t.scores.n),
        d(t.scores.d),
        width(round_up(d, kLanes<T>)),
        scale(T(kLog2E / t.epsilon)),
        workers(count_workers()) {
    potential = allocate<T>(host, width);
    for (int64_t k = 0; k < width; ++k)
      potential[k] = k >= d ? -kInf<T> : v ? T(double(static_cast<const T*>(v)[k]) * kLog2E) : T(0);
  }

  int count_workers() const {
    const int64_t worth = n * d / kElementsPerWorker + 1;
    const int64_t most = worth < n ? worth : n;
    return int(most < 1 ? 1 : most < host.threads ? most : host.threads);
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

  // Logits of sample b without the potential, a vector from column k on; finite beyond the last.
  PYCL_INLINE Vec<T> logits(const S* from, int64_t k) const {
    if (k + kLanes<T> <= d) return Storage<T, S>::load(from + k) * scale;
    S padded[kLanes<T>] = {};
    for (int64_t r = k; r < d; ++r) padded[r - k] = from[r];
    return Storage<T, S>::load(padded) * scale;
  }

  // The softmax of sample b before its division: terms 2^(l - shift) and their sum. A shift need not be the maximum: it
  // is one of the first vectors' and stays until a logit exceeds it by kSlack, which is rare, and then the terms so far
  // are scaled. So logits go from their registers into the exponential.
  struct Softmax {
    T shift, sum;
    double lse() const { return double(shift) + ::log2(double(sum)); }
  };

  PYCL_INLINE Softmax softmax(int64_t b, T* terms) const {
    Softmax s{-kLargest<T>, 0};
    Vec<T> total{};
    int64_t k = 0;
    for (; k + kAtOnce * kLanes<T> <= width; k += kAtOnce * kLanes<T>) add_terms<kAtOnce>(b, k, terms, s, total);
    for (; k < width; k += kLanes<T>) add_terms<1>(b, k, terms, s, total);
    s.sum = reduce_add<T>(total);
    return s;
  }

  template <int kVectors>
  PYCL_INLINE void add_terms(int64_t b, int64_t k, T* terms, Softmax& s, Vec<T>& total) const {
    const S* from = row(b);
    Vec<T> l[kVectors];
    Vec<T> top = splat<T>(-kLargest<T>);
    for (int r = 0; r < kVectors; ++r) {
      __builtin_prefetch(from + k + r * kLanes<T> + kPrefetch, 0, 2);
      l[r] = logits(from, k + r * kLanes<T>) + load<T>(potential + k + r * kLanes<T>);
      top = ::max<T>(l[r], top);
    }
    if (any<T>(top > s.shift + kSlack)) rescale(reduce_max<T>(top), k, terms, s, total);
    Vec<T> sum{};  // of these first: what a sum loses grows with the number of its terms
    for (int r = 0; r < kVectors; ++r) {
      const Vec<T> e = exp2<T>(l[r] - s.shift);
      store<T>(terms + k + r * kLanes<T>, e);
      sum += e;
    }
    total += sum;
  }

  __attribute__((noinline)) void rescale(T shift, int64_t end, T* terms, Softmax& s, Vec<T>& total) const {
    const T factor = T(::exp2(double(s.shift) - double(shift)));
    for (int64_t k = 0; k < end; k += kLanes<T>) store<T>(terms + k, load<T>(terms + k) * factor);
    total *= factor;
    s.shift = shift;
  }

  T sample_target(int64_t b) const { return t.sample_target ? static_cast<const T*>(t.sample_target)[b] : T(0); }

  // log sum_b exp L_bk, with a running maximum.
  void columns_at_start(T* out) {
    RunningLse<T> parts;
    parts.start(host, workers * width, -kInf<T>);
    share([&](int w, int64_t first, int64_t end) {
      T *max = parts.max + w * width, *sum = parts.sum + w * width;
      int64_t b = first;
      for (; b + kRowsPerMaximum <= end; b += kRowsPerMaximum) add_rows<kRowsPerMaximum>(b, max, sum);
      for (; b < end; ++b) add_rows<1>(b, max, sum);
    });
    for (int w = 1; w < workers; ++w) parts.merge(0, int(width), parts.max + w * width, false, parts.sum + w * width);
    for (int64_t k = 0; k < d; ++k) out[k] = T(parts.total(k) * kLn2);
  }

  template <int kRows>
  PYCL_INLINE void add_rows(int64_t b, T* max, T* sum) const {
    for (int64_t k = 0; k < width; k += kLanes<T>) {
      Vec<T> l[kRows];
      const Vec<T> before = load<T>(max + k);
      Vec<T> top = before;
      for (int r = 0; r < kRows; ++r) {
        __builtin_prefetch(row(b + r) + k + kPrefetch, 0, 2);
        l[r] = logits(row(b + r), k);
        top = ::max<T>(top, l[r]);
      }
      const Vec<T> base = top == -kInf<T> ? Vec<T>{} : top;
      Vec<T> total{};
      for (int r = 0; r < kRows; ++r) total += exp2<T>(l[r] - base);
      store<T>(sum + k, load<T>(sum + k) * exp2<T>(before - base) + total);
      store<T>(max + k, top);
    }
  }

  // log sum_b exp(L_bk + u_b), u from the sample step with the potential.
  void columns_after_step(const T* v, T* out) {
    const int64_t terms_size = kRowsAtOnce * width;
    T* terms = allocate<T>(host, workers * terms_size);
    T* sums = allocate<T>(host, workers * width);
    double* totals = allocate<double>(host, workers * width);
    share([&](int w, int64_t first, int64_t end) {
      T *mine = terms + w * terms_size, *sum = sums + w * width;
      double* total = totals + w * width;
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
      for (int w = 0; w < workers; ++w) total += totals[w * width + k];
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

  template <class Out>
  void codes(Out* out, T* u) {
    T* terms = allocate<T>(host, workers * width);
    share([&](int w, int64_t first, int64_t end) {
      T* mine = terms + w * width;
      for (int64_t b = first; b < end; ++b) {
        const Softmax s = softmax(b, mine);
        u[b] = T(double(sample_target(b)) - s.lse() * kLn2);
        const T weight = T(1 / double(s.sum));
        Out* to = out + b * d;
        int64_t k = 0;
        for (; k + kLanes<T> <= d; k += kLanes<T>) Storage<T, Out>::store(to + k, load<T>(mine + k) * weight);
        Out rest[kLanes<T>];
        if (k < d) Storage<T, Out>::store(rest, load<T>(mine + k) * weight);
        for (int64_t r = k; r < d; ++r) to[r] = rest[r - k];
      }
    });
  }
};

template <class S>
struct StoredAs {
  using Type = S;
};

// Calls body with the type that a dtype which is computed in T has in memory.
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
void sinkhorn_columns(const Transport& t, const Host& host, const void* v, void* out) {
  using T = typename P::T;
  with_storage<T>(t.scores.dtype, [&](auto scores) {
    Transporter<T, typename decltype(scores)::Type> transporter(t, host, v);
    if (v)
      transporter.columns_after_step(static_cast<const T*>(v), static_cast<T*>(out));
    else
      transporter.columns_at_start(static_cast<T*>(out));
  });
}

template <class P>
void sinkhorn_codes(const Transport& t, const Host& host, const void* v, DType dtype, void* out, void* u) {
  using T = typename P::T;
  with_storage<T>(t.scores.dtype, [&](auto scores) {
    Transporter<T, typename decltype(scores)::Type> transporter(t, host, v);
    with_storage<T>(dtype, [&](auto code) {
      transporter.codes(static_cast<typename decltype(code)::Type*>(out), static_cast<T*>(u));
    });
  });
}

}  // namespace
