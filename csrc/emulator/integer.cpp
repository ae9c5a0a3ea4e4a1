// Integer arithmetic. PTX ISA, "Integer Arithmetic Instructions" and "Extended-Precision Integer Arithmetic
// Instructions".
#include <algorithm>
#include <type_traits>

#include "emulator/integer_lanes.h"

namespace fastres::emulator {

namespace {

template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, std::conditional_t<sizeof(T) == 8, __int128, int64_t>,
                                std::conditional_t<sizeof(T) == 8, unsigned __int128, uint64_t>>;

// Sums and products wrap: computed unsigned, and wide enough that uint16_t isn't promoted to int.
struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }
};
struct Sub {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
  }
};
struct AddSat {
  int32_t operator()(int32_t a, int32_t b) const {
    return static_cast<int32_t>(std::clamp<int64_t>(int64_t{a} + b, INT32_MIN, INT32_MAX));
  }
};
struct SubSat {
  int32_t operator()(int32_t a, int32_t b) const {
    return static_cast<int32_t>(std::clamp<int64_t>(int64_t{a} - b, INT32_MIN, INT32_MAX));
  }
};
struct MulLo {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  }
};
struct MulHi {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b) >> kBits<T>);
  }
};
template <class W>
struct MulWide {
  template <class T>
  W operator()(T a, T b) const {
    return static_cast<W>(static_cast<W>(a) * static_cast<W>(b));
  }
};
template <class Mul, class W>
struct Mad {
  template <class T>
  W operator()(T a, T b, W c) const {
    return Add{}(static_cast<W>(Mul{}(a, b)), c);
  }
};
struct MadHiSat {
  int32_t operator()(int32_t a, int32_t b, int32_t c) const { return AddSat{}(MulHi{}(a, b), c); }
};
// Division by zero: all ones, and the dividend as remainder, as the hardware's code sequence gives.
struct Div {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Sub{}(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Abs {
  template <class T>
  T operator()(T a) const {
    return a < 0 ? Sub{}(T{0}, a) : a;
  }
};
struct Neg {
  template <class T>
  T operator()(T a) const {
    return Sub{}(T{0}, a);
  }
};
struct Sad {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add{}(c, a < b ? Sub{}(b, a) : Sub{}(a, b));
  }
};
template <bool kSigned, bool kHigh>
struct Mul24 {
  template <class T>
  T operator()(T a, T b) const {
    const int64_t x = kSigned ? static_cast<int32_t>(static_cast<uint32_t>(a) << 8) >> 8 : a & 0xffffff;
    const int64_t y = kSigned ? static_cast<int32_t>(static_cast<uint32_t>(b) << 8) >> 8 : b & 0xffffff;
    return static_cast<T>(x * y >> (kHigh ? 16 : 0));
  }
};
template <class A, class B>
struct Dp4a {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    for (int byte = 0; byte < 4; byte++) {
      c += static_cast<uint32_t>(static_cast<A>(a >> 8 * byte) * static_cast<B>(b >> 8 * byte));
    }
    return c;
  }
};
template <class A, class B, int kFirst>
struct Dp2a {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    for (int half = 0; half < 2; half++) {
      c += static_cast<uint32_t>(static_cast<A>(a >> 16 * half) * static_cast<B>(b >> 8 * (half + kFirst)));
    }
    return c;
  }
};
// add.cc, addc, sub.cc, subc, mad.cc, madc: the carry is one bit a lane. For subtraction it holds the borrow.
template <class T, bool kSubtract, bool kCarryIn, bool kCarryOut>
Step run_carry(Warp& w, const Instruction& i, Mask mask) {
  Lane<T>* d = w.lanes<Lane<T>>(i.r[0]);
  const Lane<T>*a = w.lanes<Lane<T>>(i.r[1]), *b = w.lanes<Lane<T>>(i.r[2]);
  for_lanes(mask, [&](int l) {
    using Big = unsigned __int128;
    const Big in = kCarryIn ? w.carry >> l & 1 : 0;
    const Big result = kSubtract ? Big{a[l]} - b[l] - in : Big{a[l]} + b[l] + in;
    d[l] = static_cast<Lane<T>>(result);
    if (kCarryOut) w.carry = (w.carry & ~(1u << l)) | static_cast<uint32_t>(result >> kBits<T> & 1) << l;
  });
  return Step::Next;
}
template <class T, bool kHigh, bool kCarryIn, bool kCarryOut>
Step run_mad_carry(Warp& w, const Instruction& i, Mask mask) {
  Lane<T>* d = w.lanes<Lane<T>>(i.r[0]);
  const Lane<T>*a = w.lanes<Lane<T>>(i.r[1]), *b = w.lanes<Lane<T>>(i.r[2]), *c = w.lanes<Lane<T>>(i.r[3]);
  for_lanes(mask, [&](int l) {
    using Big = unsigned __int128;
    const T x = static_cast<T>(a[l]), y = static_cast<T>(b[l]);
    const Lane<T> product = static_cast<Lane<T>>(kHigh ? MulHi{}(x, y) : MulLo{}(x, y));
    const Big result = Big{product} + c[l] + (kCarryIn ? w.carry >> l & 1 : 0);
    d[l] = static_cast<Lane<T>>(result);
    if (kCarryOut) w.carry = (w.carry & ~(1u << l)) | static_cast<uint32_t>(result >> kBits<T> & 1) << l;
  });
  return Step::Next;
}

template <bool kSubtract>
void add_or_subtract(Decoder& d) {
  const bool carry = d.take("cc"), saturate = d.take("sat");
  const Type type = d.take_type();
  if (carry) {
    operands(d, type, {type, type});
    with_integer(d, type, [&](auto t) {
      using T = decltype(t);
      d.instruction().run = run_carry<T, kSubtract, false, true>;
    });
  } else if (saturate) {
    if (type != Type::S32) d.fail(".sat is for .s32");
    operands(d, type, {type, type});
    d.instruction().run = map2<int32_t, int32_t, int32_t, std::conditional_t<kSubtract, SubSat, AddSat>>;
  } else {
    binary<std::conditional_t<kSubtract, Sub, Add>>(d, type);
  }
}

template <bool kSubtract>
void with_carry(Decoder& d) {
  const bool out = d.take("cc");
  const Type type = d.take_type();
  operands(d, type, {type, type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = out ? run_carry<T, kSubtract, true, true> : run_carry<T, kSubtract, true, false>;
  });
}

Type double_width(Decoder& d, Type type) {
  switch (type) {
    case Type::U16:
      return Type::U32;
    case Type::S16:
      return Type::S32;
    case Type::U32:
      return Type::U64;
    case Type::S32:
      return Type::S64;
    default:
      d.fail(std::string(".wide has no twice as wide type of .") + name_of(type));
  }
}

template <class T>
using Twice = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>, T>>;

void multiply(Decoder& d) {
  const std::string part = d.take_any({"lo", "hi", "wide"});
  const Type type = d.take_type();
  const Type result = part == "wide" ? double_width(d, type) : type;
  operands(d, result, {type, type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    Instruction& i = d.instruction();
    if (part == "wide") {
      i.run = map2<Twice<T>, T, T, MulWide<Twice<T>>>;
    } else if (part == "hi") {
      i.run = map2<T, T, T, MulHi>;
    } else {
      i.run = map2<T, T, T, MulLo>;
    }
  });
}

void multiply_add(Decoder& d) {
  const std::string part = d.take_any({"lo", "hi", "wide"});
  const bool carry = d.take("cc"), saturate = d.take("sat");
  const Type type = d.take_type();
  const Type result = part == "wide" ? double_width(d, type) : type;
  operands(d, result, {type, type, result});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    Instruction& i = d.instruction();
    if (saturate) {
      if (type != Type::S32 || part != "hi") d.fail(".sat is for .hi.s32");
      i.run = map3<int32_t, int32_t, int32_t, int32_t, MadHiSat>;
    } else if (carry) {
      i.run = part == "hi" ? run_mad_carry<T, true, false, true> : run_mad_carry<T, false, false, true>;
    } else if (part == "wide") {
      i.run = map3<Twice<T>, T, T, Twice<T>, Mad<MulWide<Twice<T>>, Twice<T>>>;
    } else if (part == "hi") {
      i.run = map3<T, T, T, T, Mad<MulHi, T>>;
    } else {
      i.run = map3<T, T, T, T, Mad<MulLo, T>>;
    }
  });
}

void multiply_add_carry(Decoder& d) {
  const bool high = d.take_any({"lo", "hi"}) == "hi", out = d.take("cc");
  const Type type = d.take_type();
  operands(d, type, {type, type, type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = high ? (out ? run_mad_carry<T, true, true, true> : run_mad_carry<T, true, true, false>)
                               : (out ? run_mad_carry<T, false, true, true> : run_mad_carry<T, false, true, false>);
  });
}

template <bool kAdd>
void multiply_24(Decoder& d) {
  const bool high = d.take_any({"lo", "hi"}) == "hi";
  const Type type = d.take_type();
  if (type != Type::U32 && type != Type::S32) d.fail("is for .u32 and .s32");
  const bool is_s32 = type == Type::S32;
  Instruction& i = d.instruction();
  if constexpr (kAdd) {
    operands(d, type, {type, type, type});
    using S = uint32_t;
    i.run = is_s32
                ? (high ? map3<S, S, S, S, Mad<Mul24<true, true>, S>> : map3<S, S, S, S, Mad<Mul24<true, false>, S>>)
                : (high ? map3<S, S, S, S, Mad<Mul24<false, true>, S>> : map3<S, S, S, S, Mad<Mul24<false, false>, S>>);
  } else {
    operands(d, type, {type, type});
    using S = uint32_t;
    i.run = is_s32 ? (high ? map2<S, S, S, Mul24<true, true>> : map2<S, S, S, Mul24<true, false>>)
                   : (high ? map2<S, S, S, Mul24<false, true>> : map2<S, S, S, Mul24<false, false>>);
  }
}

void decode_sad(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type, type, type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = map3<T, T, T, T, Sad>;
  });
}

void decode_dp4a(Decoder& d) {
  const bool a = d.take_word() == "s32", b = d.take_word() == "s32";
  operands(d, Type::B32, {Type::B32, Type::B32, Type::B32});
  using S = uint32_t;
  d.instruction().run = a ? (b ? map3<S, S, S, S, Dp4a<int8_t, int8_t>> : map3<S, S, S, S, Dp4a<int8_t, uint8_t>>)
                          : (b ? map3<S, S, S, S, Dp4a<uint8_t, int8_t>> : map3<S, S, S, S, Dp4a<uint8_t, uint8_t>>);
  d.instruction().macs = 32 * 4;
}

template <int kFirst>
Handler dp2a(bool a, bool b) {
  using S = uint32_t;
  return a ? (b ? map3<S, S, S, S, Dp2a<int16_t, int8_t, kFirst>> : map3<S, S, S, S, Dp2a<int16_t, uint8_t, kFirst>>)
           : (b ? map3<S, S, S, S, Dp2a<uint16_t, int8_t, kFirst>> : map3<S, S, S, S, Dp2a<uint16_t, uint8_t, kFirst>>);
}
void decode_dp2a(Decoder& d) {
  const bool high = d.take_any({"lo", "hi"}) == "hi";
  const bool a = d.take_word() == "s32", b = d.take_word() == "s32";
  operands(d, Type::B32, {Type::B32, Type::B32, Type::B32});
  d.instruction().run = high ? dp2a<2>(a, b) : dp2a<0>(a, b);
  d.instruction().macs = 32 * 2;
}

template <class Op>
void typed_binary(Decoder& d) {
  binary<Op>(d, d.take_type());
}

}  // namespace

// add, sub, mul, mad, min, max, abs, neg, div and rem also exist for floating point: the float family decodes those
// words first and hands integers over through these.
void decode_integer_add(Decoder& d) {
  add_or_subtract<false>(d);
}
void decode_integer_sub(Decoder& d) {
  add_or_subtract<true>(d);
}
void decode_integer_mul(Decoder& d) {
  multiply(d);
}
void decode_integer_mad(Decoder& d) {
  multiply_add(d);
}
void decode_integer_div(Decoder& d) {
  typed_binary<Div>(d);
}
void decode_integer_min(Decoder& d) {
  typed_binary<Min>(d);
}
void decode_integer_max(Decoder& d) {
  typed_binary<Max>(d);
}
void decode_integer_abs(Decoder& d) {
  unary<Abs>(d);
}
void decode_integer_neg(Decoder& d) {
  unary<Neg>(d);
}

const Family& integer_family() {
  static const Family family = {
      {"addc", with_carry<false>},   {"subc", with_carry<true>},   {"madc", multiply_add_carry},
      {"mul24", multiply_24<false>}, {"mad24", multiply_24<true>}, {"rem", typed_binary<Rem>},
      {"sad", decode_sad},           {"dp4a", decode_dp4a},        {"dp2a", decode_dp2a},
  };
  return family;
}

}  // namespace fastres::emulator
