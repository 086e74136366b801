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
constexpr int64_t kChunk = 1024;     // columns
constexpr int kRowsPerTotal = 64;    // samples whose weights are added up in T before they join a sum in double
constexpr int kRowsPerMaximum = 16;  // samples that share one new maximum of a column

template <class T, class S>
struct Transporter {
  const Transport& t;
  const Host& host;
  const int64_t n, d, width, chunks;  // samples, prototypes, prototypes padded to whole vectors, and in chunks
  const T scale;
  const int workers;
  T* potential;  // of the prototypes; -inf in the padding

  Transporter(const Transport& transport, const Host& h, const void* v)
      : t(transport),
        host(h),
        n(t.scores.n),
        d(t.scores.d),
        width(round_up(d, kLanes<T>)),
        chunks((width + kChunk - 1) / kChunk),
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

  // The softmax of kRows samples from b on, before its division: terms[r][k] = 2^(l - shift of the chunk of column k),
  // a running maximum. Chunks are small enough to be read twice from the first cache.
  template <int kRows>
  struct Softmax {
    T* terms;   // [kRows][width]
    T* shifts;  // [kRows][chunks]
    T sum[kRows], maximum[kRows];

    double lse(int r) const { return double(maximum[r]) + ::log2(double(sum[r])); }
  };

  template <int kRows>
  PYCL_INLINE void softmax(int64_t b, Softmax<kRows>& out) const {
    for (int r = 0; r < kRows; ++r) out.sum[r] = 0, out.maximum[r] = -kInf<T>;
    for (int64_t c = 0; c < chunks; ++c)
      for (int r = 0; r < kRows; ++r) {
        const int64_t first = c * kChunk, end = first + kChunk < width ? first + kChunk : width;
        const S* from = row(b + r);
        T* terms = out.terms + r * width;
        Vec<T> top = splat<T>(-kInf<T>);
        for (int64_t k = first; k < end; k += kLanes<T>) {
          __builtin_prefetch(from + k + kChunk);
          const Vec<T> l = logits(from, k) + load<T>(potential + k);
          store<T>(terms + k, l);
          top = ::max<T>(top, l);
        }
        const T before = out.maximum[r], here = reduce_max<T>(top), now = here > before ? here : before;
        const T shift = now == -kInf<T> ? T(0) : now;
        Vec<T> total{};
        for (int64_t k = first; k < end; k += kLanes<T>) {
          const Vec<T> e = exp2<T>(load<T>(terms + k) - shift);
          store<T>(terms + k, e);
          total += e;
        }
        out.sum[r] = out.sum[r] * exp2<T>(splat<T>(before - shift))[0] + reduce_add<T>(total);
        out.maximum[r] = now;
        out.shifts[r * chunks + c] = shift;
      }
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
    const int64_t terms_size = kRowsAtOnce * width, shifts_size = kRowsAtOnce * chunks;
    T* terms = allocate<T>(host, workers * terms_size);
    T* shifts = allocate<T>(host, workers * shifts_size);
    T* sums = allocate<T>(host, workers * width);
    double* totals = allocate<double>(host, workers * width);
    share([&](int w, int64_t first, int64_t end) {
      T *mine = terms + w * terms_size, *shift = shifts + w * shifts_size, *sum = sums + w * width;
      double* total = totals + w * width;
      std::memset(total, 0, sizeof(double) * width);
      for (int64_t start = first; start < end; start += kRowsPerTotal) {
        const int64_t stop = start + kRowsPerTotal < end ? start + kRowsPerTotal : end;
        std::memset(sum, 0, sizeof(T) * width);
        int64_t b = start;
        for (; b + kRowsAtOnce <= stop; b += kRowsAtOnce) add_codes<kRowsAtOnce>(b, mine, shift, sum);
        for (; b < stop; ++b) add_codes<1>(b, mine, shift, sum);
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
  PYCL_INLINE void add_codes(int64_t b, T* terms, T* shifts, T* sums) const {
    Softmax<kRows> s{terms, shifts, {}, {}};
    softmax<kRows>(b, s);
    for (int64_t c = 0; c < chunks; ++c) {
      T weight[kRows];
      for (int r = 0; r < kRows; ++r) weight[r] = code_scale(s, r, c, double(sample_target(b + r)));
      for (int64_t k = c * kChunk; k < width && k < (c + 1) * kChunk; k += kLanes<T>) {
        Vec<T> total = load<T>(sums + k);
        for (int r = 0; r < kRows; ++r) total += load<T>(terms + r * width + k) * weight[r];
        store<T>(sums + k, total);
      }
    }
  }

  // What makes the terms of a chunk codes, times e^target.
  template <int kRows>
  PYCL_INLINE T code_scale(const Softmax<kRows>& s, int r, int64_t c, double target) const {
    const double shift = double(s.shifts[r * chunks + c]) - double(s.maximum[r]) + target * kLog2E;
    return T((shift == 0 ? 1 : ::exp2(shift)) / double(s.sum[r]));
  }

  template <class Out>
  void codes(Out* out, T* u) {
    T* terms = allocate<T>(host, workers * width);
    T* shifts = allocate<T>(host, workers * chunks);
    share([&](int w, int64_t first, int64_t end) {
      Softmax<1> s{terms + w * width, shifts + w * chunks, {}, {}};
      for (int64_t b = first; b < end; ++b) {
        softmax<1>(b, s);
        u[b] = T(double(sample_target(b)) - s.lse(0) * kLn2);
        for (int64_t c = 0; c < chunks; ++c) {
          const T weight = code_scale(s, 0, c, 0);
          for (int64_t k = c * kChunk; k < width && k < (c + 1) * kChunk; k += kLanes<T>)
            store_codes(out + b * d, k, load<T>(s.terms + k) * weight);
        }
      }
    });
  }

  template <class Out>
  PYCL_INLINE void store_codes(Out* to, int64_t k, Vec<T> code) const {
    if (k + kLanes<T> <= d) return Storage<T, Out>::store(to + k, code);
    Out rest[kLanes<T>];
    Storage<T, Out>::store(rest, code);
    for (int64_t r = k; r < d; ++r) to[r] = rest[r - k];
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
