#include "emulator/wgmma.h"

#include <algorithm>

namespace fastres::emulator {
namespace {

constexpr int kMaxPerChunk = 16;

// Calls body(element of the (16, columns) matrix, register, lane, half of the register when f16).
template <class Body>
inline void for_accumulators(Accumulator kind, int columns, Body&& body) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < columns; ++column) {
      const int v = column / 8 * 4 + row / 8 * 2 + column % 2, lane = row % 8 * 4 + column % 8 / 2;
      const int at = row * columns + column;
      if (kind == Accumulator::kF16) {
        body(at, v / 2, lane, v % 2);
      } else {
        body(at, v, lane, 0);
      }
    }
  }
}

}  // namespace

WgmmaDescriptor decode_descriptor(uint64_t bits) {
  const auto field = [&](int low, int width) { return static_cast<uint32_t>(bits >> low & ((1ull << width) - 1)); };
  constexpr Swizzle kModes[] = {Swizzle::kNone, Swizzle::k128, Swizzle::k64, Swizzle::k32};
  return {field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4, field(49, 3), kModes[field(62, 2)]};
}

std::string check_descriptor(const WgmmaDescriptor& descriptor, Element element, bool mn_major) {
  if (mn_major && bits_of(element) != 16) return "only 16-bit operands can be MN-major";
  if (descriptor.base_offset != 0) {
    return "base offset is " + std::to_string(descriptor.base_offset) +
           ", expected 0: tiles that do not start on a swizzle pattern are not modelled";
  }
  return {};
}

void gather_wgmma_a(const WgmmaDescriptor& descriptor, Element element, bool mn_major, int first, int rows, float scale,
                    const ChunkReader& chunk, float* a) {
  const int per_chunk = 128 / bits_of(element), k_extent = wgmma_k(element);
  for_each_chunk(descriptor, element, mn_major, first, rows, [&](uint32_t address, int m, int k) {
    float values[kMaxPerChunk];
    decode_elements(element, chunk(address), per_chunk, values);
    float* to = a + (m - first) * k_extent + k;
    const int step = mn_major ? k_extent : 1;
    for (int i = 0; i < per_chunk; ++i) to[i * step] = scale * values[i];
  });
}

void gather_wgmma_b(const WgmmaDescriptor& descriptor, Element element, bool mn_major, int columns, float scale,
                    const ChunkReader& chunk, float* b) {
  const int per_chunk = 128 / bits_of(element);
  for_each_chunk(descriptor, element, mn_major, 0, columns, [&](uint32_t address, int n, int k) {
    float values[kMaxPerChunk];
    decode_elements(element, chunk(address), per_chunk, values);
    float* to = b + k * columns + n;
    const int step = mn_major ? 1 : columns;
    for (int i = 0; i < per_chunk; ++i) to[i * step] = scale * values[i];
  });
}

void gather_wgmma_a_registers(Element element, ConstRegisters registers, float scale, float* a) {
  const int k_extent = wgmma_k(element);
  gather_a(element, k_extent, registers, a);
  for (int i = 0; i < 16 * k_extent; ++i) a[i] *= scale;
}

void gather_accumulators(Accumulator kind, int columns, ConstRegisters registers, float* sum) {
  for_accumulators(kind, columns, [&](int at, int r, int lane, int h) {
    const uint32_t bits = registers[r][lane];
    sum[at] = kind == Accumulator::kF16 ? decode<F16>(bits >> 16 * h & 0xffff) : bit_cast<float>(bits);
  });
}

void scatter_accumulators(Accumulator kind, int columns, const float* sum, Registers registers) {
  for_accumulators(kind, columns, [&](int at, int r, int lane, int h) {
    uint32_t& to = registers[r][lane];
    if (kind == Accumulator::kF16) {
      const uint32_t bits = encode<F16>(sum[at]);
      to = h ? (to & 0xffff) | bits << 16 : bits;
    } else {
      to = bit_cast<uint32_t>(sum[at]);
    }
  });
}

void scatter_integers(int columns, const float* product, bool accumulate, bool saturate, Registers registers) {
  for_accumulators(Accumulator::kS32, columns, [&](int at, int r, int lane, int) {
    const int64_t before = accumulate ? static_cast<int32_t>(registers[r][lane]) : 0;
    const int64_t sum = before + static_cast<int64_t>(product[at]);
    registers[r][lane] = static_cast<uint32_t>(saturate ? std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX) : sum);
  });
}

}  // namespace fastres::emulator
