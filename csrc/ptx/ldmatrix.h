// ldmatrix: four 8 x 8 matrices of 16-bit elements from shared memory into the register layout of mma.sync.
#pragma once

#include <cstdint>

namespace fastres::ptx {

// Lane l gives the address of row l % 8 of matrix l / 8: 16 bytes, 16-byte aligned. It receives, of every matrix, the
// 32 bits at row l / 4, bytes 4 * (l % 4): elements of 16 bits in pairs, or one of 32 bits.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

}  // namespace fastres::ptx
