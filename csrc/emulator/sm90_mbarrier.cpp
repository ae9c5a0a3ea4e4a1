// mbarrier instructions. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
//
// test_wait and try_wait that find their phase unfinished return false a few times, as the seed draws, and then sleep
// until something changes: so a loop around them sees spurious failures, and a wait without end is a deadlock.
#include "emulator/addressing.h"
#include "emulator/async_state.h"
#include "emulator/lanes.h"

namespace fastres::emulator {
namespace {

enum class Op : uint32_t { Init, Inval, ExpectTx, CompleteTx, Arrive, ArriveExpectTx, Test, Try };
constexpr uint32_t kOpMask = 0xff, kDrop = 0x100, kNoComplete = 0x200, kRelaxed_ = 0x400, kParity = 0x800;

Op op_of(const Instruction& i) {
  return static_cast<Op>(i.a & kOpMask);
}

void complain(Warp& w, const Instruction& i, int lane, const SharedPlace& place, const std::string& error) {
  if (error.empty()) return;
  report(w, i, lane, "mbarrier", "mbarrier at " + hex(place.offset) + ": " + error,
         "arrivals, bytes and waits that match phase by phase", place.offset);
}

void make(Warp& w, const Instruction& i, int lane, const SharedPlace& place, uint32_t count) {
  AsyncState& async = *w.block.async;
  WarpState& state = async.of(w);
  const auto [found, fresh] = async.barriers.try_emplace(place.offset);
  BarrierCell& cell = found->second;
  const Agent agent = fresh ? async.new_agent() : cell.barrier.copy_epoch().agent;
  complain(w, i, lane, place, cell.barrier.init(count, agent));
  cell.made = {state.made, ++state.makes};
  state.timeline.learn(cell.made);
  cell.warp = &w;
  cell.instruction = &i;
  uint8_t* flags = &place.block->shared.shadow.flags(place.offset);
  for (int byte = 0; byte < 8; ++byte) flags[byte] |= Shadow::kWritten;
}

// r[0]: state (64 bits), r[1]: count or bytes, r[5..7]: the address. a: Op and flags.
Step run_mbarrier(Warp& w, const Instruction& i, Mask mask) {
  WarpState& state = w.block.async->of(w);
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  bool arrived = false;
  for_lanes(mask, [&](int lane) {
    const SharedPlace place = shared_place(w, i, lane, space_of(i), address[lane], 8, 8);
    if (place.block == nullptr) return;
    const uint32_t operand = w.lanes<uint32_t>(i.r[1])[lane];
    if (op_of(i) == Op::Init) return make(w, i, lane, place, operand);
    BarrierCell* cell = barrier_at(w, i, lane, place, false);
    if (cell == nullptr) return;
    Mbarrier& barrier = cell->barrier;
    if (op_of(i) == Op::Inval) return complain(w, i, lane, place, barrier.invalidate());
    if (op_of(i) == Op::CompleteTx) {
      return complain(w, i, lane, place, barrier.complete_bytes(operand, barrier.phase(), Knowledge()));
    }
    w.lanes<uint64_t>(i.r[0])[lane] = barrier.token();
    if (op_of(i) != Op::Arrive) complain(w, i, lane, place, barrier.expect_bytes(operand));
    if (op_of(i) == Op::ExpectTx) return;
    const Knowledge nothing;
    complain(w, i, lane, place,
             barrier.arrive(op_of(i) == Op::Arrive ? operand : 1, i.a & kRelaxed_ ? nothing : state.timeline.known(),
                            i.a & kDrop, i.a & kNoComplete));
    arrived = true;
  });
  if (arrived) state.timeline.tick();
  w.block.machine.notify();
  return Step::Next;
}

// May a poll that failed return false, rather than sleep? Only so often before anything changes.
bool may_fail(Warp& w, const Instruction& i) {
  Machine& machine = w.block.machine;
  WarpState& state = w.block.async->of(w);
  if (state.polled_at != machine.events()) {
    state.polled_at = machine.events();
    state.polls = op_of(i) == Op::Test ? 64 : machine.below(3);
  }
  if (state.polls == 0) return false;
  --state.polls;
  return true;
}

// r[0]: the predicate written, r[1]: parity, r[2]: state, r[5..7]: the address.
Step run_wait(Warp& w, const Instruction& i, Mask mask) {
  WarpState& state = w.block.async->of(w);
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  Mask done = 0;
  Knowledge released;
  for_lanes(mask, [&](int lane) {
    const SharedPlace place = shared_place(w, i, lane, space_of(i), address[lane], 8, 8);
    BarrierCell* cell = barrier_at(w, i, lane, place, false);
    if (cell == nullptr) {
      done |= 1u << lane;
      return;
    }
    const uint64_t token = i.a & kParity ? 0 : w.lanes<uint64_t>(i.r[2])[lane];
    const uint32_t parity = i.a & kParity ? w.lanes<uint32_t>(i.r[1])[lane] : Mbarrier::token_phase(token) & 1;
    const bool over = i.a & kParity ? cell->barrier.parity_done(parity) : cell->barrier.token_done(token);
    if (lane == __builtin_ctz(mask)) {
      complain(w, i, lane, place, cell->barrier.watch(state.timeline.now().agent, parity, over));
    }
    if (!over) return;
    done |= 1u << lane;
    released.join(cell->barrier.released());
  });
  if (done != mask && !may_fail(w, i)) return Step::Wait;
  if (done != 0 && !(i.a & kRelaxed_)) {
    state.timeline.acquire(released);
    w.meetings++;
  }
  Mask& p = w.predicate(i.r[0]);
  p = (p & ~mask) | done;
  return Step::Next;
}

Step run_pending_count(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int lane) {
    w.lanes<uint32_t>(i.r[0])[lane] = Mbarrier::token_pending(w.lanes<uint64_t>(i.r[1])[lane]);
  });
  return Step::Next;
}

void decode_wait(Decoder& d, Op op) {
  Instruction& i = d.instruction();
  i.a = static_cast<uint32_t>(op) | (d.take("parity") ? kParity : 0);
  if (d.take("relaxed")) i.a |= kRelaxed_;
  d.take("acquire");
  d.take_any({"cta", "cluster"});
  take_space(d);
  d.take("b64");
  d.expect_operands(3, op == Op::Try ? 4 : 3);
  i.r[0] = d.predicate_dst(d.operand(0));
  take_address(d, d.operand(1));
  if (i.a & kParity) {
    i.r[1] = d.src(2, Type::U32);
  } else {
    i.r[2] = d.src(2, Type::B64);
  }
  i.run = run_wait;
}

void decode_arrive(Decoder& d, uint32_t flags) {
  Instruction& i = d.instruction();
  const bool expect = d.take("expect_tx");
  if (d.take("noComplete")) flags |= kNoComplete;
  if (d.take("relaxed")) flags |= kRelaxed_;
  d.take("release");
  d.take_any({"cta", "cluster"});
  take_space(d);
  d.take("b64");
  d.expect_operands(expect ? 3 : 2, 3);
  i.a = static_cast<uint32_t>(expect ? Op::ArriveExpectTx : Op::Arrive) | flags;
  i.r[0] = d.dst(0, Type::B64);
  take_address(d, d.operand(1));
  i.r[1] = d.operands() == 3 ? d.src(2, Type::U32) : d.constant_slot(1, false);
  i.run = run_mbarrier;
}

void decode_mbarrier(Decoder& d) {
  Instruction& i = d.instruction();
  const std::string op = d.take_word();
  if (op == "arrive") return decode_arrive(d, 0);
  if (op == "arrive_drop") return decode_arrive(d, kDrop);
  if (op == "test_wait") return decode_wait(d, Op::Test);
  if (op == "try_wait") return decode_wait(d, Op::Try);
  if (op == "pending_count") {
    d.take("b64");
    d.expect_operands(2, 2);
    i.r[0] = d.dst(0, Type::U32);
    i.r[1] = d.src(1, Type::B64);
    i.run = run_pending_count;
    return;
  }
  d.take("relaxed");
  d.take_any({"cta", "cluster"});
  take_space(d);
  d.take("b64");
  const bool inval = op == "inval";
  i.a = static_cast<uint32_t>(op == "init"          ? Op::Init
                              : inval               ? Op::Inval
                              : op == "expect_tx"   ? Op::ExpectTx
                              : op == "complete_tx" ? Op::CompleteTx
                                                    : (d.fail("unknown mbarrier operation '" + op + "'"), Op::Init));
  d.expect_operands(inval ? 1 : 2, inval ? 1 : 2);
  i.r[0] = d.scratch(true);
  take_address(d, d.operand(0));
  i.r[1] = inval ? d.constant_slot(0, false) : d.src(1, Type::U32);
  i.run = run_mbarrier;
}

}  // namespace

std::string describe_mbarrier_wait(Warp& w, const Instruction& i, Mask mask) {
  if (i.run != run_wait) return "";
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  const int lane = __builtin_ctz(mask);
  const uint64_t raw = address[lane], rank = raw >> 24 & 0xff, offset = raw & 0xffffff;
  Block& owner = rank == 0 || rank > w.block.cluster.size() ? w.block : *w.block.cluster[rank - 1];
  const auto found = owner.async->barriers.find(static_cast<uint32_t>(offset));
  if (found == owner.async->barriers.end()) return "";
  std::string text = " on the mbarrier at " + hex(offset);
  if (i.a & kParity) text += " for parity " + std::to_string(w.lanes<uint32_t>(i.r[1])[lane] & 1);
  return text + ", which is in " + found->second.barrier.describe();
}

const Family& mbarrier_family() {
  static const Family family = {{"mbarrier", decode_mbarrier}};
  return family;
}

}  // namespace fastres::emulator
