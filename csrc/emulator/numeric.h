// The small floating-point formats of PTX: f16, bf16, tf32, e4m3 and e5m2, with every rounding mode of `cvt`.
//
// Formula: a value is (-1)^s * 2^(e - bias) * 1.m, subnormal 2^(1 - bias) * 0.m when e = 0. Rounding drops the low bits
// of the wider significand and adds one by mode; the sum carries into the exponent by itself, because the encodings of
// a sign's values are in order.
//
// NaN follows the PTX ISA ("cvt", "Floating point instructions"): a NaN input gives the format's canonical NaN, all
// ones but for the sign.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastres::emulator {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

enum class Rounding : uint8_t { kNearestEven, kZero, kDown, kUp, kNearestAway };  // .rn .rz .rm .rp .rna

// Bits: sign, exponent, mantissa, then kPadding ignored bits (tf32 lives in the upper 19 bits of 32).
template <int kExponentBits, int kMantissaBits, bool kHasInfinity, int kPadding>
struct Format {
  static constexpr int kExponent = kExponentBits, kMantissa = kMantissaBits, kPad = kPadding;
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr int kSignShift = kExponentBits + kMantissaBits;
  static constexpr bool kInfinite = kHasInfinity;
  static constexpr uint32_t kMagnitude = (1u << kSignShift) - 1;
  static constexpr uint32_t kInfinity = ((1u << kExponentBits) - 1) << kMantissaBits;
  static constexpr uint32_t kMaxFinite = kHasInfinity ? kInfinity - 1 : kMagnitude - 1;
  static constexpr uint32_t kNaN = (kMagnitude << kPadding) | ((1u << kPadding) - 1);  // canonical, as stored
};
using F16 = Format<5, 10, true, 0>;
using BF16 = Format<8, 7, true, 0>;
using TF32 = Format<8, 10, true, 13>;
using E5M2 = Format<5, 2, true, 0>;
using E4M3 = Format<4, 3, false, 0>;  // no infinity: the all-ones exponent holds numbers, the last code is NaN

// Exact. A padded format's ignored bits are ignored.
template <class F>
inline float decode(uint32_t bits) {
  bits >>= F::kPad;
  const uint32_t magnitude = bits & F::kMagnitude;
  uint32_t wide = magnitude << (23 - F::kMantissa);
  if constexpr (F::kExponent < 8) {  // re-bias by an exact product, which also normalises subnormals
    const uint32_t scale = static_cast<uint32_t>(254 - F::kBias) << 23;
    wide = bit_cast<uint32_t>(bit_cast<float>(wide) * bit_cast<float>(scale));
    const bool special = F::kInfinite ? magnitude >= F::kInfinity : magnitude == F::kMagnitude;
    wide |= special ? 0x7f800000u : 0u;
  }
  return bit_cast<float>(wide | (bits >> F::kSignShift & 1u) << 31);
}

struct EncodeOptions {
  Rounding rounding = Rounding::kNearestEven;
  bool saturate = false;  // .satfinite: anything past the largest finite value, infinity too, becomes that value
  bool relu = false;      // .relu: what is negative becomes +0; NaN stays NaN
};

// `Real` is float or double. E4M3 has no infinity, so it always saturates (its cvt requires .satfinite).
template <class F, class Real>
inline uint32_t encode(Real value, EncodeOptions options = {}) {
  static_assert(sizeof(Real) == 4 || sizeof(Real) == 8);
  using Bits = std::conditional_t<sizeof(Real) == 4, uint32_t, uint64_t>;
  constexpr int kMantissa = sizeof(Real) == 4 ? 23 : 52;
  constexpr int kBias = sizeof(Real) == 4 ? 127 : 1023;
  constexpr int kWidth = sizeof(Real) * 8;
  constexpr int kLowest = kBias - F::kBias + 1;  // source exponent of the smallest normal number of F
  constexpr Bits kOne = 1;

  const Bits bits = bit_cast<Bits>(value);
  const Bits magnitude = bits & ~(kOne << (kWidth - 1));
  const uint32_t negative = static_cast<uint32_t>(bits >> (kWidth - 1));
  const int field = static_cast<int>(magnitude >> kMantissa);
  const int exponent = std::max(field, 1);
  const Bits significand = (magnitude & ((kOne << kMantissa) - 1)) | (static_cast<Bits>(field != 0) << kMantissa);

  const int drop = std::min(kMantissa - F::kMantissa + std::max(kLowest - exponent, 0), kWidth - 2);
  Bits kept = drop ? significand >> drop : significand;
  const Bits rest = drop ? significand & ((kOne << drop) - 1) : 0;
  const Bits half = drop ? kOne << (drop - 1) : 1;
  bool up = false, overflow_up = true;
  switch (options.rounding) {
    case Rounding::kNearestEven:
      up = rest + (kept & 1) > half;
      break;
    case Rounding::kNearestAway:
      up = rest >= half;
      break;
    case Rounding::kZero:
      overflow_up = false;
      break;
    case Rounding::kDown:
      up = negative && rest;
      overflow_up = negative;
      break;
    case Rounding::kUp:
      up = !negative && rest;
      overflow_up = !negative;
      break;
  }
  kept += up;
  Bits code = (static_cast<Bits>(std::max(exponent - kLowest, 0)) << F::kMantissa) + kept;
  const bool infinite = field == (1 << (kWidth - 1 - kMantissa)) - 1;
  if (code > F::kMaxFinite || infinite) {
    const bool clamp = options.saturate || !F::kInfinite || (!overflow_up && !infinite);
    code = clamp ? F::kMaxFinite : F::kInfinity;
  }
  uint32_t result = static_cast<uint32_t>(code | static_cast<Bits>(negative) << F::kSignShift) << F::kPad;
  if (options.relu && negative) result = 0;
  return value != value ? F::kNaN : result;
}

// a * b + c rounded once, to odd: any later rounding to a format of at most 51 bits is then correct. The product of a
// and b must be exact in double (significands of at most 26 bits).
inline double fma_to_odd(double a, double b, double c) {
  const double product = a * b;
  const double sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double back = sum - product;  // Knuth's two-sum: the exact rounding error of `sum`
  const double error = (product - (sum - back)) + (c - back);
  if (error != 0 && (bit_cast<uint64_t>(sum) & 1) == 0) return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
  return sum;
}

// fma, add, sub and mul of f16 and bf16: one rounding to nearest even, options as in `cvt`.
template <class F>
inline uint32_t fma(uint32_t a, uint32_t b, uint32_t c, EncodeOptions options = {}) {
  return encode<F>(fma_to_odd(decode<F>(a), decode<F>(b), decode<F>(c)), options);
}
template <class F>
inline uint32_t add(uint32_t a, uint32_t b, EncodeOptions options = {}) {
  return encode<F>(fma_to_odd(decode<F>(a), 1.0, decode<F>(b)), options);
}
template <class F>
inline uint32_t mul(uint32_t a, uint32_t b, EncodeOptions options = {}) {
  return encode<F>(static_cast<double>(decode<F>(a)) * decode<F>(b), options);
}

}  // namespace fastres::emulator
