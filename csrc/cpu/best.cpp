#include "rows.h"

namespace fastres::cpu {

namespace {

#ifndef FASTRES_BASELINE_ONLY
const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
constexpr bool has_avx2 = false;
namespace avx2 = baseline;
#endif

}  // namespace

template <>
Kernels<float> best() {
  if (has_avx2) return {avx2::float_kernels, avx2::float_pool};
  return {baseline::float_kernels, baseline::float_pool};
}

template <>
Kernels<double> best() {
  if (has_avx2) return {avx2::double_kernels, avx2::double_pool};
  return {baseline::double_kernels, baseline::double_pool};
}

}  // namespace fastres::cpu
