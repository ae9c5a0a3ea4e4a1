// What a block knows of its neighbours: its cluster, the kernels before and after it, and the warpgroups that share its
// registers (PTX ISA, "barrier.cluster", "griddepcontrol", "setmaxnreg").
#pragma once

#include <cstdint>

namespace fastres::ptx {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster meet, the lanes of a warp together; what they wrote before is visible after.
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// Waits until the kernels before this one in the stream are over and their writes visible. Returns at once if this one
// was not launched to overlap them.
__device__ __forceinline__ void grid_wait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel's blocks start as soon as there is room for them; it still waits, in its grid_wait, for this one
// to end.
__device__ __forceinline__ void grid_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Sets the registers of each thread of a warpgroup: fewer, or, waiting for them, more.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void acquire_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fastres::ptx
