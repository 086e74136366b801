// SPDX-License-Identifier: Apache-2.0
// The functions of a logit that sums are made of, with their slopes. Logits come in units of log 2, slopes are with
// respect to nats. A logit of -inf is a pair that was dropped: value and slope are 0.
#pragma once
#include "problem.h"
#include "vec.h"

namespace {

template <class T>
PYCL_INLINE Vec<T> magnitude(Vec<T> x) {
  return x < T(0) ? -x : x;
}

// 2^x, and infinity where that is beyond the type.
template <class T>
PYCL_INLINE Vec<T> overflowing_exp2(Vec<T> x) {
#ifdef __AVX512F__
  return exp2<T>(x);
#else
  // in two factors, as exp2() may return anything where 2^x is out of range
  constexpr T kSmaller = T(64), kLargest = sizeof(T) == 4 ? T(190) : T(1087);
  const Vec<T> taken = x > kSmaller ? splat<T>(kSmaller) : Vec<T>{};
  const Vec<T> factor = x > kSmaller ? splat<T>(T(0x1p64)) : splat<T>(1);
  return exp2<T>(min<T>(splat<T>(kLargest), x) - taken) * factor;
#endif
}

// softplus(x) and the logistic function, both without overflow.
struct Softplus {
  template <class T>
  static PYCL_INLINE Vec<T> value(Vec<T> x) {
    return ::max<T>(Vec<T>{}, x) * T(kLn2) + log1p<T>(exp2<T>(-magnitude<T>(x)));
  }
  template <class T>
  static PYCL_INLINE Vec<T> slope(Vec<T> x) {
    const Vec<T> u = exp2<T>(-magnitude<T>(x));
    return (x < T(0) ? u : splat<T>(1)) / (u + T(1));
  }
};

struct Square {
  template <class T>
  static PYCL_INLINE Vec<T> value(Vec<T> x) {
    const Vec<T> l = nats<T>(x);
    return l * l;
  }
  template <class T>
  static PYCL_INLINE Vec<T> slope(Vec<T> x) {
    return nats<T>(x) * T(2);
  }
  template <class T>
  static PYCL_INLINE Vec<T> nats(Vec<T> x) {
    return x == -kInf<T> ? Vec<T>{} : x * T(kLn2);
  }
};

struct Relu {
  template <class T>
  static PYCL_INLINE Vec<T> value(Vec<T> x) {
    return ::max<T>(Vec<T>{}, x) * T(kLn2);
  }
  template <class T>
  static PYCL_INLINE Vec<T> slope(Vec<T> x) {
    const Vec<T> positive = x > T(0) ? splat<T>(1) : Vec<T>{};
    return x != x ? x : positive;
  }
};

struct Exponential {
  template <class T>
  static PYCL_INLINE Vec<T> value(Vec<T> x) {
    return overflowing_exp2<T>(x);
  }
  template <class T>
  static PYCL_INLINE Vec<T> slope(Vec<T> x) {
    return overflowing_exp2<T>(x);
  }
};

// l e^l, which is 0 at -inf: of log-probabilities, minus an entropy.
struct LogitExponential {
  template <class T>
  static PYCL_INLINE Vec<T> value(Vec<T> x) {
    const Vec<T> e = overflowing_exp2<T>(x);
    return e == T(0) ? e : e * x * T(kLn2);
  }
  template <class T>
  static PYCL_INLINE Vec<T> slope(Vec<T> x) {
    const Vec<T> e = overflowing_exp2<T>(x);
    return e == T(0) ? e : e * (x * T(kLn2) + T(1));
  }
};

template <class Body>
void with_map(pycl::PairMap map, Body body) {
  switch (map) {
    case pycl::PairMap::kSoftplus:
      return body(Softplus{});
    case pycl::PairMap::kSquare:
      return body(Square{});
    case pycl::PairMap::kRelu:
      return body(Relu{});
    case pycl::PairMap::kExp:
      return body(Exponential{});
    case pycl::PairMap::kLogitExp:
      return body(LogitExponential{});
  }
}

}  // namespace
