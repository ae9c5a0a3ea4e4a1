// What instructions that touch memory have in common: their address operand, space, ordering and scope. In an
// Instruction they take r[5] (base slot), r[6] (space, and whether the base is 32 bits), r[7] (ordering) and imm
// (offset).
#pragma once

#include "emulator/decoder.h"
#include "emulator/machine.h"

namespace fastres::emulator {

enum Ordering : uint32_t { kWeak, kRelaxed, kAcquire, kRelease, kAcquireRelease };

inline Space space_of(const Instruction& i) {
  return static_cast<Space>(i.r[6] & 0xff);
}
inline Ordering ordering_of(const Instruction& i) {
  return static_cast<Ordering>(i.r[7]);
}

inline void lane_addresses(Warp& w, const Instruction& i, Mask mask, uint64_t* address) {
  const bool narrow = i.r[6] & 0x100;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    // A 32-bit address wraps at 32 bits.
    address[lane] = narrow ? static_cast<uint32_t>(w.lanes<uint32_t>(i.r[5])[lane] + i.imm)
                           : w.lanes<uint64_t>(i.r[5])[lane] + i.imm;
  }
}

// Takes the state space; none is the generic one.
inline void take_space(Decoder& d) {
  const std::string word = d.take_any(
      {"global", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry", "param::func", "const"});
  const Space space = word.empty()                   ? Space::Generic
                      : word == "global"             ? Space::Global
                      : word == "local"              ? Space::Local
                      : word == "const"              ? Space::Const
                      : word.rfind("shared", 0) == 0 ? Space::Shared
                                                     : Space::Param;
  d.instruction().r[6] = static_cast<uint32_t>(space);
}

inline void take_ordering(Decoder& d) {
  const std::string word = d.take_any({"weak", "relaxed", "volatile", "acquire", "release", "acq_rel"});
  d.take_any({"cta", "cluster", "gpu", "sys"});
  d.instruction().r[7] = word == "acquire"                         ? kAcquire
                         : word == "release"                       ? kRelease
                         : word == "acq_rel"                       ? kAcquireRelease
                         : word == "relaxed" || word == "volatile" ? kRelaxed
                                                                   : kWeak;
}

// After take_space.
inline void take_address(Decoder& d, const ptx::Operand& operand) {
  Instruction& i = d.instruction();
  const Decoder::Address address = d.address(operand);
  if (operand.kind == ptx::Operand::Kind::Address && d.is_local_param(operand.parts[0])) {
    i.r[6] = static_cast<uint32_t>(Space::Local);  // a call's parameter
  }
  i.r[5] = address.base;
  i.r[6] |= address.narrow ? 0x100 : 0;
  i.imm = static_cast<uint64_t>(address.offset);
}

}  // namespace fastres::emulator
