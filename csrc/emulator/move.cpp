// Data movement between registers, and addresses between spaces. PTX ISA, "Data Movement and Conversion Instructions":
// mov, prmt, cvta, isspacep.
#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

template <class L>
Step run_mov(Warp& w, const Instruction& i, Mask mask) {
  L* d = w.lanes<L>(i.r[0]);
  const L* a = w.lanes<L>(i.r[1]);
  for_lanes(mask, [&](int l) { d[l] = a[l]; });
  return Step::Next;
}

Step run_mov_predicate(Warp& w, const Instruction& i, Mask mask) {
  const Mask a = w.predicate(i.r[1]) ^ i.a;
  Mask& d = w.predicate(i.r[0]);
  d = (d & ~mask) | (a & mask);
  return Step::Next;
}

// %clock and its like: the count of warp instructions so far stands for time.
Step run_mov_clock(Warp& w, const Instruction& i, Mask mask) {
  const uint64_t now = w.block.machine.clock;
  if (i.a) {
    for_lanes(mask, [&](int l) { w.lanes<uint64_t>(i.r[0])[l] = now; });
  } else {
    for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = static_cast<uint32_t>(now); });
  }
  return Step::Next;
}

// list: the parts, lowest first; a: bits of a part, b: whether the whole has 64 bits.
Step run_pack(Warp& w, const Instruction& i, Mask mask) {
  const uint64_t keep = (1ull << i.a) - 1;
  for_lanes(mask, [&](int l) {
    uint64_t whole = 0;
    for (size_t part = 0; part < i.list.size(); part++) {
      whole |= (w.lanes<uint32_t>(i.list[part])[l] & keep) << part * i.a;
    }
    if (i.b) {
      w.lanes<uint64_t>(i.r[0])[l] = whole;
    } else {
      w.lanes<uint32_t>(i.r[0])[l] = static_cast<uint32_t>(whole);
    }
  });
  return Step::Next;
}

Step run_unpack(Warp& w, const Instruction& i, Mask mask) {
  const uint64_t keep = (1ull << i.a) - 1;
  for_lanes(mask, [&](int l) {
    const uint64_t whole = i.b ? w.lanes<uint64_t>(i.r[0])[l] : w.lanes<uint32_t>(i.r[0])[l];
    for (size_t part = 0; part < i.list.size(); part++) {
      w.lanes<uint32_t>(i.list[part])[l] = static_cast<uint32_t>(whole >> part * i.a & keep);
    }
  });
  return Step::Next;
}

// A 128-bit register is two 64-bit slots, low half first: r[0] and r[1] take r[2] and r[3].
Step run_pair(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int l) {
    const uint64_t low = w.lanes<uint64_t>(i.r[2])[l], high = w.lanes<uint64_t>(i.r[3])[l];
    w.lanes<uint64_t>(i.r[0])[l] = low;
    w.lanes<uint64_t>(i.r[1])[l] = high;
  });
  return Step::Next;
}

void move_128(Decoder& d) {
  Instruction& i = d.instruction();
  const auto halves = [&](size_t n, bool source, Slot& low, Slot& high) {
    if (d.operand(n).kind == ptx::Operand::Kind::Vector) {
      const std::vector<Slot> slots = source ? d.src_list(n, Type::B64) : d.dst_list(n, Type::B64);
      if (slots.size() != 2) d.fail("a 128-bit value has two 64-bit parts");
      low = slots[0];
      high = slots[1];
    } else {
      low = d.dst(n, Type::B128);
      high = low + 64;
    }
  };
  halves(0, false, i.r[0], i.r[1]);
  halves(1, true, i.r[2], i.r[3]);
  i.run = run_pair;
}

void decode_mov(Decoder& d) {
  const Type type = d.take_type();
  d.expect_operands(2, 2);
  Instruction& i = d.instruction();
  const ptx::Operand &to = d.operand(0), &from = d.operand(1);
  const bool wide = is_wide(type);
  if (type == Type::Pred) {
    i.r[0] = d.predicate_dst(to);
    i.r[1] = d.predicate_src(from, i.a);
    i.run = run_mov_predicate;
    return;
  }
  if (type == Type::B128) return move_128(d);
  const bool pack = from.kind == ptx::Operand::Kind::Vector;
  if (pack || to.kind == ptx::Operand::Kind::Vector) {
    const size_t parts = (pack ? from : to).parts.size();
    if (parts != 2 && parts != 4) d.fail("packs or unpacks 2 or 4 parts");
    i.a = 8 * size_of(type) / static_cast<uint32_t>(parts);
    i.b = wide;
    const Type part = i.a == 32 ? Type::B32 : i.a == 16 ? Type::B16 : Type::B8;
    i.list = pack ? d.src_list(1, part) : d.dst_list(0, part);
    i.r[0] = pack ? d.dst(0, type) : d.src(1, type);
    i.run = pack ? run_pack : run_unpack;
    return;
  }
  i.r[0] = d.dst(0, type);
  if (from.name.rfind("%clock", 0) == 0 || from.name.rfind("%globaltimer", 0) == 0) {
    i.a = wide;
    i.run = run_mov_clock;
    return;
  }
  i.r[1] = d.src(1, type);
  i.run = wide ? run_mov<uint64_t> : run_mov<uint32_t>;
}

enum class Permute : uint32_t { Index, F4E, B4E, Rc8, Ecl, Ecr, Rc16 };

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector, Permute mode) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  const uint32_t s = selector & 3;
  uint32_t result = 0;
  for (uint32_t n = 0; n < 4; n++) {
    uint32_t source = 0;
    bool sign = false;
    switch (mode) {
      case Permute::Index:
        source = selector >> 4 * n & 7;
        sign = selector >> (4 * n + 3) & 1;
        break;
      case Permute::F4E:
        source = s + n;
        break;
      case Permute::B4E:
        source = (s - n) & 7;
        break;
      case Permute::Rc8:
        source = s;
        break;
      case Permute::Ecl:
        source = std::max(s, n);
        break;
      case Permute::Ecr:
        source = std::min(s, n);
        break;
      case Permute::Rc16:
        source = 2 * (s & 1) + (n & 1);
        break;
    }
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * source) & 0xff;
    if (sign) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * n;
  }
  return result;
}

Step run_prmt(Warp& w, const Instruction& i, Mask mask) {
  uint32_t* d = w.lanes<uint32_t>(i.r[0]);
  const uint32_t *a = w.lanes<uint32_t>(i.r[1]), *b = w.lanes<uint32_t>(i.r[2]), *c = w.lanes<uint32_t>(i.r[3]);
  for_lanes(mask, [&](int l) { d[l] = permute(a[l], b[l], c[l], static_cast<Permute>(i.a)); });
  return Step::Next;
}

void decode_prmt(Decoder& d) {
  d.take("b32");
  const char* const names[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
  const std::string mode = d.take_any({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  operands(d, Type::B32, {Type::B32, Type::B32, Type::B32});
  d.instruction().a = static_cast<uint32_t>(std::find(names, names + 7, mode) - names);
  d.instruction().run = run_prmt;
}

// imm: bits to set when leaving a window for the generic space, or a mask that keeps the offset when entering one.
Step run_to_generic(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int l) { w.lanes<uint64_t>(i.r[0])[l] = w.lanes<uint64_t>(i.r[1])[l] | i.imm; });
  return Step::Next;
}
Step run_from_generic(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int l) { w.lanes<uint64_t>(i.r[0])[l] = w.lanes<uint64_t>(i.r[1])[l] & i.imm; });
  return Step::Next;
}

void decode_cvta(Decoder& d) {
  const bool to = d.take("to");
  const std::string space =
      d.take_any({"global", "const", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry"});
  const Type type = d.take_type();
  if (type != Type::U64) d.fail("is for .u64");
  operands(d, type, {type});
  Instruction& i = d.instruction();
  const uint64_t window = space.rfind("shared", 0) == 0  ? kSharedWindow
                          : space == "local"             ? kLocalWindow
                          : space.rfind("param", 0) == 0 ? kParamWindow
                                                         : 0;
  i.imm = to ? (window ? ~kWindowMask : ~0ull) : window;
  i.run = to ? run_from_generic : run_to_generic;
}

Step run_isspacep(Warp& w, const Instruction& i, Mask mask) {
  Mask result = 0;
  const uint64_t* a = w.lanes<uint64_t>(i.r[1]);
  for_lanes(mask, [&](int l) {
    const uint64_t window = a[l] & kWindowMask;
    const bool other = window == kSharedWindow || window == kLocalWindow || window == kParamWindow;
    result |= Mask{i.imm == 0 ? !other : window == i.imm} << l;
  });
  Mask& p = w.predicate(i.r[0]);
  p = (p & ~mask) | result;
  return Step::Next;
}

void decode_isspacep(Decoder& d) {
  const std::string space = d.take_word();
  d.expect_operands(2, 2);
  Instruction& i = d.instruction();
  if (space == "shared" || space == "shared::cta" || space == "shared::cluster") {
    i.imm = kSharedWindow;
  } else if (space == "local") {
    i.imm = kLocalWindow;
  } else if (space == "param" || space == "param::entry") {
    i.imm = kParamWindow;
  } else if (space != "global") {
    d.fail("space '" + space + "' is not supported");
  }
  i.r[0] = d.predicate_dst(d.operand(0));
  i.r[1] = d.src(1, Type::B64);
  i.run = run_isspacep;
}

}  // namespace

const Family& move_family() {
  static const Family family = {
      {"mov", decode_mov}, {"prmt", decode_prmt}, {"cvta", decode_cvta}, {"isspacep", decode_isspacep}};
  return family;
}

}  // namespace fastres::emulator
