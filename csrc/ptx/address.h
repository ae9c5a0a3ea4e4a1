// Addresses of shared memory, as the instructions of PTX want them.
#pragma once

#include <cstdint>

namespace fastres::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace fastres::ptx
