// The address spaces and their shadow: what is allocated, written, by whom, and what the kernel asked of it.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulator/global_order.h"
#include "emulator/program.h"
#include "emulator/report.h"

namespace fastres::emulator {

class Machine;
struct Block;

// Host memory that the kernel may use.
struct Region {
  std::string name;
  uint64_t begin = 0, bytes = 0;
  bool initialized = true, writable = true;
};

// Flags: kWritten, by anyone; kStored and kLoaded, by this launch; kInFlight, the target of an unfinished cp.async.
// What is known of each byte of a region or of a block's shared memory. Pages come to be when first touched.
class Shadow {
 public:
  enum Flag : uint8_t { kWritten = 1, kStored = 2, kLoaded = 4, kInFlight = 8 };  // see below
  struct Page {
    static constexpr uint64_t kBytes = 4096;
    std::array<uint8_t, kBytes> flags;
  };

  Shadow(uint64_t bytes, bool initialized)
      : pages_((bytes + Page::kBytes - 1) / Page::kBytes), initialized_(initialized) {}
  Page& page(uint64_t offset) {
    auto& page = pages_[offset / Page::kBytes];
    if (!page) {
      page = std::make_unique<Page>();
      page->flags.fill(initialized_ ? kWritten : 0);
    }
    return *page;
  }
  uint8_t& flags(uint64_t offset) { return page(offset).flags[offset % Page::kBytes]; }
  uint64_t count(uint8_t flag) const;

 private:
  std::vector<std::unique_ptr<Page>> pages_;
  bool initialized_;
};

struct SharedMemory {
  std::vector<uint8_t> data;  // from address 0; kernel.shared_base bytes at the start belong to nobody
  Shadow shadow{0, false};
  std::vector<uint32_t> writers;  // by byte: warp + 1, lane and meeting of the last store, 0 for none to compare with
  uint32_t begin = 0, end = 0;
};

// Who accesses: ld, st and the like; cp.async; TMA and wgmma, which keep an order of their own (async_state.h).
enum class Proxy : uint8_t { Generic, Copy, Async };

enum class AccessKind : uint8_t { Read, Write, ReadWrite };

// One lane's access.
struct Access {
  Warp& warp;
  const Instruction& instruction;
  int lane;
  Space space;
  uint64_t address;
  uint32_t bytes;
  AccessKind kind;
  Proxy proxy = Proxy::Generic;
  const uint8_t* stored = nullptr;  // what a plain store writes

  bool changes(const uint8_t* bytes_before) const {
    return stored == nullptr || std::memcmp(stored, bytes_before, bytes) != 0;
  }
};

class Memory {
 public:
  Memory(Machine& machine, std::vector<Region> regions);

  // Where the access's bytes are, after every check; nullptr after a finding that leaves nothing to access.
  uint8_t* access(const Access& access);
  // The same for a read of which only the first `bytes` count, though its alignment is the whole's.
  uint8_t* access_part(const Access& access, uint32_t bytes);
  // Marks the destination of an asynchronous copy as in flight; `land` ends that.
  uint8_t* launch_copy(const Access& access);
  void land(const Access& access);
  // Adds the block's unique bytes to the traffic, when it is done.
  void retire(Block& block);
  void summarize();

  std::array<Traffic, 6> traffic;  // by Space

 private:
  struct Known {
    Region region;
    Shadow shadow;
    GlobalOrder order;
  };
  Machine& machine_;
  std::vector<Known> regions_;  // by address
  size_t last_ = 0;

  Known* find(uint64_t address);
  void fault(const Access& access, const char* kind, std::string message, std::string expected);
  uint8_t* finish(const Access& access, Shadow& shadow, uint64_t offset, uint8_t* data, const std::string& where);
  void order(const Access& access, Known& known, uint64_t offset, const std::string& where);
  void order_lanes(const Access& access, SharedMemory& memory, uint64_t offset);
  uint8_t* shared(const Access& access);
  uint8_t* global(const Access& access);
  uint8_t* local(const Access& access);
  uint8_t* param(const Access& access);
};

const char* name_of(Space space);

}  // namespace fastres::emulator
