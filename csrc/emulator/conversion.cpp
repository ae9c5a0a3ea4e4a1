// Conversions between number formats. PTX ISA, "Data Movement and Conversion Instructions": cvt, cvt.pack.
//
// A value goes through long double, which holds every integer and float of PTX exactly, and is rounded once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

struct Conversion {
  Type to, from;
  Rounding rounding = Rounding::kNearestEven;
  bool to_integral = false;  // .rni .rzi .rmi .rpi
  bool ftz = false, saturate = false, satfinite = false, relu = false;
};

long double round_integral(long double x, Rounding rounding) {
  switch (rounding) {
    case Rounding::kZero:
      return std::trunc(x);
    case Rounding::kDown:
      return std::floor(x);
    case Rounding::kUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

template <class T>
T round_float(long double x, Rounding rounding) {
  const T near = static_cast<T>(x);
  if (std::isnan(near) || rounding == Rounding::kNearestEven || static_cast<long double>(near) == x) return near;
  const bool toward_zero = rounding == Rounding::kZero;
  const bool down = rounding == Rounding::kDown || (toward_zero && x > 0);
  const bool up = rounding == Rounding::kUp || (toward_zero && x < 0);
  if (down && near > x) return std::nextafter(near, -std::numeric_limits<T>::infinity());
  if (up && near < x) return std::nextafter(near, std::numeric_limits<T>::infinity());
  return near;
}

template <class T>
T flush(T x) {
  return std::fabs(x) < std::numeric_limits<T>::min() ? std::copysign(T{0}, x) : x;
}

// Bits of a register to a number; `nan` apart, because a payload is no number.
long double read(Type type, uint64_t bits, bool ftz) {
  switch (type) {
    case Type::U8:
    case Type::B8:
      return static_cast<uint8_t>(bits);
    case Type::S8:
      return static_cast<int8_t>(bits);
    case Type::U16:
    case Type::B16:
      return static_cast<uint16_t>(bits);
    case Type::S16:
      return static_cast<int16_t>(bits);
    case Type::U32:
    case Type::B32:
      return static_cast<uint32_t>(bits);
    case Type::S32:
      return static_cast<int32_t>(bits);
    case Type::U64:
    case Type::B64:
      return static_cast<long double>(bits);
    case Type::S64:
      return static_cast<long double>(static_cast<int64_t>(bits));
    case Type::F16:
      return decode<F16>(static_cast<uint32_t>(bits) & 0xffff);
    case Type::BF16:
      return decode<BF16>(static_cast<uint32_t>(bits) & 0xffff);
    case Type::F64:
      return bit_cast<double>(bits);
    default: {
      const float value = bit_cast<float>(static_cast<uint32_t>(bits));
      return ftz ? flush(value) : value;
    }
  }
}

// The integer result: clamped to the type, as cvt does; NaN is 0, or the top bit where 64 bits are involved.
uint64_t write_integer(long double x, Type to, Type from) {
  const int bits = 8 * static_cast<int>(size_of(to));
  if (std::isnan(x)) return from == Type::F64 || bits == 64 ? 1ull << (bits - 1) : 0;
  const long double top = std::ldexp(1.0L, is_signed(to) ? bits - 1 : bits), bottom = is_signed(to) ? -top : 0;
  if (x >= top) return is_signed(to) ? (1ull << (bits - 1)) - 1 : (bits == 64 ? ~0ull : (1ull << bits) - 1);
  if (x < bottom) x = bottom;
  return is_signed(to) ? static_cast<uint64_t>(static_cast<int64_t>(x)) : static_cast<uint64_t>(x);
}

uint64_t write_float(long double x, const Conversion& c) {
  if (c.to_integral) x = round_integral(x, c.rounding);
  if (c.saturate) x = x > 0 ? std::min(x, 1.0L) : 0;  // NaN becomes 0
  const Rounding rounding = c.to_integral ? Rounding::kNearestEven : c.rounding;
  const EncodeOptions options{rounding, c.satfinite, c.relu};
  switch (c.to) {
    case Type::F16:
      return encode<F16>(static_cast<double>(x), options);
    case Type::BF16:
      return encode<BF16>(static_cast<double>(x), options);
    case Type::TF32:
      return encode<TF32>(static_cast<double>(x), options);
    case Type::F64: {
      const double value = round_float<double>(x, rounding);
      return value != value ? 0x7fffffffffffffffull : bit_cast<uint64_t>(value);
    }
    default: {
      float value = round_float<float>(x, rounding);
      if (c.ftz) value = flush(value);
      return value != value ? 0x7fffffffu : bit_cast<uint32_t>(value);
    }
  }
}

uint64_t convert(uint64_t bits, const Conversion& c) {
  if (!is_float(c.to) && !is_float(c.from) && !c.saturate) {  // widen by the source's sign, keep the low bits
    return is_signed(c.from) ? static_cast<uint64_t>(static_cast<int64_t>(read(c.from, bits, false)))
                             : static_cast<uint64_t>(read(c.from, bits, false));
  }
  const long double x = read(c.from, bits, c.ftz);
  if (is_float(c.to)) return write_float(x, c);
  return write_integer(is_float(c.from) ? round_integral(x, c.rounding) : x, c.to, c.from);
}

// A result narrower than its register: sign-extended if the type is signed, else zero-extended.
uint64_t extend(uint64_t value, Type type) {
  const uint32_t bits = 8 * size_of(type);
  if (bits >= 64) return value;
  const uint64_t low = value & ((1ull << bits) - 1);
  return is_signed(type) && (low >> (bits - 1) & 1) ? low | ~0ull << bits : low;
}

uint64_t get(Warp& w, Slot packed, int lane) {
  return packed & 1 ? w.lanes<uint64_t>(packed >> 1)[lane] : w.lanes<uint32_t>(packed >> 1)[lane];
}
void set(Warp& w, Slot packed, int lane, uint64_t value) {
  if (packed & 1) {
    w.lanes<uint64_t>(packed >> 1)[lane] = value;
  } else {
    w.lanes<uint32_t>(packed >> 1)[lane] = static_cast<uint32_t>(value);
  }
}

Step run_cvt(Warp& w, const Instruction& i, Mask mask) {
  const Conversion& c = *static_cast<const Conversion*>(i.extra.get());
  for_lanes(mask, [&](int l) { set(w, i.r[0], l, extend(convert(get(w, i.r[1], l), c), c.to)); });
  return Step::Next;
}

// The frequent ones, in loops that vectorise.
template <class Fm>
Step run_half_to_float(Warp& w, const Instruction& i, Mask mask) {
  uint32_t* d = w.lanes<uint32_t>(i.r[0] >> 1);
  const uint32_t* a = w.lanes<uint32_t>(i.r[1] >> 1);
  for_lanes(mask, [&](int l) {
    const float value = decode<Fm>(a[l] & 0xffff);
    d[l] = value != value ? 0x7fffffffu : bit_cast<uint32_t>(value);
  });
  return Step::Next;
}
template <class D, class A>
Step run_widen(Warp& w, const Instruction& i, Mask mask) {
  Lane<D>* d = w.lanes<Lane<D>>(i.r[0] >> 1);
  const Lane<A>* a = w.lanes<Lane<A>>(i.r[1] >> 1);
  for_lanes(mask, [&](int l) { d[l] = to_lane<D>(static_cast<D>(static_cast<A>(a[l]))); });
  return Step::Next;
}

// Two f32 to a pair: the first source is the upper half.
template <class Fm>
Step run_pair(Warp& w, const Instruction& i, Mask mask) {
  const Conversion& c = *static_cast<const Conversion*>(i.extra.get());
  const EncodeOptions options{c.rounding, c.satfinite, c.relu};
  constexpr uint32_t kShift = Fm::kExponent + Fm::kMantissa + 1;
  uint32_t* d = w.lanes<uint32_t>(i.r[0]);
  const uint32_t *a = w.lanes<uint32_t>(i.r[1]), *b = w.lanes<uint32_t>(i.r[2]);
  for_lanes(mask, [&](int l) {
    d[l] = encode<Fm>(bit_cast<float>(a[l]), options) << kShift | encode<Fm>(bit_cast<float>(b[l]), options);
  });
  return Step::Next;
}

// A pair of one 8-bit format to f16x2, or f16x2 to a pair of 8 bits.
template <class From, class To>
Step run_pair_to_pair(Warp& w, const Instruction& i, Mask mask) {
  const Conversion& c = *static_cast<const Conversion*>(i.extra.get());
  const EncodeOptions options{c.rounding, c.satfinite, c.relu};
  constexpr uint32_t kFrom = From::kExponent + From::kMantissa + 1, kTo = To::kExponent + To::kMantissa + 1;
  uint32_t* d = w.lanes<uint32_t>(i.r[0]);
  const uint32_t* a = w.lanes<uint32_t>(i.r[1]);
  for_lanes(mask, [&](int l) {
    const uint32_t low = a[l] & ((1u << kFrom) - 1), high = a[l] >> kFrom & ((1u << kFrom) - 1);
    d[l] = encode<To>(decode<From>(high), options) << kTo | encode<To>(decode<From>(low), options);
  });
  return Step::Next;
}

// cvt.pack.sat.{s8,u8,s16,u16}.s32{.b32}: a above b, on top of the lower bytes of c.
Step run_pack(Warp& w, const Instruction& i, Mask mask) {
  const Type to = static_cast<Type>(i.a);
  const int bits = 8 * static_cast<int>(size_of(to));
  const int64_t low = is_signed(to) ? -(1ll << (bits - 1)) : 0;
  const int64_t high = is_signed(to) ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1;
  for_lanes(mask, [&](int l) {
    const auto clamp = [&](Slot slot) {
      const int64_t value = static_cast<int32_t>(w.lanes<uint32_t>(slot)[l]);
      return static_cast<uint32_t>(std::clamp(value, low, high)) & ((1u << bits) - 1);
    };
    const uint32_t pair = clamp(i.r[1]) << bits | clamp(i.r[2]);
    w.lanes<uint32_t>(i.r[0])[l] = i.b ? w.lanes<uint32_t>(i.r[3])[l] << 2 * bits | pair : pair;
  });
  return Step::Next;
}

void decode_pack(Decoder& d) {
  d.take("sat");
  const Type to = d.take_type(), from = d.take_type();
  const bool third = d.take("b32");
  if (from != Type::S32) d.fail("packs .s32");
  Instruction& i = d.instruction();
  if (third) {
    operands(d, Type::B32, {Type::S32, Type::S32, Type::B32});
  } else {
    operands(d, Type::B32, {Type::S32, Type::S32});
  }
  i.a = static_cast<uint32_t>(to);
  i.b = third;
  i.run = run_pack;
}

void decode_cvt(Decoder& d) {
  if (d.take("pack")) return decode_pack(d);
  const auto conversion = std::make_shared<Conversion>();
  Conversion& c = *conversion;
  const std::string mode = d.take_any({"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"});
  c.to_integral = mode.size() == 3 && mode[2] == 'i';
  const char letter = mode.empty() ? 'n' : mode[1];
  c.rounding = mode == "rna"   ? Rounding::kNearestAway
               : letter == 'z' ? Rounding::kZero
               : letter == 'm' ? Rounding::kDown
               : letter == 'p' ? Rounding::kUp
                               : Rounding::kNearestEven;
  c.ftz = d.take("ftz");
  c.saturate = d.take("sat");
  c.satfinite = d.take("satfinite");
  c.relu = d.take("relu");
  c.to = d.take_type();
  c.from = d.take_type();
  Instruction& i = d.instruction();
  i.extra = conversion;
  const bool to_pair = c.to == Type::F16x2 || c.to == Type::BF16x2 || c.to == Type::E4M3x2 || c.to == Type::E5M2x2;
  if (to_pair && c.from == Type::F32) {
    operands(d, c.to, {Type::F32, Type::F32});
    i.run = c.to == Type::F16x2    ? run_pair<F16>
            : c.to == Type::BF16x2 ? run_pair<BF16>
            : c.to == Type::E4M3x2 ? run_pair<E4M3>
                                   : run_pair<E5M2>;
    return;
  }
  if (to_pair) {
    operands(d, c.to, {c.from});
    if (c.to == Type::F16x2 && c.from == Type::E4M3x2) i.run = run_pair_to_pair<E4M3, F16>;
    if (c.to == Type::F16x2 && c.from == Type::E5M2x2) i.run = run_pair_to_pair<E5M2, F16>;
    if (c.to == Type::E4M3x2 && c.from == Type::F16x2) i.run = run_pair_to_pair<F16, E4M3>;
    if (c.to == Type::E5M2x2 && c.from == Type::F16x2) i.run = run_pair_to_pair<F16, E5M2>;
    return;
  }
  d.expect_operands(2, 2);
  bool wide = false;
  const Slot to = d.any_dst(d.operand(0), wide);
  if (size_of(c.to) == 8 && !wide) d.fail("the destination is too narrow");
  i.r[0] = to << 1 | (wide ? 1 : 0);
  bool from_wide = false;
  const Slot from = d.any_src(d.operand(1), from_wide);
  if (size_of(c.from) == 8 && !from_wide) d.fail("the source is too narrow");
  i.r[1] = from << 1 | (from_wide ? 1 : 0);
  i.run = run_cvt;
  const bool plain = !c.saturate && !c.ftz && !c.relu && !c.to_integral;
  if (plain && c.to == Type::F32 && !wide && !from_wide && (c.from == Type::F16 || c.from == Type::BF16)) {
    i.run = c.from == Type::F16 ? run_half_to_float<F16> : run_half_to_float<BF16>;
  } else if (plain && !is_float(c.to) && wide && !from_wide && size_of(c.to) == 8 && size_of(c.from) == 4) {
    if (c.from == Type::U32) i.run = run_widen<uint64_t, uint32_t>;
    if (c.from == Type::S32) i.run = run_widen<int64_t, int32_t>;
  } else if (plain && !is_float(c.to) && !is_float(c.from) && !wide && from_wide && size_of(c.to) == 4) {
    i.run = run_widen<uint32_t, uint64_t>;
  }
}

}  // namespace

const Family& conversion_family() {
  static const Family family = {{"cvt", decode_cvt}};
  return family;
}

}  // namespace fastres::emulator
