// SPDX-License-Identifier: Apache-2.0
#define PYCL_VECTOR_BYTES 64
#include "isa.h"

namespace pycl {
extern const Kernels k_avx512_float32, k_avx512_float64;
const Kernels k_avx512_float32 = kKernels<FmaProduct<float>>, k_avx512_float64 = kKernels<FmaProduct<double>>;
}  // namespace pycl
