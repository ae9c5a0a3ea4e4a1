#include "emulator/memory.h"

#include <algorithm>
#include <cstdio>

#include "emulator/addressing.h"
#include "emulator/async_state.h"
#include "emulator/machine.h"

namespace fastres::emulator {

const char* name_of(Space space) {
  static const char* const names[] = {"generic", "global", "shared", "local", "param", "const"};
  return names[static_cast<size_t>(space)];
}

namespace {

const char* verb(AccessKind kind) {
  return kind == AccessKind::Read ? "read" : kind == AccessKind::Write ? "write" : "atomic update";
}

}  // namespace

uint64_t Shadow::count(uint8_t flag) const {
  uint64_t count = 0;
  for (const auto& page : pages_) {
    if (!page) continue;
    for (const uint8_t flags : page->flags) count += (flags & flag) != 0;
  }
  return count;
}

Memory::Memory(Machine& machine, std::vector<Region> regions) : machine_(machine) {
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
  for (Region& region : regions) {
    // Two tensors of one storage are one region.
    if (!regions_.empty() && region.begin < regions_.back().region.begin + regions_.back().region.bytes) {
      Region& last = regions_.back().region;
      if (region.name != last.name) last.name += " and " + region.name;
      const uint64_t end = std::max(last.begin + last.bytes, region.begin + region.bytes);
      last.bytes = end - last.begin;
      last.initialized = last.initialized && region.initialized;
      regions_.back().shadow = Shadow(last.bytes, last.initialized);
      regions_.back().order = GlobalOrder(last.bytes);
      continue;
    }
    Shadow shadow(region.bytes, region.initialized);
    GlobalOrder order(region.bytes);
    regions_.push_back({std::move(region), std::move(shadow), std::move(order)});
  }
}

Memory::Known* Memory::find(uint64_t address) {
  const auto inside = [&](const Known& known) {
    return address >= known.region.begin && address - known.region.begin < known.region.bytes;
  };
  if (last_ < regions_.size() && inside(regions_[last_])) return &regions_[last_];
  const auto after = std::upper_bound(regions_.begin(), regions_.end(), address,
                                      [](uint64_t a, const Known& known) { return a < known.region.begin; });
  if (after == regions_.begin() || !inside(*(after - 1))) return nullptr;
  last_ = static_cast<size_t>(after - regions_.begin()) - 1;
  return &regions_[last_];
}

void Memory::fault(const Access& access, const char* kind, std::string message, std::string expected) {
  Finding finding;
  finding.kind = kind;
  finding.message = std::move(message);
  finding.expected = std::move(expected);
  finding.space = name_of(access.space);
  finding.address = access.address;
  finding.bytes = access.bytes;
  machine_.fault(std::move(finding), access.warp, access.instruction, access.lane);
}

uint8_t* Memory::access(const Access& a) {
  Access access = a;
  if (access.space == Space::Generic) {
    switch (access.address & kWindowMask) {
      case kSharedWindow:
        access.space = Space::Shared;
        break;
      case kLocalWindow:
        access.space = Space::Local;
        break;
      case kParamWindow:
        access.space = Space::Param;
        break;
      default:
        access.space = Space::Global;
    }
    access.address &= access.space == Space::Global ? ~0ull : ~kWindowMask;
  }
  if (access.space == Space::Param || access.space == Space::Local) access.address &= ~kWindowMask;
  if (access.address % access.bytes != 0) {
    fault(access, "misaligned",
          std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of " + name_of(access.space) + " memory at " +
              hex(access.address),
          "an address that is a multiple of " + std::to_string(access.bytes));
    return nullptr;
  }
  Traffic& traffic = this->traffic[static_cast<size_t>(access.space)];
  if (access.kind != AccessKind::Write) traffic.read_requested += access.bytes;
  if (access.kind != AccessKind::Read) traffic.write_requested += access.bytes;
  switch (access.space) {
    case Space::Shared:
      return shared(access);
    case Space::Local:
      return local(access);
    case Space::Param:
      return param(access);
    default:
      return global(access);
  }
}

uint8_t* Memory::access_part(const Access& access, uint32_t bytes) {
  if (access.address % access.bytes != 0) return this->access(access);
  // Powers of two that cover the part: each is an aligned access of its own.
  uint8_t* first = nullptr;
  for (uint32_t done = 0; done < bytes;) {
    uint32_t piece = access.bytes;
    while (piece > bytes - done || (done & (piece - 1)) != 0) piece /= 2;
    uint8_t* at = this->access(
        {access.warp, access.instruction, access.lane, access.space, access.address + done, piece, access.kind});
    if (at == nullptr) return nullptr;
    if (done == 0) first = at;
    done += piece;
  }
  return first;
}

uint8_t* Memory::launch_copy(const Access& access) {
  Access copy = access;
  copy.proxy = Proxy::Copy;
  uint8_t* at = this->access(copy);
  if (at == nullptr) return nullptr;
  uint8_t* flags = &access.warp.block.shared.shadow.flags(access.address & 0xffffff);
  for (uint32_t i = 0; i < access.bytes; i++) flags[i] |= Shadow::kInFlight;
  return at;
}

void Memory::land(const Access& access) {
  uint8_t* flags = &access.warp.block.shared.shadow.flags(access.address & 0xffffff);
  for (uint32_t i = 0; i < access.bytes; i++) flags[i] &= static_cast<uint8_t>(~Shadow::kInFlight);
}

uint8_t* Memory::finish(const Access& access, Shadow& shadow, uint64_t offset, uint8_t* data,
                        const std::string& where) {
  uint8_t* flags = &shadow.flags(offset);  // aligned accesses never straddle a page
  uint8_t any = 0;
  for (uint32_t i = 0; i < access.bytes; i++) any |= flags[i];
  if (any & Shadow::kInFlight) {
    fault(access, "async-copy",
          std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of shared memory at " + hex(access.address) +
              ", which a cp.async is still writing",
          "cp.async.wait_group by the thread that copies, then a barrier");
  }
  if (access.kind != AccessKind::Write) {
    uint8_t all = 0xff;
    for (uint32_t i = 0; i < access.bytes; i++) all &= flags[i];
    if (!(all & Shadow::kWritten)) {
      fault(access, "uninitialized",
            std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of " + name_of(access.space) +
                " memory that was never written, at " + hex(access.address) + where,
            "a write before the read");
    }
  }
  const uint8_t set = static_cast<uint8_t>((access.kind != AccessKind::Write ? Shadow::kLoaded : 0) |
                                           (access.kind != AccessKind::Read ? Shadow::kStored | Shadow::kWritten : 0));
  for (uint32_t i = 0; i < access.bytes; i++) flags[i] |= set;
  return data + offset;
}

uint8_t* Memory::shared(const Access& access) {
  Block* block = &access.warp.block;
  const uint32_t rank = static_cast<uint32_t>(access.address >> 24) & 0xff;  // 0: this block's; else rank + 1
  const uint64_t offset = access.address & 0xffffff;
  if (rank > 0) {
    if (rank > block->cluster.size()) {
      fault(access, "out-of-bounds", "shared memory of block " + std::to_string(rank - 1) + " of the cluster",
            "a rank below " + std::to_string(block->cluster.size()));
      return nullptr;
    }
    block = block->cluster[rank - 1];
  }
  SharedMemory& memory = block->shared;
  if (access.address >> 32 != 0 || offset < memory.begin || offset + access.bytes > memory.end) {
    fault(access, "out-of-bounds",
          std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of shared memory at " + hex(access.address),
          "an address in [" + hex(memory.begin) + ", " + hex(memory.end) + "), the block's " +
              std::to_string(memory.end - memory.begin) + " bytes");
    return nullptr;
  }
  if (access.proxy != Proxy::Async) note_shared_access(access, *block, static_cast<uint32_t>(offset));
  if (block == &access.warp.block) order_lanes(access, memory, offset);
  return finish(access, memory.shadow, offset, memory.data.data(), "");
}

// A lane reads what another lane of its warp stored, with no bar.warp.sync or other meeting of the two in between.
// Bytes that several lanes stored at once are left out: the reader may be one of them.
void Memory::order_lanes(const Access& access, SharedMemory& memory, uint64_t offset) {
  constexpr uint32_t kMeeting = (1u << 21) - 1;
  const uint32_t warp = access.warp.index + 1, meeting = access.warp.meetings & kMeeting;
  const uint32_t mine = warp << 26 | static_cast<uint32_t>(access.lane) << 21 | meeting;
  const bool plain = access.proxy == Proxy::Generic && access.kind != AccessKind::ReadWrite;
  uint32_t* writers = memory.writers.data() + offset;
  for (uint32_t i = 0; i < access.bytes; i++) {
    const bool lanes_apart = writers[i] != mine && writers[i] >> 26 == warp && (writers[i] & kMeeting) == meeting;
    if (access.kind != AccessKind::Read) {
      writers[i] = plain && !lanes_apart ? mine : 0;
    } else if (plain && lanes_apart) {
      fault(access, "race",
            std::to_string(access.bytes) + "-byte read of shared memory at " + hex(access.address) + ", which lane " +
                std::to_string(writers[i] >> 21 & 31) + " of the same warp has written",
            "bar.warp.sync (__syncwarp) between the two");
      return;
    }
  }
}

uint8_t* Memory::global(const Access& access) {
  Known* known = find(access.address);
  const uint64_t offset = known ? access.address - known->region.begin : 0;
  if (known == nullptr || offset + access.bytes > known->region.bytes) {
    std::string nearest = "an address in a tensor passed to the launch";
    uint64_t best = ~0ull;
    for (const Known& other : regions_) {
      const uint64_t end = other.region.begin + other.region.bytes;
      const bool before = access.address < other.region.begin;
      const uint64_t distance = before ? other.region.begin - access.address : access.address - end;
      if (distance >= best || distance > 1 << 20) continue;
      best = distance;
      nearest = "an address in " + other.region.name + ", [" + hex(other.region.begin) + ", " + hex(end) +
                "): this is " + std::to_string(distance) + " bytes " + (before ? "before it" : "past its end");
    }
    fault(access, "out-of-bounds",
          std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of global memory at " + hex(access.address),
          nearest);
    return nullptr;
  }
  if (access.kind != AccessKind::Read && !known->region.writable) {
    fault(access, "read-only", "write to " + known->region.name + " at " + hex(access.address),
          "no write to constants");
    return nullptr;
  }
  const std::string where = " (" + known->region.name + " + " + std::to_string(offset) + ")";
  if (known->region.writable) order(access, *known, offset, where);
  return finish(access, known->shadow, offset, reinterpret_cast<uint8_t*>(known->region.begin), where);
}

void Memory::order(const Access& access, Known& known, uint64_t offset, const std::string& where) {
  Block& block = access.warp.block;
  FenceState& fence = access.warp.fence;
  const Ordering ordering = ordering_of(access.instruction);
  const bool atomic = access.kind == AccessKind::ReadWrite, strong = atomic || ordering != kWeak;
  std::string conflict;
  if (access.kind != AccessKind::Write && strong) {
    if (const Blocks* released = known.order.released(offset)) {
      Blocks& to = ordering == kAcquire || ordering == kAcquireRelease ? block.known : fence.read;
      to.insert(released->begin(), released->end());
    }
  }
  const Timeline& timeline = block.async->of(access.warp).timeline;
  const GlobalActor actor{block.id, strong, block.known, timeline.now(),
                          access.proxy == Proxy::Async ? nullptr : &timeline.known().order};
  if (access.kind == AccessKind::Read) {
    conflict = known.order.read(offset, access.bytes, actor);
  } else {
    conflict = known.order.write(offset, access.bytes, actor);
    if (!strong) fence.fenced = false;
    if (strong && (fence.fenced || ordering == kRelease || ordering == kAcquireRelease)) {
      known.order.release(offset, block.id, block.known);
    }
  }
  if (conflict.empty()) return;
  fault(access, "race",
        std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of global memory at " + hex(access.address) +
            where + ", " + conflict + " in this launch",
        "no sharing, or a barrier between warps, or fences and an atomic flag between blocks");
}

uint8_t* Memory::local(const Access& access) {
  const uint32_t size = machine_.kernel.local_bytes;
  if (access.address + access.bytes > size) {
    fault(access, "out-of-bounds",
          std::to_string(access.bytes) + "-byte " + verb(access.kind) + " of local memory at " + hex(access.address),
          "an address below the thread's " + std::to_string(size) + " bytes");
    return nullptr;
  }
  return access.warp.local.data() + static_cast<size_t>(access.lane) * size + access.address;
}

uint8_t* Memory::param(const Access& access) {
  const std::vector<uint8_t>& params = machine_.launch.params;
  if (access.kind != AccessKind::Read) {
    fault(access, "read-only", "write to the kernel's parameters", "no write to parameters");
    return nullptr;
  }
  if (access.address + access.bytes > params.size()) {
    fault(access, "out-of-bounds", std::to_string(access.bytes) + "-byte read of parameters at " + hex(access.address),
          "an offset below " + std::to_string(params.size()));
    return nullptr;
  }
  return const_cast<uint8_t*>(params.data()) + access.address;
}

void Memory::retire(Block& block) {
  Traffic& traffic = this->traffic[static_cast<size_t>(Space::Shared)];
  traffic.read_unique += block.shared.shadow.count(Shadow::kLoaded);
  traffic.write_unique += block.shared.shadow.count(Shadow::kStored);
}

void Memory::summarize() {
  for (const Known& known : regions_) {
    Traffic& traffic = this->traffic[static_cast<size_t>(known.region.writable ? Space::Global : Space::Const)];
    traffic.read_unique += known.shadow.count(Shadow::kLoaded);
    traffic.write_unique += known.shadow.count(Shadow::kStored);
  }
}

}  // namespace fastres::emulator
