// Barriers of a block and of a warp, and memory fences. PTX ISA, "Parallel Synchronization and Communication
// Instructions": bar, barrier, bar.warp.sync, membar, fence.
#include <bitset>

#include "emulator/async_state.h"
#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

uint32_t count(Mask mask) {
  return static_cast<uint32_t>(std::bitset<32>(mask).count());
}

uint32_t live_threads(const Block& block) {
  uint32_t threads = 0;
  for (const auto& warp : block.warps) threads += count(warp->live());
  return threads;
}

void complete(Block& block, NamedBarrier& barrier) {
  const uint32_t wanted = barrier.whole_block ? live_threads(block) : barrier.expected;
  if (barrier.arrived == 0 || barrier.arrived < wanted) return;
  barrier.generation++;
  barrier.released = std::move(barrier.collecting);
  barrier.collecting = {};
  barrier.result = barrier.reduction;
  barrier.arrived = 0;
  barrier.waiting.clear();
  block.machine.notify();
}

enum class Kind : uint32_t { Sync, Arrive, RedPopc, RedAnd, RedOr };
constexpr uint32_t kAligned = 0x100, kCounted = 0x200;

// r[0]: the barrier, r[1]: the count, r[2]: the predicate of bar.red, r[3]: its result. a: Kind and flags, b: flip.
Step run_bar(Warp& w, const Instruction& i, Mask mask) {
  Machine& machine = w.block.machine;
  Group& group = w.group();
  const Kind kind = static_cast<Kind>(i.a & 0xff);
  const int lane = __builtin_ctz(mask);
  const uint32_t id = w.lanes<uint32_t>(i.r[0])[lane];
  const auto fault = [&](const char* what, std::string message, std::string expected) {
    Finding finding;
    finding.kind = what;
    finding.message = std::move(message);
    finding.expected = std::move(expected);
    machine.locate(finding, w, i, lane);
    machine.fatal(std::move(finding));
  };
  if (id >= 16) fault("barrier", "barrier " + std::to_string(id), "0 to 15");
  NamedBarrier& barrier = w.block.barriers[id];
  if (group.ticket == 0) {
    // Aligned: every lane of the warp executes it together, so wait for those that are elsewhere.
    if (i.a & kAligned && mask != w.live()) return Step::Wait;
    const bool counted = i.a & kCounted;
    const uint32_t wanted = counted ? w.lanes<uint32_t>(i.r[1])[lane] : 0;
    if (counted && (wanted == 0 || wanted % 32 != 0)) {
      fault("barrier", "barrier " + std::to_string(id) + " for " + std::to_string(wanted) + " threads",
            "a positive multiple of 32");
    }
    if (barrier.arrived == 0) {
      barrier.expected = wanted;
      barrier.whole_block = !counted;
      barrier.reduction = kind == Kind::RedAnd ? 1 : 0;
    } else if (barrier.whole_block == counted || barrier.expected != wanted) {
      fault("barrier",
            "barrier " + std::to_string(id) + " for " + (counted ? std::to_string(wanted) : "all") +
                " threads, while others wait at it for " +
                (barrier.whole_block ? "all" : std::to_string(barrier.expected)),
            "one count for one barrier");
    }
    const Mask p = kind >= Kind::RedPopc ? (w.predicate(i.r[2]) ^ i.b) & mask : 0;
    if (kind == Kind::RedPopc) barrier.reduction += count(p);
    if (kind == Kind::RedAnd) barrier.reduction &= p == mask;
    if (kind == Kind::RedOr) barrier.reduction |= p != 0;
    barrier.arrived += counted && i.a & kAligned ? 32 : count(mask);
    barrier.waiting.emplace_back(&w, mask);
    barrier_arrives(w, barrier.collecting);
    group.ticket = barrier.generation;
    const uint64_t mine = barrier.generation;
    complete(w.block, barrier);
    if (kind == Kind::Arrive) return Step::Next;
    if (barrier.generation == mine) return Step::Wait;
  } else if (group.ticket == barrier.generation) {
    return Step::Wait;
  }
  barrier_passes(w, barrier.released);
  w.meetings++;
  if (kind == Kind::RedPopc) {
    for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[3])[l] = barrier.result; });
  } else if (kind >= Kind::RedAnd) {
    Mask& p = w.predicate(i.r[3]);
    p = (p & ~mask) | (barrier.result ? mask : 0);
  }
  return Step::Next;
}

void decode_bar_warp(Decoder& d);

void decode_bar(Decoder& d, bool aligned) {
  if (d.take("warp")) return decode_bar_warp(d);
  if (d.take("cluster")) return decode_cluster_barrier(d);
  d.take("cta");
  aligned |= d.take("aligned");
  Instruction& i = d.instruction();
  const std::string what = d.take_any({"sync", "arrive", "red"});
  if (what.empty()) d.fail("is neither sync, arrive nor red");
  Kind kind = what == "arrive" ? Kind::Arrive : Kind::Sync;
  size_t next = 0;
  if (what == "red") {
    const std::string op = d.take_any({"popc", "and", "or"});
    kind = op == "popc" ? Kind::RedPopc : op == "and" ? Kind::RedAnd : Kind::RedOr;
    d.take_any({"u32", "pred"});
    d.expect_operands(3, 4);
    i.r[3] = kind == Kind::RedPopc ? d.dst(0, Type::U32) : d.predicate_dst(d.operand(0));
    Mask flip = 0;
    i.r[2] = d.predicate_src(d.operand(d.operands() - 1), flip);
    i.b = flip;
    next = 1;
  } else {
    d.expect_operands(1, 2);
  }
  const size_t count_at = next + 1, end = what == "red" ? d.operands() - 1 : d.operands();
  i.r[0] = d.src(next, Type::U32);
  i.a = static_cast<uint32_t>(kind) | (aligned ? kAligned : 0);
  if (count_at < end) {
    i.r[1] = d.src(count_at, Type::U32);
    i.a |= kCounted;
  } else if (kind == Kind::Arrive) {
    d.fail("arrive needs a thread count");
  }
  i.run = run_bar;
}

Step run_bar_warp(Warp& w, const Instruction& i, Mask mask) {
  if (!gathered(w, i, mask, w.lanes<uint32_t>(i.r[0]))) return Step::Wait;
  w.meetings++;
  return Step::Next;
}
void decode_bar_warp(Decoder& d) {
  d.take("sync");
  d.expect_operands(1, 1);
  d.instruction().r[0] = d.src(0, Type::B32);
  d.instruction().run = run_bar_warp;
}

// a: whether the scope reaches other blocks.
Step run_fence(Warp& w, const Instruction& i, Mask) {
  if (i.a) {
    w.fence.fenced = true;
    w.block.known.insert(w.fence.read.begin(), w.fence.read.end());
    w.fence.read.clear();
  }
  return Step::Next;
}
void decode_fence(Decoder& d) {
  if (d.take("proxy")) return decode_proxy_fence(d);
  if (d.take("mbarrier_init")) return decode_mbarrier_fence(d);
  d.take_any({"sc", "acq_rel", "acquire", "release"});
  const std::string scope = d.take_any({"cta", "cluster", "gpu", "sys", "gl"});
  d.instruction().a = scope != "cta";
  d.instruction().run = run_fence;
}

void decode_bar_aligned(Decoder& d) {
  decode_bar(d, true);
}
void decode_barrier(Decoder& d) {
  decode_bar(d, false);
}

}  // namespace

bool gathered(Warp& w, const Instruction& i, Mask mask, const uint32_t* members) {
  const int first = __builtin_ctz(mask);
  const Mask member = members[first];
  if ((mask & ~member) != 0) {
    Finding finding;
    finding.kind = "membermask";
    finding.message = "lanes outside the member mask execute the instruction";
    finding.expected = "every executing lane's bit in its mask";
    Machine& machine = w.block.machine;
    machine.locate(finding, w, i, __builtin_ctz(mask & ~member));
    machine.fatal(std::move(finding));
  }
  return (member & w.live()) == mask;
}

void check_barriers(Block& block) {
  for (NamedBarrier& barrier : block.barriers) {
    if (barrier.whole_block) complete(block, barrier);
  }
}

std::string describe_wait(Warp& w, const Group& group) {
  const Instruction& i = w.block.machine.kernel.code[group.pc];
  std::string lanes;
  if (group.mask != w.initial) {
    lanes = " lanes";
    for (int lane = 0; lane < 32; lane++) {
      if (group.mask >> lane & 1) lanes += " " + std::to_string(lane);
    }
  }
  std::string text = "block " + std::to_string(w.block.id) + " warp " + std::to_string(w.index) + lanes +
                     " waits at line " + std::to_string(i.source->line) + " (" + i.source->opcode + ")";
  if (i.run == run_bar) {
    const uint32_t id = w.lanes<uint32_t>(i.r[0])[__builtin_ctz(group.mask)];
    const NamedBarrier& barrier = w.block.barriers[id];
    if (group.ticket == 0) {
      text += " for the other lanes of its warp";
    } else {
      const uint32_t wanted = barrier.whole_block ? live_threads(w.block) : barrier.expected;
      text += " on barrier " + std::to_string(id) + ", where " + std::to_string(barrier.arrived) + " of " +
              std::to_string(wanted) + " threads have arrived";
    }
  } else if (const std::string async = describe_async_wait(w, i, group.mask); !async.empty()) {
    text += async;
  } else if (group.mask != w.live()) {
    text += " for the other lanes of its warp";
  }
  return text;
}

const Family& barrier_family() {
  static const Family family = {
      {"bar", decode_bar_aligned}, {"barrier", decode_barrier}, {"membar", decode_fence}, {"fence", decode_fence}};
  return family;
}

}  // namespace fastres::emulator
