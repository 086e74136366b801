// SPDX-License-Identifier: Apache-2.0
// Included by the files named after an instruction set: everything above it has internal linkage, so that no code
// compiled with special flags can be picked by the linker for another file.
#pragma once
#include "average.h"
#include "extremes.h"
#include "prefixes.h"
#include "sinkhorn.h"
#include "slopes.h"
#include "unit.h"

namespace {

template <class P>
constexpr pycl::Kernels kKernels = {residual_bytes<P>,
                                    pair_stats<P>,
                                    pair_stats_backward<P>,
                                    prefix_stats<P>,
                                    prefix_stats_backward<P>,
                                    pair_cross_entropy_fused<P>,
                                    pair_sum<P>,
                                    pair_sum_backward<P>,
                                    pair_sum_fused<P>,
                                    pair_average<P>,
                                    pair_average_backward<P>,
                                    pair_extremes<P>,
                                    sinkhorn<P>,
                                    sinkhorn_columns<P>,
                                    sinkhorn_samples<P>,
                                    sinkhorn_codes<P>,
                                    unit<P>,
                                    unit_backward<P>};

}  // namespace
