// Barriers of some of a block's threads (PTX ISA, "bar, barrier"). Number 0 is __syncthreads's.
#pragma once

#include <cstdint>

namespace fastres::ptx {

// kThreads threads, whole warps, meet at barrier `number`; what they wrote before is visible after.
template <int kThreads>
__device__ __forceinline__ void named_barrier_sync(int number) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

}  // namespace fastres::ptx
