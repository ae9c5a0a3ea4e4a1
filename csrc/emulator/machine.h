// The machine that runs one launch: blocks with their warps and shared memory, and a scheduler that interleaves them by
// seed.
//
// A warp executes one instruction for all lanes that are at the same place. Lanes that part become groups of their own;
// groups that meet again merge. The group with the lowest program counter runs first, which makes lanes meet again as
// early as they can for the code that compilers lay out; others get their turn too, so that no group starves.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator/memory.h"
#include "emulator/program.h"
#include "emulator/report.h"
#include "emulator/vector_clock.h"

namespace fastres::emulator {

class AsyncState;
class Machine;
struct Block;

using Extent = std::array<uint32_t, 3>;

// Lanes of a warp that are at the same instruction.
struct Group {
  uint32_t pc = 0;
  Mask mask = 0;
  uint64_t ticket = 0;     // a waiting handler's memory, 0 when the group comes to an instruction
  bool waiting = false;    // Step::Wait was returned ...
  uint64_t waited_at = 0;  // ... when Machine::events() was this
};

// A cp.async that nobody has waited for yet.
struct AsyncCopy {
  int lane;
  uint64_t address;
  uint32_t bytes, source_bytes;  // the rest is filled with zeros
  uint8_t* to;
  const uint8_t* from;
  bool late;       // the data moves at the wait, not at issue
  uint32_t group;  // of its lane, counted from 0
};
struct AsyncCopies {
  std::vector<AsyncCopy> copies;
  std::array<uint32_t, 32> committed{};  // groups, by lane
};

class Warp {
 public:
  Warp(Block& block, uint32_t index);

  template <class L>
  L* lanes(Slot slot) {
    return reinterpret_cast<L*>(registers_.data() + slot);
  }
  Mask& predicate(uint32_t index) { return predicates_[index]; }

  // Runs one group for at most `budget` instructions.
  void run(uint64_t budget);
  bool runnable() const;
  bool done() const { return groups_.empty(); }

  // ---- for handlers ----
  Group& group() { return groups_[current_]; }
  const std::vector<Group>& groups() const { return groups_; }
  Mask live() const;  // lanes that have not exited
  // Sends the lanes of `mask` to `target`; the others of the group go on.
  Step branch(Mask mask, uint32_t target);
  Step exit(Mask mask);

  Block& block;
  const uint32_t index;  // in its block
  const Mask initial;    // lanes that exist
  AsyncCopies async;
  FenceState fence;
  uint32_t meetings = 1;  // how often the warp's lanes have waited for each other: their accesses before are ordered
  Mask carry = 0;         // the condition code register, one bit a lane
  std::vector<uint8_t> local;  // 32 lanes' local memory, one after the other

 private:
  struct Aligned {
    alignas(64) std::array<uint32_t, 16> words;
  };
  std::vector<Aligned> storage_;
  struct View {
    uint32_t* begin = nullptr;
    uint32_t* data() const { return begin; }
  } registers_;
  std::vector<Mask> predicates_;
  std::vector<Group> groups_;
  size_t current_ = 0;
  uint64_t turns_ = 0;  // of the lowest group while others wait for one

  void fill_specials();
  size_t pick();
  void merge();
};

// One of a block's 16 named barriers.
struct NamedBarrier {
  uint64_t generation = 1;
  uint32_t arrived = 0;   // threads, in whole warps for the aligned forms
  uint32_t expected = 0;  // 0: nobody has arrived, or every live thread of the block
  bool whole_block = false;
  uint32_t reduction = 0, result = 0;  // bar.red: so far, and of the last generation
  std::vector<std::pair<Warp*, Mask>> waiting;
  Knowledge collecting, released;  // what those who arrived knew: so far, and of the last generation
};

struct Block {
  Machine& machine;
  uint64_t id;  // linear, in the grid
  Extent position;
  uint32_t rank = 0;            // in its cluster
  std::vector<Block*> cluster;  // by rank
  std::vector<std::unique_ptr<Warp>> warps;
  SharedMemory shared;
  std::array<NamedBarrier, 16> barriers;
  Blocks known;  // blocks whose writes to global memory this one has acquired
  std::shared_ptr<AsyncState> async;

  Block(Machine& machine, uint64_t id, Extent position);
  bool done() const;
};

// Something that happens by itself some time after it was started.
struct Pending {
  virtual ~Pending() = default;
  virtual void happen(Machine& machine) = 0;
  virtual std::string describe() const = 0;
};

struct Launch {
  Extent grid{1, 1, 1}, block{1, 1, 1}, cluster{1, 1, 1};
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> params;
  uint64_t seed = 0;
  bool strict = true;
  std::vector<std::string> ignore;                // kinds of findings that don't count
  uint32_t resident = 4;                          // clusters at a time
  uint64_t limit = 20'000'000'000ull;             // warp instructions
  std::function<void(const std::string&)> trace;  // called with a line for every warp instruction, if set
};

class Machine {
 public:
  Machine(const Program& program, const Kernel& kernel, Launch launch, std::vector<Region> regions);
  Report run();
  // What was counted until a fault ended `run`.
  Report stopped();

  const Program& program;
  const Kernel& kernel;
  const Launch launch;
  Memory memory;
  Report report;
  std::mt19937_64 random;
  std::vector<uint64_t> executions;  // by instruction, warps
  uint64_t clock = 0;                // warp instructions so far

  // Tells every waiting group that something changed.
  void notify() { events_++; }
  uint64_t events() const { return events_; }
  void start(std::unique_ptr<Pending> pending) { pending_.push_back(std::move(pending)); }
  uint64_t below(uint64_t n) { return random() % n; }

  // Records a finding (kind, message, expected and address filled in by the caller); throws FaultError when strict.
  void fault(Finding finding, const Warp& warp, const Instruction& instruction, int lane);
  // The same, and throws always: the launch can't go on.
  [[noreturn]] void fatal(Finding finding);
  void locate(Finding& finding, const Warp& warp, const Instruction& instruction, int lane) const;

 private:
  std::deque<std::unique_ptr<Block>> resident_;
  std::vector<std::unique_ptr<Pending>> pending_;
  uint64_t next_cluster_ = 0, clusters_ = 0;
  uint64_t events_ = 0;

  void validate() const;
  void admit();
  void retire();
  [[noreturn]] void deadlock();
  void summarize();
};

// Whether all members of a warp-wide .sync instruction are here: `members` is each lane's member mask. If not, the
// handler returns Step::Wait, and the lanes that arrive later join.
bool gathered(Warp& warp, const Instruction& instruction, Mask mask, const uint32_t* members);
// Says what a group waits for, for the deadlock report.
std::string describe_wait(Warp& warp, const Group& group);
// A barrier that waits for every live thread may complete when one exits.
void check_barriers(Block& block);

}  // namespace fastres::emulator
