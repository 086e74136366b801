// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "problem.h"

namespace pycl {

// The instruction sets that are compiled in and that this machine supports, best first. "amx-emulated" has to be asked
// for.
std::vector<std::string> supported_isas();

// Chooses by name, or the best for an empty name; throws std::invalid_argument for a name that cannot run here.
std::string select_isa(const std::string& name);

// The kernels for inputs of a dtype and so many pairs. Where `halves`, float32 inputs may be taken as two bfloat16
// halves.
const Kernels& kernels_for(DType dtype, bool halves, int64_t pairs = 0);

}  // namespace pycl
