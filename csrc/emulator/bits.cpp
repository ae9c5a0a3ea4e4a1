// Logic, shifts and bit fields. PTX ISA, "Logic and Shift Instructions" and, of the integer instructions, popc, clz,
// bfind, brev, bfe and bfi.
#include <algorithm>
#include <type_traits>

#include "emulator/integer_lanes.h"

namespace fastres::emulator {

namespace {

template <class T>
using U = std::make_unsigned_t<T>;

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
template <bool kLeft, bool kWrap>
struct Funnel {
  uint32_t operator()(uint32_t low, uint32_t high, uint32_t n) const {
    n = kWrap ? n & 31 : std::min(n, 32u);
    const uint64_t both = uint64_t{high} << 32 | low;
    return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
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

}  // namespace

const Family& bits_family() {
  static const Family family = {
      {"and", logic<And>}, {"or", logic<Or>},     {"xor", logic<Xor>},     {"not", decode_not},   {"cnot", unary<CNot>},
      {"shl", shift<Shl>}, {"shr", shift<Shr>},   {"shf", decode_shf},     {"lop3", decode_lop3}, {"popc", count<PopC>},
      {"clz", count<Clz>}, {"brev", unary<BRev>}, {"bfind", decode_bfind}, {"bfe", decode_bfe},   {"bfi", decode_bfi},
  };
  return family;
}

}  // namespace fastres::emulator
