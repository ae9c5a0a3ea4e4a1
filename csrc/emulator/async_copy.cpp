// cp.async, the asynchronous copy of 4, 8 or 16 bytes. PTX ISA, "Data Movement and Conversion Instructions:
// Asynchronous copy", non-bulk.
//
// A copy reads its source and writes its destination at some time between its issue and the wait for its group. Here
// the seed decides, copy by copy: all at issue, or all at the wait. Until the wait the destination is marked as in
// flight, and any access to it is a finding, whichever way the data went.
#include <cstring>

#include "emulator/addressing.h"
#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

void land(Warp& w, const AsyncCopy& copy, const Instruction& i) {
  if (copy.late) {
    std::memset(copy.to, 0, copy.bytes);
    if (copy.from != nullptr) std::memcpy(copy.to, copy.from, copy.source_bytes);
  }
  w.block.machine.memory.land({w, i, copy.lane, Space::Shared, copy.address, copy.bytes, AccessKind::Write});
}

// r[0]: source base, r[1]: source-size register, r[2]: ignore-src predicate; a: bytes, b: Flags below. The source's
// offset is in `list[0]` and `list[1]`, since imm belongs to the destination.
constexpr uint32_t kSourceBytes = 1, kIgnore = 2, kIgnoreFlip = 4;

Step run_copy(Warp& w, const Instruction& i, Mask mask) {
  Machine& machine = w.block.machine;
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  const uint64_t offset = uint64_t{i.list[1]} << 32 | i.list[0];
  for_lanes(mask, [&](int l) {
    uint32_t bytes = i.a;
    if (i.b & kSourceBytes) bytes = w.lanes<uint32_t>(i.r[1])[l];
    if (i.b & kIgnore) bytes = ((w.predicate(i.r[2]) ^ (i.b & kIgnoreFlip ? kFullMask : 0)) >> l & 1) ? 0 : i.a;
    if (bytes > i.a) {
      Finding finding;
      finding.kind = "operand";
      finding.message = "cp.async reads " + std::to_string(bytes) + " bytes for a copy of " + std::to_string(i.a);
      finding.expected = "src-size of at most cp-size";
      machine.fault(std::move(finding), w, i, l);
      bytes = i.a;
    }
    AsyncCopy copy{l, address[l], i.a, bytes, nullptr, nullptr, machine.below(2) == 0, w.async.committed[l]};
    if (bytes != 0) {
      const uint64_t source = w.lanes<uint64_t>(i.r[0])[l] + offset;
      copy.from = machine.memory.access_part({w, i, l, Space::Global, source, i.a, AccessKind::Read}, bytes);
    }
    copy.to = machine.memory.launch_copy({w, i, l, Space::Shared, address[l], i.a, AccessKind::Write});
    if (copy.to == nullptr) return;
    if (copy.late) {
      std::memset(copy.to, 0xff, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
      if (copy.from != nullptr) std::memcpy(copy.to, copy.from, copy.source_bytes);
    }
    w.async.copies.push_back(copy);
  });
  return Step::Next;
}

void decode_copy(Decoder& d) {
  Instruction& i = d.instruction();
  d.take_any({"ca", "cg"});
  if (!(d.take("shared") || d.take("shared::cta")) || !d.take("global")) d.fail("copies from .global to .shared");
  const bool hint = d.take("L2::cache_hint");
  d.take_any({"L2::64B", "L2::128B", "L2::256B"});
  d.expect_operands(3, 5);
  i.r[6] = static_cast<uint32_t>(Space::Shared);
  take_address(d, d.operand(0));
  const Decoder::Address from = d.address(d.operand(1));
  if (from.narrow) d.fail("the source address has 64 bits");
  i.r[0] = from.base;
  i.list = {static_cast<uint32_t>(from.offset), static_cast<uint32_t>(static_cast<uint64_t>(from.offset) >> 32)};
  i.a = static_cast<uint32_t>(d.constant(d.operand(2)));
  if (i.a != 4 && i.a != 8 && i.a != 16) d.fail("copies 4, 8 or 16 bytes, not " + std::to_string(i.a));
  const size_t extra = d.operands() - 3 - (hint ? 1 : 0);
  if (extra > 1) d.fail("has too many operands");
  if (extra == 1 && d.is_predicate(d.operand(3))) {
    Mask flip = 0;
    i.r[2] = d.predicate_src(d.operand(3), flip);
    i.b = kIgnore | (flip ? kIgnoreFlip : 0);
  } else if (extra == 1) {
    i.r[1] = d.src(3, Type::B32);
    i.b = kSourceBytes;
  }
  i.run = run_copy;
}

Step run_commit(Warp& w, const Instruction&, Mask mask) {
  for_lanes(mask, [&](int l) { w.async.committed[l]++; });
  return Step::Next;
}

// a: groups that may stay in flight; ~0: none, uncommitted ones included.
Step run_wait(Warp& w, const Instruction& i, Mask mask) {
  std::vector<AsyncCopy> stay;
  for (const AsyncCopy& copy : w.async.copies) {
    const bool mine = mask >> copy.lane & 1;
    if (mine && (i.a == ~0u || copy.group + i.a < w.async.committed[copy.lane])) {
      land(w, copy, i);
    } else {
      stay.push_back(copy);
    }
  }
  w.async.copies.swap(stay);
  return Step::Next;
}

void decode_cp(Decoder& d) {
  Instruction& i = d.instruction();
  if (!d.take("async")) d.fail("unknown instruction");
  if (d.take("bulk")) return decode_bulk(d);
  if (d.take("commit_group")) {
    d.expect_operands(0, 0);
    i.run = run_commit;
  } else if (d.take("wait_group")) {
    d.expect_operands(1, 1);
    i.a = static_cast<uint32_t>(d.constant(d.operand(0)));
    i.run = run_wait;
  } else if (d.take("wait_all")) {
    d.expect_operands(0, 0);
    i.a = ~0u;
    i.run = run_wait;
  } else {
    decode_copy(d);
  }
}

}  // namespace

const Family& async_copy_family() {
  static const Family family = {{"cp", decode_cp}};
  return family;
}

}  // namespace fastres::emulator
