// Arithmetic for which CUDA C++ has no function that keeps NaN.
#pragma once

namespace fastres::ptx {

// max(value, 0), and NaN for NaN as PyTorch's ReLU; fmaxf(NaN, 0) is 0.
__device__ __forceinline__ float relu(float value) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ float infinity() {
  return __int_as_float(0x7f800000);
}

// max(value, least), and NaN for NaN.
__device__ __forceinline__ float at_least(float value, float least) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(least));
  return result;
}

// The same value, in a register of its own and from here on: the compiler can't put off the copy.
__device__ __forceinline__ float copied(float value) {
  float copy;
  asm volatile("mov.f32 %0, %1;" : "=f"(copy) : "f"(value));
  return copy;
}

}  // namespace fastres::ptx
