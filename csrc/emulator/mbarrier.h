// The mbarrier object (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier").
//
// Phase n is current from the completion of n - 1 until its pending arrivals and its transaction bytes are both 0;
// then n + 1 begins with the expected arrivals pending again. A wait on parity P succeeds when the current phase's
// parity differs from P: hardware keeps one bit, so a wait two phases late aliases, which `watch` reports.
// What each arrival knew is joined into the phase and handed to those who wait for it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "emulator/vector_clock.h"

namespace fastres::emulator {

class Mbarrier {
 public:
  static constexpr uint32_t kMaxCount = (1u << 20) - 1;
  static constexpr int64_t kMaxBytes = (1 << 20) - 1;

  // mbarrier.init. `agent` stands for the asynchronous copies that complete here. The errors these functions
  // return are empty when all is well; a message says what is undefined, without the address.
  std::string init(uint32_t count, Agent agent);
  std::string invalidate();

  // mbarrier.arrive: `drop` (arrive_drop) also lowers the count expected of later phases, `no_complete` promises not to
  // end the phase.
  std::string arrive(uint32_t count, const Knowledge& known, bool drop = false, bool no_complete = false);
  std::string expect_bytes(uint32_t bytes);
  // mbarrier.complete_tx, or its implicit form at the end of a copy issued in phase `issued`.
  std::string complete_bytes(uint32_t bytes, uint32_t issued, const Knowledge& known);

  bool parity_done(uint32_t parity) const { return (phase_ & 1) != (parity & 1); }
  bool token_done(uint64_t token) const { return token_phase(token) != phase_; }
  // Records that `waiter` found its wait unfinished, or (done) finished it. The message is not empty if the phase
  // it waits for came and went in between: the waiter was overtaken.
  std::string watch(Agent waiter, uint32_t parity, bool done);
  // What a finished wait makes known: every arrival and copy of the phases so far completed.
  const Knowledge& released() const { return released_; }

  // The opaque state that arrive returns: phase, and the pending arrivals before it.
  uint64_t token() const { return static_cast<uint64_t>(phase_) << 32 | pending_; }
  static uint32_t token_phase(uint64_t token) { return static_cast<uint32_t>(token >> 32); }
  static uint32_t token_pending(uint64_t token) { return static_cast<uint32_t>(token); }

  uint32_t phase() const { return phase_; }
  bool valid() const { return valid_; }
  // The epoch of copies issued now.
  Epoch copy_epoch() const { return {agent_, phase_ + 1}; }
  // "phase 3, 1 of 2 arrivals pending, 4096 bytes to come"
  std::string describe() const;
  // What is unfinished at the end of the block; empty if nothing.
  std::string leftover() const;

 private:
  std::string try_complete();

  bool valid_ = false;
  uint32_t expected_ = 0, pending_ = 0, phase_ = 0;
  int64_t bytes_ = 0;
  Agent agent_ = 0;
  Knowledge current_, released_;
  std::map<Agent, uint32_t> watchers_;  // waiter to the phase it waits to see completed
};

}  // namespace fastres::emulator
