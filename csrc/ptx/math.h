// Arithmetic for which CUDA C++ has no function that keeps NaN.
#pragma once

namespace fastres::ptx {

// max(value, 0), and NaN for NaN as PyTorch's ReLU; fmaxf(NaN, 0) is 0.
__device__ __forceinline__ float relu(float value) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
}

}  // namespace fastres::ptx
