// What launchers have in common: checking a problem, and writing a Plan.
#pragma once

#include <cstring>
#include <string>
#include <type_traits>

#include "params.h"

namespace fastres {

constexpr int64_t ceil_div64(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class Value>
void require(bool holds, const char* name, Value got, const char* expected) {
  if (!holds)
    throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + std::to_string(got));
}

inline void require_address(const void* pointer, size_t alignment, const char* name) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + ": expected an address, got 0");
  if (address % alignment != 0)
    throw std::invalid_argument(std::string(name) + ": expected an address that is a multiple of " +
                                std::to_string(alignment) + ", got " + std::to_string(address));
}

template <class Params>
Plan make_plan(const char* symbol, const char* ptx, const void* host, Dim3 grid, uint32_t threads,
               uint32_t shared_bytes, const Params& params) {
  static_assert(std::is_trivially_copyable_v<Params>);
  Plan plan{symbol, ptx, host, grid, Dim3{threads}, Dim3{}, shared_bytes, {}, {}};
  plan.params.resize(sizeof(Params));
  std::memcpy(plan.params.data(), &params, sizeof(Params));
  return plan;
}

// What the convolutions share, in conv_sm80.cu: throws for a problem that no kernel can run; output pixels; and the
// launch that adds the parts of a split sum in their order.
void check_conv(DType dtype, const ConvParams& params);
inline int64_t rows_of(const ConvParams& params) {
  return int64_t{params.n} * params.p * params.q;
}
Plan plan_conv_reduce(DType dtype, const ConvParams& params);

}  // namespace fastres
