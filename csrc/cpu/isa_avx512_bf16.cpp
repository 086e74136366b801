// SPDX-License-Identifier: Apache-2.0
#define PYCL_VECTOR_BYTES 64
#include "isa.h"
#include "product_bf16.h"

namespace pycl {
extern const Kernels k_avx512_bf16_bfloat16;
const Kernels k_avx512_bf16_bfloat16 = kKernels<Bf16Product<1>>;
}  // namespace pycl
