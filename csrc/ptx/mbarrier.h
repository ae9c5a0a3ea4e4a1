// mbarrier: barriers in shared memory that count arrivals of threads and bytes of asynchronous copies (PTX ISA,
// "Parallel Synchronization and Communication Instructions: mbarrier").
//
// A phase is over when all its arrivals and bytes have come; the next begins at once. Phases alternate in parity, the
// first being 0. Waiting for parity P returns when the phase with that parity is over, so on a fresh barrier a wait for
// parity 1 returns at once: a ring's producer begins with it.
#pragma once

#include <cstdint>

namespace fastres::ptx {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes this thread's inits visible to asynchronous copies and to the cluster; a barrier of threads follows.
__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives on the barrier at the same place in the shared memory of block `rank` of the cluster. It says that memory may
// be written again by asynchronous copies, and orders no ordinary writes for the other block: with .release.cluster
// every arrival would wait for all of the thread's memory accesses (MEMBAR.ALL.GPU), some thousand clocks.
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n\t.reg .b32 there;\n\t"
      "mapa.shared::cluster.u32 there, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives, and adds `bytes` to what the phase waits for.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.b32 %0, 1, 0, p;\n\t}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}

// Returns once the phase of this parity is over, with everything before its arrivals visible.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

}  // namespace fastres::ptx
