// What a block of sm_90 has besides memory and warps: mbarriers, asynchronous copies in flight, bulk groups,
// warpgroups, the register pool, and what each warp knows to have happened.
//
// Copies happen in steps, at times the scheduler draws; wgmma's arithmetic is done at issue, and whether that may
// matter is decided by happens-before: its operands are read, for SharedOrder, until the group is waited for, and its
// registers may not be touched (wgmma_registers.h).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator/machine.h"
#include "emulator/mbarrier.h"
#include "emulator/shared_order.h"
#include "emulator/vector_clock.h"
#include "emulator/wgmma_registers.h"

namespace fastres::emulator {

// An asynchronous copy between its issue and its end.
class Transfer {
 public:
  Transfer(Warp& w, const Instruction& i, int at) : warp(w), instruction(i), lane(at) {}
  virtual ~Transfer() = default;

  // Makes some progress; `finished` once nothing is left to do.
  virtual void advance(Machine& machine) = 0;
  virtual std::string describe() const = 0;

  Warp& warp;
  const Instruction& instruction;
  const int lane;
  bool source_read = false, finished = false;
};

// An mbarrier in shared memory, and who made and last used it.
struct BarrierCell {
  Mbarrier barrier;
  Epoch made;            // by mbarrier.init
  uint32_t copies = 0;   // phases + 1 of the last copy issued to it
  Warp* warp = nullptr;  // the last user
  const Instruction* instruction = nullptr;
};

// The bulk async-groups of one thread.
struct BulkThread {
  Agent agent = 0;
  std::vector<std::shared_ptr<Transfer>> open;                    // not committed
  std::vector<std::vector<std::shared_ptr<Transfer>>> committed;  // groups, in order
  size_t waited = 0;                                              // groups that a wait covered
};

// The last access of a warp of another block to this block's shared memory.
struct RemoteUse {
  Epoch at;
  Warp* warp = nullptr;
  const Instruction* instruction = nullptr;
};

struct WarpState {
  Timeline timeline;
  Agent made = 0;  // agent of the warp's mbarrier.inits
  uint32_t makes = 0;
  uint64_t polled_at = ~0ull;  // Machine::events() at the last failing poll ...
  uint64_t polls = 0;          // ... and how many more may fail before the warp sleeps
  uint32_t registers = 0;      // per thread, by setmaxnreg
  uint32_t setmaxnregs = 0;
  uint32_t multiplies = 0, groups = 0;  // wgmmas issued, groups committed
  WgmmaRegisters wgmma;

  explicit WarpState(Agent agent) : timeline(agent) {}
};

struct Warpgroup {
  Agent agent = 0;
  std::vector<std::array<uint64_t, 2>> descriptors;  // of each wgmma, as the first warp to issue it had them
};

// barrier.cluster, kept by the cluster's first block.
struct ClusterBarrier {
  uint64_t generation = 1;
  std::map<const Warp*, Mask> arrived;
  Knowledge collecting, released;
};

class AsyncState {
 public:
  explicit AsyncState(Block& block);

  Agent new_agent();
  WarpState& of(const Warp& warp) { return warps_[warp.index]; }
  BulkThread& bulk(const Warp& warp, int lane);
  Warpgroup& warpgroup(const Warp& warp) { return warpgroups_[warp.index / 4]; }
  ClusterBarrier& cluster_barrier();

  // Puts the copy on its way: it may happen at once, in part, or much later.
  void start(std::shared_ptr<Transfer> transfer);
  // The end of the block's cluster: lets copies finish, and reports what was left unfinished or not waited for.
  void finish();

  Block& block;
  SharedOrder order;
  std::map<uint32_t, BarrierCell> barriers;  // by offset in shared memory
  std::map<Agent, RemoteUse> remote;
  uint32_t free_registers = 0;

 private:
  std::vector<WarpState> warps_;
  std::vector<Warpgroup> warpgroups_;
  std::map<uint32_t, BulkThread> bulk_;  // by thread
  std::vector<std::shared_ptr<Transfer>> transfers_;
  ClusterBarrier cluster_barrier_;
  Agent agents_ = 0;  // handed out in the cluster, by its first block

  bool known_by_some_warp(Epoch epoch) const;
  void check_barriers_left();
  void check_remote_uses();
  void check_bulk_left();
  void check_register_counts();
};

// A place in the shared memory of some block of the cluster.
struct SharedPlace {
  Block* block = nullptr;
  uint32_t offset = 0;
  // As addresses of instructions spell it.
  uint64_t address() const { return static_cast<uint64_t>(block->rank + 1) << 24 | offset; }
};
// Where `address` points, with `bytes` inside and aligned; block is null after a finding.
SharedPlace shared_place(Warp& w, const Instruction& i, int lane, Space space, uint64_t address, uint64_t bytes,
                         uint32_t align);
// The live mbarrier there, whose initialisation the warp knows of; null after a finding. `by_async` asks for the init
// to be fenced too: a copy will complete on it.
BarrierCell* barrier_at(Warp& w, const Instruction& i, int lane, const SharedPlace& place, bool by_async);

// Remembers an access of `owner`'s shared memory, if it is another block's, and reports one that comes too late.
void note_remote_use(Warp& w, const Instruction& i, int lane, Block& owner);

void report(Warp& w, const Instruction& i, int lane, const char* kind, std::string message, std::string expected,
            uint64_t address = 0);
// Reports a conflict between an access of this warp (`what`) and an earlier one.
void report(Warp& w, const Instruction& i, int lane, const Conflict& conflict, const std::string& what,
            bool changes = true);

// A generic load, store or atomic of shared memory, for race detection.
void note_shared_access(const Access& access, Block& owner, uint32_t offset);
// Bar.sync and its kin, for happens-before.
void barrier_arrives(Warp& w, Knowledge& collecting);
void barrier_passes(Warp& w, const Knowledge& released);

// What a waiting instruction of sm_90's families waits for; empty for any other.
std::string describe_async_wait(Warp& w, const Instruction& i, Mask mask);
std::string describe_mbarrier_wait(Warp& w, const Instruction& i, Mask mask);
std::string describe_bulk_wait(Warp& w, const Instruction& i, Mask mask);
std::string describe_wgmma_wait(Warp& w, const Instruction& i, Mask mask);
std::string describe_cluster_wait(Warp& w, const Instruction& i, Mask mask);

std::string hex(uint64_t value);

}  // namespace fastres::emulator
