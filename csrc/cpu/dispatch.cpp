// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <stdexcept>
#include <tuple>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pycl {

extern const Kernels k_generic_float32, k_generic_float64;
extern const Kernels k_amx_emulated_bfloat16, k_amx_emulated_bfloat16x3, k_amx_emulated_bfloat16x6;
#ifdef PYCL_X86
extern const Kernels k_avx2_float32, k_avx2_float64, k_avx512_float32, k_avx512_float64, k_avx512_bf16_bfloat16;
extern const Kernels k_amx_bfloat16, k_amx_bfloat16x3, k_amx_bfloat16x6;
#endif

namespace {

bool always() { return true; }
#ifdef PYCL_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_amx() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl: the kernel saves tiles on request only
  return has_avx512_bf16() && __builtin_cpu_supports("amx-bf16") &&
         !syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#else
  return false;
#endif
}
#endif

// Worst to best; an empty entry is served by the nearest set above it in this list.
const Isa kIsas[] = {
    {"generic", always, &k_generic_float32, &k_generic_float64, nullptr, nullptr, nullptr},
#ifdef PYCL_X86
    {"avx2", has_avx2, &k_avx2_float32, &k_avx2_float64, nullptr, nullptr, nullptr},
    {"avx512", has_avx512, &k_avx512_float32, &k_avx512_float64, nullptr, nullptr, nullptr},
    {"avx512_bf16", has_avx512_bf16, nullptr, nullptr, &k_avx512_bf16_bfloat16, nullptr, nullptr},
    {"amx", has_amx, nullptr, nullptr, &k_amx_bfloat16, &k_amx_bfloat16x3, &k_amx_bfloat16x6},
#endif
};
const Isa kEmulated = {"amx-emulated",
                       always,
                       &k_generic_float32,
                       &k_generic_float64,
                       &k_amx_emulated_bfloat16,
                       &k_amx_emulated_bfloat16x3,
                       &k_amx_emulated_bfloat16x6};

Isa chosen = kIsas[0];
bool by_name = false;  // somebody asked for it

// On a core that runs another thread, too, tile units gain nothing, and smaller problems lose up to a fifth. On a core
// of their own they take 0.5 to 0.7 of the time (Sapphire Rapids). Who asks for a tile unit has it for all sizes.
constexpr int64_t kWorthParts = 1 << 22;

Isa with_inherited(size_t index) {
  Isa isa = kIsas[index];
  for (size_t i = index; i-- > 0;) {
    if (!isa.float32) isa.float32 = kIsas[i].float32;
    if (!isa.float64) isa.float64 = kIsas[i].float64;
    if (!isa.bfloat16) isa.bfloat16 = kIsas[i].bfloat16;
  }
  return isa;
}

auto all(const Matrix& z) { return std::tie(z.data, z.n, z.d, z.row_stride, z.col_stride, z.dtype); }

auto all(const Side& side) { return std::tuple_cat(all(side.z), std::tie(side.ids, side.views, side.instances)); }

auto all(const Problem& p) {
  return std::tuple_cat(all(p.rows), all(p.cols),
                        std::tie(p.symmetric, p.logit_scale, p.scale_per_row, p.pairs, p.positives, p.has_self,
                                 p.offset, p.normalize, p.residuals, p.residual_bytes));
}

auto all(const ResidualHeader& header) {
  return std::tuple_cat(all(header.problem), std::tie(header.product, header.block, header.groups));
}

}  // namespace

// Products depend on neither biases nor modifiers.
bool ResidualHeader::operator==(const ResidualHeader& other) const { return all(*this) == all(other); }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (size_t i = std::size(kIsas); i-- > 0;)
    if (kIsas[i].supported()) names.push_back(kIsas[i].name);
  names.push_back(kEmulated.name);
  return names;
}

std::string select_isa(const std::string& name) {
  const std::vector<std::string> names = supported_isas();
  const std::string wanted = name.empty() ? names.front() : name;
  if (wanted == kEmulated.name) {
    chosen = kEmulated;
    by_name = true;
    return wanted;
  }
  for (size_t i = 0; i < std::size(kIsas); ++i)
    if (wanted == kIsas[i].name && kIsas[i].supported()) {
      chosen = with_inherited(i);
      by_name = !name.empty();
      return wanted;
    }
  std::string message = "instruction set '" + wanted + "' cannot run here; this machine has";
  for (const std::string& one : names) message += " " + one;
  throw std::invalid_argument(message);
}

const Kernels& kernels_for(DType dtype, bool halves, int64_t pairs) {
  if (dtype == DType::kFloat64) return *chosen.float64;
  if (dtype == DType::kBFloat16 && chosen.bfloat16) return *chosen.bfloat16;
  if (dtype == DType::kFloat32 && halves && chosen.bfloat16x3) return *chosen.bfloat16x3;
  return chosen.bfloat16x6 && (by_name || pairs >= kWorthParts) ? *chosen.bfloat16x6 : *chosen.float32;
}

}  // namespace pycl
