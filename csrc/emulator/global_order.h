// Race detection over global memory, between blocks and between the warps of one.
//
// Blocks of a launch run in any order, so one may use what another wrote, or write what another uses, only across
// atomics: the writer fences (membar.gl, fence of gpu scope) and then writes a flag with a strong operation; the reader
// reads the flag with a strong operation and then fences. Knowledge is kept block by block: what a block wrote after
// its release counts as released too, so some races are missed and none is made up.
//
// Warps of one block are ordered by its barriers, as over shared memory. Of several readers the last is remembered.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/vector_clock.h"

namespace fastres::emulator {

// Blocks by linear index.
using Blocks = std::set<uint64_t>;

// A warp's place between fences and strong operations.
struct FenceState {
  bool fenced = false;  // a fence came after the warp's last weak store
  Blocks read;          // what the flags that it read have released, until a fence makes it the block's knowledge
};

// Who accesses, and what it knows.
struct GlobalActor {
  uint64_t block;
  bool strong;          // an atomic, volatile, relaxed, acquire or release operation
  const Blocks& known;  // blocks whose writes the actor's block has acquired
  Epoch at;
  const VectorClock* clock;  // null: an asynchronous copy, whose order within the block is checked elsewhere
};

class GlobalOrder {
 public:
  explicit GlobalOrder(uint64_t bytes) : writes_((bytes + kPage - 1) / kPage), reads_((bytes + kPage - 1) / kPage) {}

  // What the actor conflicts with in accessing these bytes (within one page): "" or words like "written by block 3".
  std::string read(uint64_t offset, uint32_t bytes, const GlobalActor& actor);
  std::string write(uint64_t offset, uint32_t bytes, const GlobalActor& actor);

  // A strong write by a block that knows `known`, released by a fence or by its own semantics.
  void release(uint64_t offset, uint64_t block, const Blocks& known);
  const Blocks* released(uint64_t offset) const;

 private:
  static constexpr uint64_t kPage = 4096;
  static constexpr uint32_t kMany = 0xffffffffu;
  // Apart, since most tensors are only read or only written. By byte: block + 1, and the warp's epoch (time 0:
  // unknown).
  struct Writes {
    std::array<uint32_t, kPage> block{};
    std::array<bool, kPage> strong{};
    std::array<Epoch, kPage> at{};
  };
  struct Reads {
    std::array<uint32_t, kPage> block{};
    std::array<Epoch, kPage> at{};
  };
  std::vector<std::unique_ptr<Writes>> writes_;
  std::vector<std::unique_ptr<Reads>> reads_;
  std::unordered_map<uint64_t, Blocks> flags_;

  static std::string against_write(const Writes& writes, uint64_t i, const GlobalActor& actor);
  static std::string against_read(const Reads& reads, uint64_t i, const GlobalActor& actor);
};

}  // namespace fastres::emulator
