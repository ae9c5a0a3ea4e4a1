// cp.async: copies from global to shared memory that pass through no register (PTX ISA, "Asynchronous copy").
#pragma once

#include <cstdint>

#include "address.h"

namespace fastres::ptx {

// Copies kBytes to shared memory, or writes zeros without reading where `valid` is false. Both addresses are multiples
// of kBytes. Two bytes are less than cp.async copies: those go through a register, at once.
template <int kBytes>
__device__ __forceinline__ void cp_async(uint32_t destination, const void* source, bool valid) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  const uint32_t read = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {  // past L1: a tile is read once by a block
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination),
                 "l"(__cvta_generic_to_global(source)), "r"(read)
                 : "memory");
  } else if constexpr (kBytes > 2) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination),
                 "l"(__cvta_generic_to_global(source)), "n"(kBytes), "r"(read)
                 : "memory");
  } else {
    const uint16_t value = valid ? __ldg(static_cast<const uint16_t*>(source)) : uint16_t{0};
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(destination), "h"(value) : "memory");
  }
}

// Closes a group of the copies that this thread has issued since the last one; a group may be empty.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace fastres::ptx
