// The shared-memory swizzles that TMA writes and wgmma reads (PTX ISA, "Swizzle Modes"): 16-byte chunks within a span
// of 32, 64 or 128 bytes are permuted by the address bits above bit 6, so that a column of rows meets all banks.
#pragma once

#include <cstdint>

namespace fastres::emulator {

enum class Swizzle : uint8_t { kNone, k32, k64, k128 };  // numbered as CUtensorMapSwizzle

// Bytes of a row that one pattern covers; 16 when there is none.
constexpr uint32_t swizzle_span(Swizzle swizzle) {
  return 16u << static_cast<int>(swizzle);
}

// Bits 4-6 ^= bits 7-9 for 128 bytes, 4-5 ^= 7-8 for 64, 4 ^= 7 for 32: on addresses, not on offsets into a tile.
constexpr uint32_t swizzled(Swizzle swizzle, uint32_t address) {
  return address ^ ((address >> 3) & (swizzle_span(swizzle) - 16));
}

}  // namespace fastres::emulator
