// wgmma.mma_async of m64nNk: descriptors, where operands lie in shared memory, accumulators and arithmetic (PTX ISA,
// "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions").
//
// Formula: D (64 x N) = scale_d * D + (scale_a * A (64 x K)) * (scale_b * B (K x N)) in float; K is 32 bytes of
// elements.
//
// Layout of the accumulators: element v of lane l of warp w holds row 16 * (w % 4) + l / 4 + 8 * (v / 2 % 2) and
// column 8 * (v / 4) + 2 * (l % 4) + v % 2. A in registers: each warp's 16 rows as mma.sync's A.
//
// Layout in shared memory, in 16-byte chunks and with the swizzle applied to the final address (span in bytes):
//   K-major:           row m, chunk c of its K: start + (m % 8) * span + (m / 8) * SBO + 16 * c
//   K-major, none:     start + (m % 8) * 16 + (m / 8) * SBO + c * LBO
//   MN-major:          chunk c of the MN extent at k: start + (c % s) * 16 + (c / s) * LBO + (k % 8) * span + (k / 8) *
//   SBO,
//                      s = span / 16
//   MN-major, none:    start + c * SBO + (k % 8) * 16 + (k / 8) * LBO
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "emulator/mma_fragments.h"
#include "emulator/swizzle.h"

namespace fastres::emulator {

struct WgmmaDescriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t base_offset;
  Swizzle swizzle;
};
WgmmaDescriptor decode_descriptor(uint64_t bits);
// What is wrong with it as an operand of this kind; empty if nothing.
std::string check_descriptor(const WgmmaDescriptor& descriptor, Element element, bool mn_major);

constexpr int kWarpgroupRows = 64;
constexpr int wgmma_k(Element element) {
  return 256 / bits_of(element);
}

// Calls body(address, row or column, k of its first element) for each 16-byte chunk of an operand of `extent` rows (A)
// or columns (B), addresses swizzled.
template <class Body>
void for_each_chunk(const WgmmaDescriptor& d, Element element, bool mn_major, int first, int extent, Body&& body) {
  const int per_chunk = 128 / bits_of(element), k_extent = wgmma_k(element);
  const uint32_t span = swizzle_span(d.swizzle);
  const bool plain = d.swizzle == Swizzle::kNone;
  if (!mn_major) {
    const uint32_t step = plain ? d.leading : 16;
    for (int m = first; m < first + extent; ++m) {
      for (int c = 0; c < 2; ++c) {
        const uint32_t address = d.start + m % 8 * span + m / 8 * d.stride + c * step;
        body(swizzled(d.swizzle, address), m, c * per_chunk);
      }
    }
    return;
  }
  const int chunks = static_cast<int>(span / 16);
  const uint32_t chunk_step = plain ? d.stride : d.leading, k_step = plain ? d.leading : d.stride;
  for (int c = first / per_chunk; c < (first + extent) / per_chunk; ++c) {
    for (int k = 0; k < k_extent; ++k) {
      const uint32_t address = d.start + c % chunks * 16 + c / chunks * chunk_step + k % 8 * span + k / 8 * k_step;
      body(swizzled(d.swizzle, address), c * per_chunk, k);
    }
  }
}

// Gathers an operand to floats: rows [first, first + rows) of A as (rows, K) row-major, B as (K, columns) row-major,
// times `scale`. `chunk` returns the 16 bytes at a shared-memory address.
using ChunkReader = std::function<const uint8_t*(uint32_t address)>;
void gather_wgmma_a(const WgmmaDescriptor& descriptor, Element element, bool mn_major, int first, int rows, float scale,
                    const ChunkReader& chunk, float* a);
void gather_wgmma_b(const WgmmaDescriptor& descriptor, Element element, bool mn_major, int columns, float scale,
                    const ChunkReader& chunk, float* b);
// One warp's 16 rows of A, from four registers: a is (16, K).
void gather_wgmma_a_registers(Element element, ConstRegisters registers, float scale, float* a);

// One warp's 16 rows of accumulators, (16, columns) row-major in float, from and to registers; f16 has two of a
// register.
void gather_accumulators(Accumulator kind, int columns, ConstRegisters registers, float* sum);
void scatter_accumulators(Accumulator kind, int columns, const float* sum, Registers registers);

// s32 accumulators: `product` is exact, its sum with what is there wraps, or clamps when `saturate`.
void scatter_integers(int columns, const float* product, bool accumulate, bool saturate, Registers registers);

}  // namespace fastres::emulator
