// SPDX-License-Identifier: Apache-2.0
#define PYCL_VECTOR_BYTES 16
#include "isa.h"

namespace pycl {
extern const Kernels k_generic_float32, k_generic_float64;
const Kernels k_generic_float32 = kKernels<FmaProduct<float>>, k_generic_float64 = kKernels<FmaProduct<double>>;
}  // namespace pycl
