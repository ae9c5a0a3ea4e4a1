// Clusters, proxies, elections and the register pool. PTX ISA: mapa, getctarank, barrier.cluster, fence.proxy,
// fence.mbarrier_init, elect.sync, setmaxnreg, griddepcontrol.
#include "emulator/addressing.h"
#include "emulator/async_state.h"
#include "emulator/lanes.h"

namespace fastres::emulator {
namespace {

// --- addresses of other blocks' shared memory -----------------------------------------------------------------------
// A shared address holds rank + 1 in bits 24-31, 0 being the executing block.

Step run_mapa(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int lane) {
    const uint32_t rank = w.lanes<uint32_t>(i.r[2])[lane];
    if (rank >= w.block.cluster.size()) {
      report(w, i, lane, "out-of-bounds", "mapa to block " + std::to_string(rank) + " of the cluster",
             "a rank below " + std::to_string(w.block.cluster.size()));
    }
    const uint64_t from = i.a ? w.lanes<uint64_t>(i.r[1])[lane] : w.lanes<uint32_t>(i.r[1])[lane];
    const uint64_t to = (from & ~0xff000000ull) | static_cast<uint64_t>(rank + 1) << 24;
    if (i.a) {
      w.lanes<uint64_t>(i.r[0])[lane] = to;
    } else {
      w.lanes<uint32_t>(i.r[0])[lane] = static_cast<uint32_t>(to);
    }
  });
  return Step::Next;
}

void decode_mapa(Decoder& d) {
  Instruction& i = d.instruction();
  d.take_any({"shared::cluster", "shared"});
  const Type type = d.take_type();
  d.expect_operands(3, 3);
  i.a = is_wide(type);
  i.r[0] = d.dst(0, type);
  i.r[1] = d.src(1, type);
  i.r[2] = d.src(2, Type::U32);
  i.run = run_mapa;
}

Step run_getctarank(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int lane) {
    const uint64_t address = i.a ? w.lanes<uint64_t>(i.r[1])[lane] : w.lanes<uint32_t>(i.r[1])[lane];
    const uint32_t rank = static_cast<uint32_t>(address >> 24 & 0xff);
    w.lanes<uint32_t>(i.r[0])[lane] = rank == 0 ? w.block.rank : rank - 1;
  });
  return Step::Next;
}

void decode_getctarank(Decoder& d) {
  Instruction& i = d.instruction();
  d.take_any({"shared::cluster", "shared"});
  const Type type = d.take_type();
  d.expect_operands(2, 2);
  i.a = is_wide(type);
  i.r[0] = d.dst(0, Type::U32);
  i.r[1] = d.src(1, type);
  i.run = run_getctarank;
}

// --- barrier.cluster ------------------------------------------------------------------------------------------------

constexpr uint32_t kWait = 1, kRelaxedArrive = 2, kAligned = 4;

void complete(Warp& w, ClusterBarrier& barrier) {
  for (const Block* block : w.block.cluster) {
    for (const auto& warp : block->warps) {
      const auto found = barrier.arrived.find(warp.get());
      const Mask arrived = found == barrier.arrived.end() ? 0 : found->second;
      if ((warp->live() & ~arrived) != 0) return;
    }
  }
  barrier.generation++;
  barrier.arrived.clear();
  barrier.released = std::move(barrier.collecting);
  barrier.collecting = {};
  w.block.machine.notify();
}

Step run_cluster_barrier(Warp& w, const Instruction& i, Mask mask) {
  if (i.a & kAligned && mask != w.live()) return Step::Wait;
  ClusterBarrier& barrier = w.block.async->cluster_barrier();
  WarpState& state = w.block.async->of(w);
  if (!(i.a & kWait)) {
    Mask& arrived = barrier.arrived[&w];
    if (arrived & mask) {
      report(w, i, __builtin_ctz(arrived & mask), "barrier", "barrier.cluster.arrive twice without a wait",
             "barrier.cluster.wait between two arrivals");
    }
    arrived |= mask;
    if (!(i.a & kRelaxedArrive)) state.timeline.release_to(barrier.collecting);
    complete(w, barrier);
    return Step::Next;
  }
  complete(w, barrier);  // others may have ended since
  const auto found = barrier.arrived.find(&w);
  if (found != barrier.arrived.end() && (found->second & mask)) return Step::Wait;
  state.timeline.acquire(barrier.released);
  w.meetings++;
  return Step::Next;
}

// --- fences ---------------------------------------------------------------------------------------------------------

Step run_proxy_fence(Warp& w, const Instruction& i, Mask) {
  if (i.a) w.block.async->of(w).timeline.proxy_fence();
  return Step::Next;
}

Step run_mbarrier_fence(Warp& w, const Instruction&, Mask) {
  WarpState& state = w.block.async->of(w);
  state.timeline.proxy_fence({state.made, state.makes});
  return Step::Next;
}

Step run_nothing(Warp&, const Instruction&, Mask) {
  return Step::Next;
}

void decode_griddepcontrol(Decoder& d) {
  if (d.take_any({"launch_dependents", "wait"}).empty()) d.fail("is neither launch_dependents nor wait");
  d.instruction().run = run_nothing;  // launches run one after the other
}

// --- elect.sync -----------------------------------------------------------------------------------------------------

Step run_elect(Warp& w, const Instruction& i, Mask mask) {
  const uint32_t* members = w.lanes<uint32_t>(i.r[1]);
  if (!gathered(w, i, mask, members)) return Step::Wait;
  const int leader = __builtin_ctz(mask);
  for_lanes(mask, [&](int lane) { w.lanes<uint32_t>(i.r[0])[lane] = static_cast<uint32_t>(leader); });
  Mask& p = w.predicate(i.a);
  p = (p & ~mask) | 1u << leader;
  return Step::Next;
}

void decode_elect(Decoder& d) {
  Instruction& i = d.instruction();
  d.take("sync");
  d.expect_operands(2, 2);
  const ptx::Operand& to = d.operand(0);
  if (to.second.empty()) d.fail("the destination is no pair d|p");
  ptx::Operand predicate;
  predicate.name = to.second;
  i.r[0] = d.dst(to, Type::U32);
  i.a = d.predicate_dst(predicate);
  i.r[1] = d.src(1, Type::B32);
  i.run = run_elect;
}

// --- setmaxnreg -----------------------------------------------------------------------------------------------------
// The block has the registers its threads started with. `dec` gives back, `inc` waits until there are enough.

constexpr uint32_t kLeastRegisters = 24, kMostRegisters = 256;

Step run_setmaxnreg(Warp& w, const Instruction& i, Mask mask) {
  if (mask != w.live()) return Step::Wait;
  AsyncState& async = *w.block.async;
  WarpState& state = async.of(w);
  const uint32_t wanted = static_cast<uint32_t>(i.imm);
  const bool inc = i.a != 0;
  if (inc ? wanted < state.registers : wanted > state.registers) {
    report(w, i, 0, "setmaxnreg",
           std::string(inc ? "inc" : "dec") + " to " + std::to_string(wanted) + " registers from " +
               std::to_string(state.registers),
           inc ? "at least as many as the warp has" : "at most as many as the warp has");
  }
  if (inc && wanted > state.registers) {
    const uint32_t more = (wanted - state.registers) * 32;
    if (more > async.free_registers) return Step::Wait;
    async.free_registers -= more;
  } else if (wanted < state.registers) {
    async.free_registers += (state.registers - wanted) * 32;
    w.block.machine.notify();
  }
  state.registers = wanted;
  state.setmaxnregs++;
  return Step::Next;
}

void decode_setmaxnreg(Decoder& d) {
  Instruction& i = d.instruction();
  i.a = d.take("inc");
  if (!i.a && !d.take("dec")) d.fail("is neither inc nor dec");
  d.take("sync");
  d.take("aligned");
  d.take("u32");
  d.expect_operands(1, 1);
  i.imm = d.constant(d.operand(0));
  if (i.imm < kLeastRegisters || i.imm > kMostRegisters || i.imm % 8 != 0) {
    d.fail("register count is " + std::to_string(i.imm) + ", expected a multiple of 8 in 24..256");
  }
  const ptx::Function& f = *d.kernel().function;
  if (f.reqntid[0] == 0 && f.maxntid[0] == 0) {
    d.fail("ptxas ignores setmaxnreg without .maxntid or .reqntid (__launch_bounds__)");
  }
  i.run = run_setmaxnreg;
}

}  // namespace

void decode_cluster_barrier(Decoder& d) {
  Instruction& i = d.instruction();
  const std::string what = d.take_any({"arrive", "wait"});
  if (what.empty()) d.fail("is neither arrive nor wait");
  i.a = (what == "wait" ? kWait : 0) | (d.take("relaxed") ? kRelaxedArrive : 0) | (d.take("aligned") ? kAligned : 0);
  d.take_any({"release", "acquire"});
  i.run = run_cluster_barrier;
}

void decode_proxy_fence(Decoder& d) {
  const std::string kind =
      d.take_any({"async", "async::generic", "alias", "tensormap::generic", "async.global", "async.shared::cta"});
  const std::string space = d.take_any({"global", "shared::cta", "shared::cluster"});
  d.take_any({"acquire", "release"});
  d.take_any({"cta", "cluster", "gpu", "sys"});
  d.take_any({"sync_restrict::shared::cta", "sync_restrict::shared::cluster"});
  d.instruction().a = kind.rfind("async", 0) == 0 && space != "global";
  d.instruction().run = run_proxy_fence;
}

void decode_mbarrier_fence(Decoder& d) {
  d.take("release");
  d.take("cluster");
  d.instruction().run = run_mbarrier_fence;
}

std::string describe_cluster_wait(Warp& w, const Instruction& i, Mask mask) {
  if (mask != w.live()) return "";
  if (i.run == run_cluster_barrier) return " for the other threads of its cluster";
  if (i.run != run_setmaxnreg) return "";
  const AsyncState& async = *w.block.async;
  const uint32_t have = w.block.async->of(w).registers;
  return " for " + std::to_string((i.imm - have) * 32) + " registers, the block's pool has " +
         std::to_string(async.free_registers);
}

const Family& cluster_family() {
  static const Family family = {{"mapa", decode_mapa},
                                {"getctarank", decode_getctarank},
                                {"elect", decode_elect},
                                {"setmaxnreg", decode_setmaxnreg},
                                {"griddepcontrol", decode_griddepcontrol}};
  return family;
}

}  // namespace fastres::emulator
