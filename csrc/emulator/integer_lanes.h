// What the integer families share: decoding an instruction that is a function of one lane's integers.
#pragma once

#include "emulator/lanes.h"

namespace fastres::emulator {

template <class T>
constexpr int kBits = 8 * static_cast<int>(sizeof(T));

// A 16-bit operation on both halves.
template <class T, class Op>
struct Halves {
  uint32_t operator()(uint32_t a, uint32_t b) const {
    const uint32_t low = static_cast<uint16_t>(Op{}(static_cast<T>(a), static_cast<T>(b)));
    const uint32_t high = static_cast<uint16_t>(Op{}(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
    return high << 16 | low;
  }
};

template <class Op>
inline void binary(Decoder& d, Type type) {
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
inline void unary(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type});
  with_integer(d, type, [&](auto t) {
    using T = decltype(t);
    d.instruction().run = map1<T, T, Op>;
  });
}

}  // namespace fastres::emulator
