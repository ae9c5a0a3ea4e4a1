#include "emulator/async_state.h"

#include <algorithm>
#include <cstdio>

namespace fastres::emulator {
namespace {

// Carries a copy's steps through the scheduler, which runs them in any order.
class TransferStep : public Pending {
 public:
  explicit TransferStep(std::shared_ptr<Transfer> transfer) : transfer_(std::move(transfer)) {}
  void happen(Machine& machine) override {
    if (transfer_->finished) return;
    transfer_->advance(machine);
    if (!transfer_->finished) machine.start(std::make_unique<TransferStep>(transfer_));
  }
  std::string describe() const override { return transfer_->describe(); }

 private:
  std::shared_ptr<Transfer> transfer_;
};

// The registers a thread starts with: what is left when the register file is shared out evenly, in eights.
uint32_t registers_at_entry(size_t warps) {
  constexpr uint32_t kFile = 65536, kMost = 256;
  return std::min(kMost, kFile / static_cast<uint32_t>(warps * 32) / 8 * 8);
}

}  // namespace

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

AsyncState::AsyncState(Block& owner) : block(owner), order(owner.shared.end) {
  const uint32_t registers = registers_at_entry(block.warps.size());
  for (size_t i = 0; i < block.warps.size(); ++i) {
    warps_.emplace_back(new_agent());
    warps_.back().made = new_agent();
    warps_.back().registers = registers;
    warps_.back().wgmma = WgmmaRegisters(block.machine.kernel.watch.registers);
  }
  for (size_t i = 0; i < (block.warps.size() + 3) / 4; ++i) warpgroups_.push_back({new_agent(), {}});
}

Agent AsyncState::new_agent() {
  AsyncState* first = block.rank == 0 ? this : block.cluster.front()->async.get();
  return first->agents_++;
}

BulkThread& AsyncState::bulk(const Warp& warp, int lane) {
  const auto [found, fresh] = bulk_.try_emplace(warp.index * 32 + static_cast<uint32_t>(lane));
  if (fresh) found->second.agent = new_agent();
  return found->second;
}

ClusterBarrier& AsyncState::cluster_barrier() {
  return block.cluster.front()->async->cluster_barrier_;
}

void AsyncState::start(std::shared_ptr<Transfer> transfer) {
  Machine& machine = block.machine;
  if (transfers_.size() > 64) {
    const auto over = [](const std::shared_ptr<Transfer>& t) { return t->finished; };
    transfers_.erase(std::remove_if(transfers_.begin(), transfers_.end(), over), transfers_.end());
  }
  transfers_.push_back(transfer);
  if (machine.below(4) == 0) {
    transfer->advance(machine);
    machine.notify();
  }
  if (!transfer->finished) machine.start(std::make_unique<TransferStep>(std::move(transfer)));
}

void AsyncState::finish() {
  for (const auto& transfer : transfers_) {
    while (!transfer->finished) transfer->advance(block.machine);
  }
  check_barriers_left();
  check_remote_uses();
  check_bulk_left();
  check_register_counts();
}

bool AsyncState::known_by_some_warp(Epoch epoch) const {
  return std::any_of(warps_.begin(), warps_.end(),
                     [&](const WarpState& warp) { return warp.timeline.known().order.covers(epoch); });
}

void AsyncState::check_barriers_left() {
  for (auto& [offset, cell] : barriers) {
    const std::string left = cell.barrier.leftover();
    if (!left.empty()) {
      report(*cell.warp, *cell.instruction, -1, "mbarrier", "mbarrier at " + hex(offset) + ": " + left,
             "every phase completed by its arrivals and bytes", offset);
    }
    const Epoch last{cell.barrier.copy_epoch().agent, cell.copies};
    const bool known = std::any_of(warps_.begin(), warps_.end(),
                                   [&](const WarpState& warp) { return warp.timeline.known().order.covers(last); });
    if (cell.copies != 0 && !known) {
      report(*cell.warp, *cell.instruction, -1, "lifetime",
             "the block ended, and nobody waited for the copies of phase " + std::to_string(cell.copies - 1) +
                 " of the mbarrier at " + hex(offset),
             "a wait for every copy into shared memory", offset);
    }
  }
}

// A block that ends without having heard of an access from outside might have ended before it.
void AsyncState::check_remote_uses() {
  for (const auto& [agent, use] : remote) {
    if (known_by_some_warp(use.at)) continue;
    report(*use.warp, *use.instruction, -1, "lifetime",
           "block " + std::to_string(block.rank) +
               " of the cluster may have ended before this access to its shared memory",
           "a cluster barrier, or a wait of that block, between the access and its end");
  }
}

void AsyncState::check_bulk_left() {
  for (auto& [thread, bulk] : bulk_) {
    const Transfer* left = bulk.open.empty() ? nullptr : bulk.open.front().get();
    for (size_t g = bulk.waited; g < bulk.committed.size() && left == nullptr; ++g) {
      if (!bulk.committed[g].empty()) left = bulk.committed[g].front().get();
    }
    if (left == nullptr) continue;
    report(left->warp, left->instruction, left->lane, "lifetime",
           "the block ended while this copy may still read its shared memory",
           bulk.open.empty() ? "cp.async.bulk.wait_group before the end"
                             : "cp.async.bulk.commit_group and wait_group before the end");
  }
}

void AsyncState::check_register_counts() {
  for (size_t i = 0; i + 1 < warps_.size(); ++i) {
    if (i % 4 == 3 || warps_[i].setmaxnregs == warps_[i + 1].setmaxnregs) continue;
    const auto& code = block.machine.kernel.code;
    report(*block.warps[i], code.front(), -1, "setmaxnreg",
           "warps " + std::to_string(i) + " and " + std::to_string(i + 1) + " of one warpgroup executed " +
               std::to_string(warps_[i].setmaxnregs) + " and " + std::to_string(warps_[i + 1].setmaxnregs) +
               " setmaxnreg",
           "all warps of a warpgroup to execute the same");
    return;
  }
}

SharedPlace shared_place(Warp& w, const Instruction& i, int lane, Space space, uint64_t address, uint64_t bytes,
                         uint32_t align) {
  const auto fail = [&](const char* kind, const std::string& message, const std::string& expected) {
    report(w, i, lane, kind, message, expected, address);
    return SharedPlace{};
  };
  uint64_t local = address;
  if (space == Space::Generic) {
    if ((address & kWindowMask) != kSharedWindow) {
      return fail("out-of-bounds", "address " + hex(address) + " is not in shared memory",
                  "an address of shared memory");
    }
    local &= ~kWindowMask;
  }
  const uint64_t rank = local >> 24, offset = local & 0xffffff;
  if (rank > w.block.cluster.size()) {
    return fail("out-of-bounds", "address " + hex(local) + " is in no block of the cluster",
                "an address of its blocks");
  }
  Block* owner = rank == 0 ? &w.block : w.block.cluster[rank - 1];
  if (offset < owner->shared.begin || offset + bytes > owner->shared.end) {
    return fail("out-of-bounds", std::to_string(bytes) + " bytes of shared memory at " + hex(offset),
                "addresses in [" + hex(owner->shared.begin) + ", " + hex(owner->shared.end) + ")");
  }
  if (offset % align != 0) {
    return fail("misaligned", "shared memory address " + hex(offset), "a multiple of " + std::to_string(align));
  }
  note_remote_use(w, i, lane, *owner);
  return {owner, static_cast<uint32_t>(offset)};
}

void note_remote_use(Warp& w, const Instruction& i, int lane, Block& owner) {
  if (&owner == &w.block) return;
  const Epoch now = w.block.async->of(w).timeline.now();
  owner.async->remote[now.agent] = {now, &w, &i};
  if (!owner.done()) return;
  report(w, i, lane, "lifetime",
         "shared memory of block " + std::to_string(owner.rank) + " of the cluster, which has ended",
         "a cluster barrier before a block ends that others still access");
}

BarrierCell* barrier_at(Warp& w, const Instruction& i, int lane, const SharedPlace& place, bool by_async) {
  if (place.block == nullptr) return nullptr;
  auto& barriers = place.block->async->barriers;
  const auto found = barriers.find(place.offset);
  if (found == barriers.end() || !found->second.barrier.valid()) {
    report(w, i, lane, "mbarrier", "there is no mbarrier at " + hex(place.offset), "mbarrier.init before its use",
           place.offset);
    return nullptr;
  }
  BarrierCell& cell = found->second;
  const Knowledge& known = w.block.async->of(w).timeline.known();
  if (!known.order.covers(cell.made)) {
    report(w, i, lane, "race",
           "the mbarrier at " + hex(place.offset) + " is used without an order after its mbarrier.init",
           "a barrier between initialisation and use", place.offset);
  } else if ((by_async || place.block != &w.block) && !known.proxied.covers(cell.made)) {
    report(w, i, lane, "mbarrier-fence",
           "the mbarrier at " + hex(place.offset) + " is used by " + (by_async ? "the async proxy" : "another block") +
               " without a fence after its mbarrier.init",
           "fence.mbarrier_init.release.cluster or fence.proxy.async after the init, then a barrier", place.offset);
  }
  cell.warp = &w;
  cell.instruction = &i;
  return &cell;
}

void report(Warp& w, const Instruction& i, int lane, const char* kind, std::string message, std::string expected,
            uint64_t address) {
  Finding finding;
  finding.kind = kind;
  finding.message = std::move(message);
  finding.expected = std::move(expected);
  finding.space = "shared";
  finding.address = address;
  w.block.machine.fault(std::move(finding), w, i, lane);
}

void report(Warp& w, const Instruction& i, int lane, const Conflict& conflict, const std::string& what, bool changes) {
  const std::string earlier = std::string(conflict.other_proxy == Proxy::Async ? "an asynchronous " : "a ") +
                              (conflict.other_wrote ? "write" : "read");
  if (conflict.kind == Conflict::Kind::kProxy) {
    report(w, i, lane, "proxy-fence",
           what + " of shared memory at " + hex(conflict.address) + " after a generic write without a proxy fence",
           "fence.proxy.async after the write, before the barrier that orders the two", conflict.address);
    return;
  }
  report(w, i, lane, changes || !conflict.other_wrote ? "race" : "same-value",
         what + " of shared memory at " + hex(conflict.address) + " is not ordered after " + earlier +
             " of the same bytes",
         "a wait or barrier between the two", conflict.address);
}

void note_shared_access(const Access& access, Block& owner, uint32_t offset) {
  note_remote_use(access.warp, access.instruction, access.lane, owner);
  Timeline& timeline = access.warp.block.async->of(access.warp).timeline;
  const bool atomic = access.kind == AccessKind::ReadWrite;
  const SharedAccess how{timeline.now(), access.proxy, atomic};
  SharedOrder& order = owner.async->order;
  const Conflict conflict = access.kind == AccessKind::Read ? order.read(offset, access.bytes, how, timeline.known())
                                                            : order.write(offset, access.bytes, how, timeline.known());
  if (conflict) {
    report(access.warp, access.instruction, access.lane, conflict,
           atomic                            ? "an atomic update"
           : access.kind == AccessKind::Read ? "a read"
                                             : "a write",
           access.changes(owner.shared.data.data() + offset));
  }
}

void barrier_arrives(Warp& w, Knowledge& collecting) {
  w.block.async->of(w).timeline.release_to(collecting);
}

std::string describe_async_wait(Warp& w, const Instruction& i, Mask mask) {
  for (const auto describe : {describe_mbarrier_wait, describe_bulk_wait, describe_wgmma_wait, describe_cluster_wait}) {
    const std::string text = describe(w, i, mask);
    if (!text.empty()) return text;
  }
  return "";
}

void barrier_passes(Warp& w, const Knowledge& released) {
  w.block.async->of(w).timeline.acquire(released);
}

}  // namespace fastres::emulator
