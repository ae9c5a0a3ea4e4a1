// Instructions on f16, bf16 and their pairs: functions of codes, computed exactly and rounded once.
#pragma once

#include <algorithm>

#include "emulator/float_functions.h"
#include "emulator/lanes.h"

namespace fastres::emulator {

// A scalar function of codes of one half format, on one or both halves of a register.
template <class Op, int kOperands, bool kPair>
Step run_half(Warp& w, const Instruction& i, Mask mask) {
  uint32_t* d = w.lanes<uint32_t>(i.r[0]);
  const uint32_t* x[3] = {};
  for (int n = 0; n < kOperands; n++) x[n] = w.lanes<uint32_t>(i.r[1 + n]);
  for_lanes(mask, [&](int l) {
    uint32_t result = 0;
    for (int half = 0; half < (kPair ? 2 : 1); half++) {
      uint32_t v[3] = {};
      for (int n = 0; n < kOperands; n++) v[n] = x[n][l] >> 16 * half & 0xffff;
      result |= (Op::apply(v, i.a) & 0xffff) << 16 * half;
    }
    d[l] = result;
  });
  return Step::Next;
}

constexpr uint32_t kHalfSat = 1, kHalfRelu = 2, kHalfFtz = 4, kHalfNaN = 8;

template <class Fm>
inline uint32_t finish_half(uint32_t code, uint32_t flags) {
  const bool nan = (code & Fm::kMagnitude) > Fm::kInfinity;
  if (flags & kHalfFtz && (code & Fm::kMagnitude) < (1u << Fm::kMantissa)) code &= ~Fm::kMagnitude;
  if (flags & kHalfRelu && !nan && code >> Fm::kSignShift) code = 0;
  if (flags & kHalfSat) code = nan || code >> Fm::kSignShift ? 0 : std::min(code, encode<Fm>(1.0f));
  return code;
}
template <class Fm>
inline uint32_t begin_half(uint32_t code, uint32_t flags) {
  if (flags & kHalfFtz && (code & Fm::kMagnitude) < (1u << Fm::kMantissa)) code &= ~Fm::kMagnitude;
  return code;
}
template <class Fm>
struct HalfAdd {
  static uint32_t apply(const uint32_t* v, uint32_t f) {
    return finish_half<Fm>(add<Fm>(begin_half<Fm>(v[0], f), begin_half<Fm>(v[1], f)), f);
  }
};
template <class Fm>
struct HalfSub {
  static uint32_t apply(const uint32_t* v, uint32_t f) {
    return finish_half<Fm>(add<Fm>(begin_half<Fm>(v[0], f), begin_half<Fm>(v[1], f) ^ (1u << Fm::kSignShift)), f);
  }
};
template <class Fm>
struct HalfMul {
  static uint32_t apply(const uint32_t* v, uint32_t f) {
    return finish_half<Fm>(mul<Fm>(begin_half<Fm>(v[0], f), begin_half<Fm>(v[1], f)), f);
  }
};
template <class Fm>
struct HalfFma {
  static uint32_t apply(const uint32_t* v, uint32_t f) {
    return finish_half<Fm>(fma<Fm>(begin_half<Fm>(v[0], f), begin_half<Fm>(v[1], f), begin_half<Fm>(v[2], f)), f);
  }
};
template <class Fm, bool kMax>
struct HalfMinMax {
  static uint32_t apply(const uint32_t* v, uint32_t f) {
    const float a = decode<Fm>(begin_half<Fm>(v[0], f)), b = decode<Fm>(begin_half<Fm>(v[1], f));
    return encode<Fm>(f & kHalfNaN ? real::MinMax<kMax, true>{}(a, b) : real::MinMax<kMax, false>{}(a, b));
  }
};
template <class Fm>
struct HalfAbs {
  static uint32_t apply(const uint32_t* v, uint32_t f) { return begin_half<Fm>(v[0], f) & Fm::kMagnitude; }
};
template <class Fm>
struct HalfNeg {
  static uint32_t apply(const uint32_t* v, uint32_t f) { return begin_half<Fm>(v[0], f) ^ (1u << Fm::kSignShift); }
};
template <class Fm, class Op>
struct HalfVia {
  static uint32_t apply(const uint32_t* v, uint32_t f) {
    return finish_half<Fm>(encode<Fm>(Op{}(decode<Fm>(begin_half<Fm>(v[0], f)))), f);
  }
};

inline bool is_half(Type type) {
  return type == Type::F16 || type == Type::F16x2 || type == Type::BF16 || type == Type::BF16x2;
}

template <template <class> class Op, int kOperands>
inline void choose_half(Decoder& d, Type type, uint32_t flags) {
  Instruction& i = d.instruction();
  i.a = flags;
  i.run = type == Type::F16     ? run_half<Op<F16>, kOperands, false>
          : type == Type::F16x2 ? run_half<Op<F16>, kOperands, true>
          : type == Type::BF16  ? run_half<Op<BF16>, kOperands, false>
                                : run_half<Op<BF16>, kOperands, true>;
}
template <class Fm>
using HalfMin = HalfMinMax<Fm, false>;
template <class Fm>
using HalfMax = HalfMinMax<Fm, true>;
template <class Fm>
using HalfEx2 = HalfVia<Fm, real::Ex2>;
template <class Fm>
using HalfTanh = HalfVia<Fm, real::Tanh>;

}  // namespace fastres::emulator
