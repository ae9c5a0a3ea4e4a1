// Integer arithmetic, logic, shifts and bit fields. PTX ISA, "Integer Arithmetic Instructions", "Extended-Precision
// Integer Arithmetic Instructions", "Logic and Shift Instructions".
#include <algorithm>
#include <type_traits>

#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

template <class T>
using U = std::make_unsigned_t<T>;
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, std::conditional_t<sizeof(T) == 8, __int128, int64_t>,
                                std::conditional_t<sizeof(T) == 8, unsigned __int128, uint64_t>>;
template <class T>
constexpr int kBits = 8 * static_cast<int>(sizeof(T));

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
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a ^ b);
  }
};
struct Shl {
  template <class T>
  T operator()(T a, uint32_t n) const {
    return n >= static_cast<uint32_t>(kBits<T>) ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << n);
  }
};
struct Shr {
  template <class T>
  T operator()(T a, uint32_t n) const {
    return static_cast<T>(a >> std::min<uint32_t>(n, kBits<T> - 1)) &
           (n >= kBits<T> && !std::is_signed_v<T> ? T{0} : ~T{0});
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
struct Not {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(~a);
  }
};
struct CNot {
  template <class T>
  T operator()(T a) const {
    return a == 0;
  }
};
struct PopC {
  template <class T>
  uint32_t operator()(T a) const {
    return static_cast<uint32_t>(__builtin_popcountll(a));
  }
};
struct Clz {
  template <class T>
  uint32_t operator()(T a) const {
    return a == 0 ? kBits<T> : static_cast<uint32_t>(__builtin_clzll(a)) - (64 - kBits<T>);
  }
};
struct BRev {
  template <class T>
  T operator()(T a) const {
    T result = 0;
    for (int bit = 0; bit < kBits<T>; bit++) result = static_cast<T>(result << 1 | (a >> bit & 1));
    return result;
  }
};
template <bool kShiftAmount>
struct BFind {
  template <class T>
  uint32_t operator()(T a) const {
    const U<T> bits = static_cast<U<T>>(std::is_signed_v<T> && a < 0 ? ~a : a);
    if (bits == 0) return 0xffffffffu;
    const uint32_t position = 63 - static_cast<uint32_t>(__builtin_clzll(bits));
    return kShiftAmount ? kBits<T> - 1 - position : position;
  }
};
struct Bfe {
  template <class T>
  T operator()(T a, uint32_t position, uint32_t length) const {
    position &= 0xff;
    length &= 0xff;
    if (length == 0) return 0;
    constexpr uint32_t msb = kBits<T> - 1;
    const U<T> bits = static_cast<U<T>>(a);
    const bool sign = std::is_signed_v<T> && (bits >> std::min(position + length - 1, msb) & 1);
    U<T> result = position > msb ? 0 : bits >> position;
    const uint32_t valid = std::min(length, position > msb ? 0 : kBits<T> - position);
    if (valid < static_cast<uint32_t>(kBits<T>)) {
      const U<T> keep = (U<T>{1} << valid) - 1;
      result = (result & keep) | (sign ? ~keep : 0);
    }
    return static_cast<T>(result);
  }
};
template <class T>
T bfi(T insert, T into, uint32_t position, uint32_t length) {
  position &= 0xff;
  length &= 0xff;
  for (uint32_t bit = 0; bit < length && position + bit < static_cast<uint32_t>(kBits<T>); bit++) {
    const T one = T{1} << (position + bit);
    into = (insert >> bit & 1) ? into | one : into & ~one;
  }
  return into;
}
template <class T>
Step run_bfi(Warp& w, const Instruction& i, Mask mask) {
  Lane<T>* d = w.lanes<Lane<T>>(i.r[0]);
  const Lane<T>*a = w.lanes<Lane<T>>(i.r[1]), *b = w.lanes<Lane<T>>(i.r[2]);
  const uint32_t *position = w.lanes<uint32_t>(i.r[3]), *length = w.lanes<uint32_t>(i.r[4]);
  for_lanes(mask, [&](int l) { d[l] = bfi<T>(static_cast<T>(a[l]), static_cast<T>(b[l]), position[l], length[l]); });
  return Step::Next;
}
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
template <bool kLeft, bool kWrap>
struct Funnel {
  uint32_t operator()(uint32_t low, uint32_t high, uint32_t n) const {
    n = kWrap ? n & 31 : std::min(n, 32u);
    const uint64_t both = uint64_t{high} << 32 | low;
    return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
  }
};
// A 16-bit operation on both halves.
template <class T, class Op>
struct Halves {
  uint32_t operator()(uint32_t a, uint32_t b) const {
    const uint32_t low = static_cast<uint16_t>(Op{}(static_cast<T>(a), static_cast<T>(b)));
    const uint32_t high = static_cast<uint16_t>(Op{}(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
    return high << 16 | low;
  }
};

Step run_lop3(Warp& w, const Instruction& i, Mask mask) {
  uint32_t* d = w.lanes<uint32_t>(i.r[0]);
  const uint32_t *a = w.lanes<uint32_t>(i.r[1]), *b = w.lanes<uint32_t>(i.r[2]), *c = w.lanes<uint32_t>(i.r[3]);
  const uint32_t table = i.a;
  for_lanes(mask, [&](int l) {
    uint32_t result = 0;
    for (uint32_t row = 0; row < 8; row++) {
      if (!(table >> row & 1)) continue;
      result |= (row & 4 ? a[l] : ~a[l]) & (row & 2 ? b[l] : ~b[l]) & (row & 1 ? c[l] : ~c[l]);
    }
    d[l] = result;
  });
  return Step::Next;
}

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

template <class Op>
void binary(Decoder& d, Type type) {
  operands(d, type, {type, type});
  if (type == Type::U16x2) {
    d.instruction().run = map2<uint32_t, uint32_t, uint32_t, Halves<uint16_t, Op>>;
  } else if (type == Type::S16x2) {
    d.instruction().run = map2<uint32_t, uint32_t, uint32_t, Halves<int16_t, Op>>;
  } else {
    with_integer(d, type, [&](auto t) {
      using T = decltype(t);
      d.instruction().run = map2<T, T, T, Op>;
    });
  }
}

template <class Op>
void unary(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = map1<T, T, Op>;
  });
}

// Integer results of 32 bits from any size: popc, clz, bfind.
template <class Op>
void count(Decoder& d) {
  const Type type = d.take_type();
  operands(d, Type::U32, {type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = map1<uint32_t, T, Op>;
  });
}

template <class Op>
void shift(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type, Type::U32});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = map2<T, T, uint32_t, Op>;
  });
}

// and, or, xor on predicates.
template <class Op>
Step run_predicates(Warp& w, const Instruction& i, Mask mask) {
  const Mask a = w.predicate(i.r[1]) ^ i.a, b = w.predicate(i.r[2]) ^ i.b;
  Mask& d = w.predicate(i.r[0]);
  d = (d & ~mask) | (Op{}(a, b) & mask);
  return Step::Next;
}
Step run_not_predicate(Warp& w, const Instruction& i, Mask mask) {
  const Mask a = w.predicate(i.r[1]) ^ i.a;
  Mask& d = w.predicate(i.r[0]);
  d = (d & ~mask) | (~a & mask);
  return Step::Next;
}

template <class Op>
void logic(Decoder& d) {
  const Type type = d.take_type();
  if (type != Type::Pred) return binary<Op>(d, type);
  d.expect_operands(3, 3);
  Instruction& i = d.instruction();
  i.r[0] = d.predicate_dst(d.operand(0));
  i.r[1] = d.predicate_src(d.operand(1), i.a);
  i.r[2] = d.predicate_src(d.operand(2), i.b);
  i.run = run_predicates<Op>;
}

void decode_not(Decoder& d) {
  if (!d.take("pred")) return unary<Not>(d);
  d.expect_operands(2, 2);
  Instruction& i = d.instruction();
  i.r[0] = d.predicate_dst(d.operand(0));
  i.r[1] = d.predicate_src(d.operand(1), i.a);
  i.run = run_not_predicate;
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

void decode_bfe(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type, Type::U32, Type::U32});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = map3<T, T, uint32_t, uint32_t, Bfe>;
  });
}

void decode_bfi(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type, type, Type::U32, Type::U32});
  d.instruction().run = is_wide(type) ? run_bfi<uint64_t> : run_bfi<uint32_t>;
}

void decode_bfind(Decoder& d) {
  if (d.take("shiftamt")) {
    count<BFind<true>>(d);
  } else {
    count<BFind<false>>(d);
  }
}

void decode_lop3(Decoder& d) {
  const Type type = d.take_type();
  if (type != Type::B32) d.fail("is for .b32");
  d.expect_operands(5, 5);
  Instruction& i = d.instruction();
  i.r[0] = d.dst(0, type);
  for (size_t n = 1; n < 4; n++) i.r[n] = d.src(n, type);
  i.a = static_cast<uint32_t>(d.constant(d.operand(4)));
  i.run = run_lop3;
}

void decode_shf(Decoder& d) {
  const bool left = d.take_any({"l", "r"}) == "l", wrap = d.take_any({"wrap", "clamp"}) == "wrap";
  const Type type = d.take_type();
  operands(d, type, {type, type, Type::U32});
  using S = uint32_t;
  d.instruction().run = left ? (wrap ? map3<S, S, S, S, Funnel<true, true>> : map3<S, S, S, S, Funnel<true, false>>)
                             : (wrap ? map3<S, S, S, S, Funnel<false, true>> : map3<S, S, S, S, Funnel<false, false>>);
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
      {"addc", with_carry<false>},  {"subc", with_carry<true>},
      {"madc", multiply_add_carry}, {"mul24", multiply_24<false>},
      {"mad24", multiply_24<true>}, {"rem", typed_binary<Rem>},
      {"and", logic<And>},          {"or", logic<Or>},
      {"xor", logic<Xor>},          {"not", decode_not},
      {"cnot", unary<CNot>},        {"shl", shift<Shl>},
      {"shr", shift<Shr>},          {"shf", decode_shf},
      {"lop3", decode_lop3},        {"popc", count<PopC>},
      {"clz", count<Clz>},          {"brev", unary<BRev>},
      {"bfind", decode_bfind},      {"bfe", decode_bfe},
      {"bfi", decode_bfi},          {"sad", decode_sad},
      {"dp4a", decode_dp4a},        {"dp2a", decode_dp2a},
  };
  return family;
}

}  // namespace fastres::emulator
