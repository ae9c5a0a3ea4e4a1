#include "emulator/mma_fragments.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace fastres::emulator {
namespace {

template <class F, class Storage>
void decode_all(const uint8_t* from, int count, float* to) {
  for (int i = 0; i < count; ++i) {
    Storage bits;
    std::memcpy(&bits, from + i * sizeof(Storage), sizeof bits);
    to[i] = decode<F>(bits);
  }
}

// One register of all lanes as elements: to[lane * per_register + h]. Integers are exact in float.
void decode_register(Element element, const uint32_t* lanes, float* to) {
  decode_elements(element, reinterpret_cast<const uint8_t*>(lanes), kWarp * 32 / bits_of(element), to);
}

void gather_b(Element element, int k, ConstRegisters registers, float* b) {
  const int per = 32 / bits_of(element), count = k / (4 * per);
  float values[kWarp * 4];
  for (int r = 0; r < count; ++r) {
    decode_register(element, registers[r], values);
    float* base = b + 4 * per * r * 8;
    for (int row = 0; row < 4 * per; ++row) {
      for (int g = 0; g < 8; ++g) base[row * 8 + g] = values[g * 4 * per + row];
    }
  }
}

// Calls body(element of the 16 x 8 matrix, register, lane, element of the register pair).
template <class Body>
inline void for_accumulators(Body&& body) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      body(row * 8 + column, row / 8, row % 8 * 4 + column / 2, column % 2);
    }
  }
}

void mma_integer(Element a_element, Element b_element, int k, ConstRegisters a, ConstRegisters b, ConstRegisters c,
                 Registers d, bool satfinite) {
  float a_matrix[16 * 32], b_matrix[32 * 8], product[16 * 8] = {};
  gather_a(a_element, k, a, a_matrix);
  gather_b(b_element, k, b, b_matrix);
  multiply_accumulate(16, 8, k, a_matrix, b_matrix, product);  // at most 32 * 255 * 255 < 2^24: exact
  for_accumulators([&](int at, int r, int lane, int h) {
    const int64_t sum = static_cast<int32_t>(c[2 * r + h][lane]) + static_cast<int64_t>(product[at]);
    const int64_t low = std::numeric_limits<int32_t>::min(), high = std::numeric_limits<int32_t>::max();
    d[2 * r + h][lane] = static_cast<uint32_t>(satfinite ? std::clamp(sum, low, high) : sum);
  });
}

}  // namespace

void decode_elements(Element element, const uint8_t* from, int count, float* to) {
  switch (element) {
    case Element::kF16:
      return decode_all<F16, uint16_t>(from, count, to);
    case Element::kBF16:
      return decode_all<BF16, uint16_t>(from, count, to);
    case Element::kTF32:
      return decode_all<TF32, uint32_t>(from, count, to);
    case Element::kE4M3:
      return decode_all<E4M3, uint8_t>(from, count, to);
    case Element::kE5M2:
      return decode_all<E5M2, uint8_t>(from, count, to);
    case Element::kS8:
      for (int i = 0; i < count; ++i) to[i] = static_cast<int8_t>(from[i]);
      return;
    case Element::kU8:
      for (int i = 0; i < count; ++i) to[i] = from[i];
      return;
  }
}

void gather_a(Element element, int k, ConstRegisters registers, float* a) {
  const int per = 32 / bits_of(element), count = k / (4 * per) * 2;
  float values[kWarp * 4];
  for (int r = 0; r < count; ++r) {
    decode_register(element, registers[r], values);
    float* base = a + 8 * (r % 2) * k + 4 * per * (r / 2);
    for (int g = 0; g < 8; ++g) std::copy_n(values + g * 4 * per, 4 * per, base + g * k);
  }
}

void multiply_accumulate(int m, int n, int k, const float* a, const float* b, float* c) {
  constexpr int kBlock = 8;  // columns held in vector registers over the whole of k; every n of the ISA is a multiple
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; column += kBlock) {
      float sum[kBlock];
      std::copy_n(c + row * n + column, kBlock, sum);
      for (int i = 0; i < k; ++i) {
        const float scale = a[row * k + i];
        const float* from = b + i * n + column;
        for (int j = 0; j < kBlock; ++j) sum[j] += scale * from[j];
      }
      std::copy_n(sum, kBlock, c + row * n + column);
    }
  }
}

void mma_m16n8(Element a_element, Element b_element, Accumulator accumulator, int k, ConstRegisters a, ConstRegisters b,
               ConstRegisters c, Registers d, bool satfinite) {
  if (accumulator == Accumulator::kS32) return mma_integer(a_element, b_element, k, a, b, c, d, satfinite);
  float a_matrix[16 * 32], b_matrix[32 * 8], sum[16 * 8];
  gather_a(a_element, k, a, a_matrix);
  gather_b(b_element, k, b, b_matrix);
  if (accumulator == Accumulator::kF32) {
    for_accumulators([&](int at, int r, int lane, int h) { sum[at] = bit_cast<float>(c[2 * r + h][lane]); });
    multiply_accumulate(16, 8, k, a_matrix, b_matrix, sum);
    for_accumulators([&](int at, int r, int lane, int h) { d[2 * r + h][lane] = bit_cast<uint32_t>(sum[at]); });
  } else {
    for_accumulators([&](int at, int r, int lane, int h) { sum[at] = decode<F16>(c[r][lane] >> 16 * h & 0xffff); });
    multiply_accumulate(16, 8, k, a_matrix, b_matrix, sum);
    for_accumulators([&](int at, int r, int lane, int h) {
      const uint32_t bits = encode<F16>(sum[at]);
      d[r][lane] = h ? (d[r][lane] & 0xffff) | bits << 16 : bits;
    });
  }
}

void ldmatrix_m8n8(const uint8_t* const rows[8], bool trans, uint32_t* lanes) {
  uint16_t matrix[8][8];
  for (int row = 0; row < 8; ++row) std::memcpy(matrix[row], rows[row], 16);
  for (int lane = 0; lane < kWarp; ++lane) {
    const int i = lane / 4, j = lane % 4 * 2;
    lanes[lane] = trans ? matrix[j][i] | static_cast<uint32_t>(matrix[j + 1][i]) << 16
                        : matrix[i][j] | static_cast<uint32_t>(matrix[i][j + 1]) << 16;
  }
}

void stmatrix_m8n8(const uint32_t* lanes, bool trans, uint8_t* const rows[8]) {
  uint16_t matrix[8][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int i = lane / 4, j = lane % 4 * 2;
    for (int h = 0; h < 2; ++h) {
      (trans ? matrix[j + h][i] : matrix[i][j + h]) = static_cast<uint16_t>(lanes[lane] >> 16 * h);
    }
  }
  for (int row = 0; row < 8; ++row) std::memcpy(rows[row], matrix[row], 16);
}

}  // namespace fastres::emulator
