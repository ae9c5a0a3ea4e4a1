// PTX types, and the C++ types that hold their values in a lane of a register slot.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "emulator/ptx.h"

namespace fastres::emulator {

enum class Type : uint8_t {
  Pred,
  B8,
  U8,
  S8,
  B16,
  U16,
  S16,
  F16,
  BF16,
  B32,
  U32,
  S32,
  F32,
  TF32,
  F16x2,
  BF16x2,
  U16x2,
  S16x2,
  E4M3x2,
  E5M2x2,
  B64,
  U64,
  S64,
  F64,
  B128
};

// False if the word is no type.
bool parse_type(const std::string& word, Type& type);
const char* name_of(Type type);

constexpr uint32_t size_of(Type type) {
  return type == Type::Pred                             ? 0
         : type <= Type::S8                             ? 1
         : type <= Type::BF16                           ? 2
         : type == Type::E4M3x2 || type == Type::E5M2x2 ? 2
         : type < Type::B64                             ? 4
         : type < Type::B128                            ? 8
                                                        : 16;
}
constexpr bool is_wide(Type type) {
  return size_of(type) == 8;
}
constexpr bool is_signed(Type type) {
  return type == Type::S8 || type == Type::S16 || type == Type::S32 || type == Type::S64;
}
constexpr bool is_float(Type type) {
  return type == Type::F16 || type == Type::BF16 || type == Type::F32 || type == Type::TF32 || type == Type::F64 ||
         type == Type::F16x2 || type == Type::BF16x2;
}

// What a lane of a slot is stored in: 32 bits for everything up to 32 bits, else 64.
template <class T>
using Lane = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

}  // namespace fastres::emulator
