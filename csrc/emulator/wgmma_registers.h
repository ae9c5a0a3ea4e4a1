// The rules on registers that wgmma uses (PTX ISA, "wgmma.fence" and "wgmma.wait_group"): between the issue of a wgmma
// and the wait for its group nothing may touch its accumulators, and whatever touched its registers before must be
// followed by wgmma.fence.
//
// A mov between registers is no access: compilers leave such copies in PTX where one accumulator is carried from
// instruction to instruction, and the state goes with the value. New values for A's registers while it runs are none
// either, though the letter of the ISA has it so: Triton pipelines that way, and ptxas finds other registers.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/program.h"

namespace fastres::emulator {

// One warp's wgmma registers, by their index in WgmmaWatch.
class WgmmaRegisters {
 public:
  explicit WgmmaRegisters(size_t count = 0) : states_(count) {}

  void fence() {
    for (State& state : states_) state.touched = false;
  }
  // A wgmma of group `group` (from 1) takes these, first the accumulators; not empty if a fence is missing.
  std::string take(const std::vector<uint32_t>& registers, size_t accumulators, uint32_t group);
  // Groups up to `group` are complete.
  void complete(uint32_t group);
  // Any other instruction's access; not empty if one of them is in flight.
  std::string touch(const std::vector<uint32_t>& registers);
  void copy(uint32_t to, uint32_t from) { states_[to] = states_[from]; }

 private:
  struct State {
    uint32_t group = 0;   // that it is in flight in, 0 if none
    bool touched = true;  // since the last wgmma.fence
  };
  std::vector<State> states_;
};

}  // namespace fastres::emulator
