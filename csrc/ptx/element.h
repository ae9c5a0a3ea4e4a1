// The element types of activations and weights as tags, and their conversions to and from float32. CUDA's own headers
// for them would double the time that a kernel takes to compile.
#pragma once

#include <cstdint>

namespace fastres {

struct Bf16 {
  using Bits = uint16_t;
  static constexpr bool kRoundOperands = false;

  static __device__ __forceinline__ float widen(Bits bits) { return __uint_as_float(uint32_t{bits} << 16); }
  static __device__ __forceinline__ uint32_t narrow(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {  // of pairs; NaN if either is
    uint32_t most;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
  }
};

struct Fp16 {
  using Bits = uint16_t;
  static constexpr bool kRoundOperands = false;

  static __device__ __forceinline__ float widen(Bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static __device__ __forceinline__ uint32_t narrow(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {  // of pairs; NaN if either is
    uint32_t most;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
  }
};

// float32 in memory. The tensor cores drop the low 13 bits of an operand; rounding it first halves the error and
// removes the bias.
struct Tf32 {
  using Bits = uint32_t;
  static constexpr bool kRoundOperands = true;

  static __device__ __forceinline__ float widen(Bits bits) { return __uint_as_float(bits); }
  static __device__ __forceinline__ void round_operand(uint32_t& bits) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(__uint_as_float(bits)));
  }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {  // NaN if either is
    uint32_t most;
    asm("max.NaN.f32 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
  }
};

// 16 bytes of elements: what one lane moves at a time.
template <class T>
struct Chunk {
  static constexpr int kElements = 16 / sizeof(typename T::Bits);
  union {
    uint4 vector;
    uint32_t word[4];
    typename T::Bits element[kElements];
  };

  static __device__ __forceinline__ Chunk narrow(const float (&value)[kElements]) {
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kElements == 8) {
        chunk.word[i] = T::narrow(value[2 * i], value[2 * i + 1]);
      } else {
        chunk.word[i] = __float_as_uint(value[i]);
      }
    }
    return chunk;
  }

  __device__ __forceinline__ float operator[](int i) const { return T::widen(element[i]); }

  // The `count` elements at `from`, zeros after them. `aligned`: `from` is 16-byte aligned and count is 0 or all. Not
  // by the read-only path: a result may be written over what was read.
  static __device__ __forceinline__ Chunk load(const typename T::Bits* from, int count, bool aligned) {
    Chunk chunk;
    chunk.vector = make_uint4(0, 0, 0, 0);
    if (aligned) {
      if (count > 0) chunk.vector = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        if (i < count) chunk.element[i] = from[i];
    }
    return chunk;
  }

  // Writes the first `count` elements to `to`; `aligned` as for load.
  __device__ __forceinline__ void store(typename T::Bits* to, int count, bool aligned) const {
    if (aligned) {
      if (count > 0) *reinterpret_cast<uint4*>(to) = vector;
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        if (i < count) to[i] = element[i];
    }
  }
};

}  // namespace fastres
