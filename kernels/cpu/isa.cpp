// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace sink_attention::cpu {
namespace {

// AMX needs the processor's amx-tile and amx-bf16 (CPUID leaf 7, EDX bits 24 and 22) and the kernel's leave
// to use the tile state (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18), which it grants once for the process.
bool amx_granted() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & (1U << 24)) == 0 || (edx & (1U << 22)) == 0) return false;
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// CPUID leaf 1, ECX bit 29: not every compiler's __builtin_cpu_supports knows it.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1U << 29)) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

bool isa_available(Isa isa) {
  static const bool avx2 = has_avx2();
  static const bool avx512 = has_avx512();
  static const bool amx = avx512 && amx_granted();
  switch (isa) {
    case Isa::kAuto:
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAmx:
      return amx;
  }
  return false;
}

const IsaTable& isa_table(Isa isa, DType dtype) {
  const bool best = isa == Isa::kAuto;
  if (isa == Isa::kAmx || (best && dtype == DType::kBf16 && isa_available(Isa::kAmx))) return kAmxTable;
  if (isa == Isa::kAvx512 || (best && isa_available(Isa::kAvx512))) return kAvx512Table;
  return kAvx2Table;
}

const char* isa_name(DType dtype) {
  return isa_table(Isa::kAuto, dtype).name;
}

}  // namespace sink_attention::cpu
