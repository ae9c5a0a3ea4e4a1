// Element-wise instructions: a function of one lane's values, applied to the lanes of a mask. The loops are plain so
// that the compiler vectorises them.
#pragma once

#include <cstdint>

#include "emulator/decoder.h"
#include "emulator/machine.h"
#include "emulator/numeric.h"

namespace fastres::emulator {

template <class T>
inline T from_lane(Lane<T> lane) {
  if constexpr (std::is_floating_point_v<T>) {
    return bit_cast<T>(lane);
  } else {
    return static_cast<T>(lane);
  }
}

template <class T>
inline Lane<T> to_lane(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    return bit_cast<Lane<T>>(value);
  } else {
    return static_cast<Lane<T>>(static_cast<std::make_unsigned_t<T>>(value));
  }
}

template <class Body>
inline void for_lanes(Mask mask, Body body) {
  if (mask == kFullMask) {
    for (int lane = 0; lane < 32; lane++) body(lane);
  } else {
    for (int lane = 0; lane < 32; lane++) {
      if (mask >> lane & 1) body(lane);
    }
  }
}

template <class D, class A, class F>
inline Step map1(Warp& w, const Instruction& i, Mask mask) {
  Lane<D>* d = w.lanes<Lane<D>>(i.r[0]);
  const Lane<A>* a = w.lanes<Lane<A>>(i.r[1]);
  for_lanes(mask, [&](int l) { d[l] = to_lane<D>(F{}(from_lane<A>(a[l]))); });
  return Step::Next;
}

template <class D, class A, class B, class F>
inline Step map2(Warp& w, const Instruction& i, Mask mask) {
  Lane<D>* d = w.lanes<Lane<D>>(i.r[0]);
  const Lane<A>* a = w.lanes<Lane<A>>(i.r[1]);
  const Lane<B>* b = w.lanes<Lane<B>>(i.r[2]);
  for_lanes(mask, [&](int l) { d[l] = to_lane<D>(F{}(from_lane<A>(a[l]), from_lane<B>(b[l]))); });
  return Step::Next;
}

template <class D, class A, class B, class C, class F>
inline Step map3(Warp& w, const Instruction& i, Mask mask) {
  Lane<D>* d = w.lanes<Lane<D>>(i.r[0]);
  const Lane<A>* a = w.lanes<Lane<A>>(i.r[1]);
  const Lane<B>* b = w.lanes<Lane<B>>(i.r[2]);
  const Lane<C>* c = w.lanes<Lane<C>>(i.r[3]);
  for_lanes(mask, [&](int l) { d[l] = to_lane<D>(F{}(from_lane<A>(a[l]), from_lane<B>(b[l]), from_lane<C>(c[l]))); });
  return Step::Next;
}

// Destination and sources of one type.
inline void operands(Decoder& d, Type to, std::initializer_list<Type> from) {
  d.expect_operands(1 + from.size(), 1 + from.size());
  Instruction& i = d.instruction();
  i.r[0] = d.dst(0, to);
  size_t n = 1;
  for (const Type type : from) {
    i.r[n] = d.src(n, type);
    n++;
  }
}

// Calls `f` with a value of the C++ type that holds an integer (or bit) type of PTX.
template <class F>
void with_integer(Decoder& d, Type type, F f) {
  switch (type) {
    case Type::U16:
    case Type::B16:
      return f(uint16_t{});
    case Type::S16:
      return f(int16_t{});
    case Type::U32:
    case Type::B32:
      return f(uint32_t{});
    case Type::S32:
      return f(int32_t{});
    case Type::U64:
    case Type::B64:
      return f(uint64_t{});
    case Type::S64:
      return f(int64_t{});
    default:
      d.fail(std::string("not an instruction for .") + name_of(type));
  }
}

}  // namespace fastres::emulator
