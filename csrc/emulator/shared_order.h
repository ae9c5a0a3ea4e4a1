// Race detection over a block's shared memory, for the generic and the async proxy alike.
//
// Every 4-byte word remembers its last write and the reads since. An access conflicts with one that the accessor does
// not know to have happened; a generic write that is ordered, but not proxied, before an asynchronous access lacks a
// fence.proxy.async. (The ISA names no proxy for cp.async; compilers let wgmma read what it wrote without a fence, and
// so does this.) Sets of readers are interned, as the words of a tile have the same.
//
// A warp is one agent: races between its own lanes are not seen. Writes of less than a word are checked against
// overlapping writes, and not against reads.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "emulator/memory.h"
#include "emulator/vector_clock.h"

namespace fastres::emulator {

struct SharedAccess {
  Epoch at;
  Proxy proxy = Proxy::Generic;
  bool atomic = false;  // atomics don't race with each other
};

struct Conflict {
  enum class Kind : uint8_t { kNone, kRace, kProxy } kind = Kind::kNone;
  Epoch other;  // the access in conflict
  bool other_wrote = false;
  Proxy other_proxy = Proxy::Generic;
  uint32_t address = 0;

  explicit operator bool() const { return kind != Kind::kNone; }
};

class SharedOrder {
 public:
  explicit SharedOrder(uint32_t bytes) : cells_((bytes + 3) / 4), sets_(1) {}

  // Record the access to all bytes and return the first conflict. Addresses are below the constructor's bytes.
  Conflict read(uint32_t address, uint32_t bytes, const SharedAccess& access, const Knowledge& known);
  Conflict write(uint32_t address, uint32_t bytes, const SharedAccess& access, const Knowledge& known);

 private:
  using Set = uint32_t;  // index into sets_; 0 is empty
  struct Cell {
    Epoch write;
    Set readers = 0;
    uint8_t mask = 0;  // bytes that `write` wrote
    Proxy proxy = Proxy::Generic;
    bool atomic = false;

    bool same_write(const Cell& o) const {
      return write == o.write && mask == o.mask && proxy == o.proxy && atomic == o.atomic;
    }
  };
  struct Reader {
    Epoch at;
    Proxy proxy;
  };
  struct Readers {
    std::vector<Reader> all;
    std::map<std::pair<Agent, uint64_t>, Set> with;  // (agent, time * 4 + proxy) to the set that has it too
  };

  std::vector<Cell> cells_;
  std::vector<Readers> sets_;
  Set last_from_ = 0, last_to_ = 0;  // with(last_from_, last_reader_), once there was one
  SharedAccess last_reader_;

  static constexpr size_t kMostSets = 1 << 16;

  Set with(Set set, const SharedAccess& access);
  void collect();
  Conflict against_write(const Cell& cell, uint8_t mask, const SharedAccess& access, const Knowledge& known) const;
};

}  // namespace fastres::emulator
