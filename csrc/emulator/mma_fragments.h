// How the warp's tensor instructions spread matrices over registers, and their arithmetic.
//
// Formula: D (16 x 8) = A (16 x K) * B (K x 8) + C, in float: products of 8- to 11-bit significands are exact in float,
// sums round to nearest after every addition. Tensor cores align and truncate instead, in an order the PTX ISA
// leaves open, so results agree to rounding and not to the bit.
//
// Layout (PTX ISA, "Matrix Fragments for mma.m16n8k*"), the same for every element width: with e elements of a 32-bit
// register, g = lane / 4 and t = lane % 4, element h of register r holds
//   A: row g + 8 * (r % 2), column e * t + h + 4 * e * (r / 2)
//   B: row e * t + h + 4 * e * r, column g
//   C, D: row g + 8 * r, columns 2 * t and 2 * t + 1
#pragma once

#include <cstdint>

#include "emulator/numeric.h"

namespace fastres::emulator {

constexpr int kWarp = 32;

enum class Element : uint8_t { kF16, kBF16, kTF32, kE4M3, kE5M2, kS8, kU8 };
constexpr int bits_of(Element element) {
  return element == Element::kTF32 ? 32 : element <= Element::kBF16 ? 16 : 8;
}

// A warp's registers: lanes[r] points at register r of lane 0, its 32 lanes contiguous.
using Registers = uint32_t* const*;
using ConstRegisters = const uint32_t* const*;

// `count` elements, contiguous in memory, into floats.
void decode_elements(Element element, const uint8_t* from, int count, float* to);

// mma.sync.aligned.m16n8k{k}.row.col with A of a_element and B of b_element (they differ for 8 bits alone).
// k is 128 or 256 bits worth of elements, 4 being k = 4 of tf32. The accumulators are f32 in four registers, f16 in
// two, or s32 in four for integers; `satfinite` clamps s32.
enum class Accumulator : uint8_t { kF32, kF16, kS32 };
void mma_m16n8(Element a_element, Element b_element, Accumulator accumulator, int k, ConstRegisters a, ConstRegisters b,
               ConstRegisters c, Registers d, bool satfinite = false);

// A fragment of A as (16, k) row-major floats.
void gather_a(Element element, int k, ConstRegisters registers, float* a);

// ldmatrix and stmatrix, one 8x8 matrix of b16: rows[i] points at the 16 bytes of row i in memory.
void ldmatrix_m8n8(const uint8_t* const rows[8], bool trans, uint32_t* lanes);
void stmatrix_m8n8(const uint32_t* lanes, bool trans, uint8_t* const rows[8]);

// C (m x n) += A (m x k) * B (k x n), row-major and dense.
void multiply_accumulate(int m, int n, int k, const float* a, const float* b, float* c);

}  // namespace fastres::emulator
