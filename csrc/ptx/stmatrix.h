// stmatrix: four 8 x 8 matrices of 16-bit elements from registers to shared memory, the inverse of ldmatrix.
#pragma once

#include <cstdint>

namespace fastres::ptx {

// Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned), and of every matrix the pair of
// elements at row l / 4, columns 2 * (l % 4).
__device__ __forceinline__ void stmatrix_x4(uint32_t address, const uint32_t (&fragment)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(fragment[0]),
               "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}

}  // namespace fastres::ptx
