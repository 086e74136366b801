// SPDX-License-Identifier: Apache-2.0
// Compiled twice: for the AMX tile unit, and with PYCL_AMX_EMULATED for machines without one.
#ifdef PYCL_AMX_EMULATED
#define PYCL_VECTOR_BYTES 16
#define PYCL_TABLE(type) k_amx_emulated_##type
#else
#define PYCL_AMX
#define PYCL_VECTOR_BYTES 64
#define PYCL_TABLE(type) k_amx_##type
#endif
#include "isa.h"
#include "product_bf16.h"

namespace pycl {
extern const Kernels PYCL_TABLE(bfloat16), PYCL_TABLE(bfloat16x3), PYCL_TABLE(bfloat16x6);
const Kernels PYCL_TABLE(bfloat16) = kKernels<Bf16Product<1>>, PYCL_TABLE(bfloat16x3) = kKernels<Bf16Product<2>>,
              PYCL_TABLE(bfloat16x6) = kKernels<Bf16Product<3>>;
}  // namespace pycl
