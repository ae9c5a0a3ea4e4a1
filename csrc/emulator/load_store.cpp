// Loads and stores. PTX ISA, "Data Movement and Conversion Instructions": ld, ldu, st, prefetch. Cache hints are taken
// and ignored.
#include <algorithm>
#include <array>
#include <cstring>

#include "emulator/addressing.h"
#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

// list: the register slots, each times two plus whether it is 64 bits wide. a: bytes of an element, b: kSigned or 0.
constexpr uint32_t kSigned = 1;
constexpr uint32_t kMaxBytes = 32;  // of one lane

Step run_load(Warp& w, const Instruction& i, Mask mask) {
  const uint32_t bytes = i.a, total = bytes * static_cast<uint32_t>(i.list.size());
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  for_lanes(mask, [&](int l) {
    const uint8_t* from = w.block.machine.memory.access({w, i, l, space_of(i), address[l], total, AccessKind::Read});
    for (const Slot packed : i.list) {
      uint64_t value = ~0ull;  // NaN where there was nothing to read
      if (from != nullptr) {
        value = 0;
        std::memcpy(&value, from, bytes);
        if (i.b & kSigned)
          value = static_cast<uint64_t>(static_cast<int64_t>(value << (64 - 8 * bytes)) >> (64 - 8 * bytes));
        from += bytes;
      }
      if (packed & 1) {
        w.lanes<uint64_t>(packed >> 1)[l] = value;
      } else {
        w.lanes<uint32_t>(packed >> 1)[l] = static_cast<uint32_t>(value);
      }
    }
  });
  return Step::Next;
}

// One store whose lanes write different values to overlapping bytes: which one stays is undefined.
void check_overlap(Warp& w, const Instruction& i, Mask mask, const uint64_t* address, const uint8_t* values,
                   uint32_t total) {
  std::array<int, 32> lanes;
  size_t count = 0;
  bool rising = true;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    rising &= count == 0 || address[lane] >= address[lanes[count - 1]] + total;
    lanes[count++] = lane;
  }
  if (rising || space_of(i) == Space::Local) return;
  std::sort(lanes.begin(), lanes.begin() + static_cast<std::ptrdiff_t>(count),
            [&](int a, int b) { return address[a] < address[b] || (address[a] == address[b] && a < b); });
  for (size_t n = 1; n < count; n++) {
    const int a = lanes[n - 1], b = lanes[n];
    if (address[b] >= address[a] + total || (address[b] & kWindowMask) == kLocalWindow) continue;
    if (address[a] == address[b] && std::memcmp(values + a * kMaxBytes, values + b * kMaxBytes, total) == 0) continue;
    Finding finding;
    finding.kind = "race";
    finding.message = "lanes " + std::to_string(a) + " and " + std::to_string(b) +
                      " of one store write different values to the same bytes";
    finding.expected = "one writer for a byte";
    finding.space = name_of(space_of(i));
    finding.address = address[b];
    finding.bytes = total;
    w.block.machine.fault(std::move(finding), w, i, b);
  }
}

Step run_store(Warp& w, const Instruction& i, Mask mask) {
  const uint32_t bytes = i.a, total = bytes * static_cast<uint32_t>(i.list.size());
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  uint8_t values[32 * kMaxBytes];
  for_lanes(mask, [&](int l) {
    uint8_t* value = values + l * kMaxBytes;
    for (const Slot packed : i.list) {
      const uint64_t element = packed & 1 ? w.lanes<uint64_t>(packed >> 1)[l] : w.lanes<uint32_t>(packed >> 1)[l];
      std::memcpy(value, &element, bytes);
      value += bytes;
    }
  });
  check_overlap(w, i, mask, address, values, total);
  for_lanes(mask, [&](int l) {
    const uint8_t* value = values + l * kMaxBytes;
    uint8_t* to = w.block.machine.memory.access(
        {w, i, l, space_of(i), address[l], total, AccessKind::Write, Proxy::Generic, value});
    if (to != nullptr) std::memcpy(to, value, total);
  });
  return Step::Next;
}

void take_hints(Decoder& d) {
  d.take_any({"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
  d.take_any({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"});
  d.take_any({"L2::evict_last", "L2::evict_normal", "L2::evict_first"});
  d.take_any({"L2::64B", "L2::128B", "L2::256B"});
  d.take("nc");
  d.take("mmio");
}

void decode_access(Decoder& d, bool load) {
  Instruction& i = d.instruction();
  take_ordering(d);
  take_space(d);
  take_hints(d);
  const bool hint = d.take("L2::cache_hint");
  const std::string vector = d.take_any({"v2", "v4", "v8"});
  const Type type = d.take_type();
  d.expect_operands(2 + (hint ? 1 : 0), 2 + (hint ? 1 : 0));
  take_address(d, d.operand(load ? 1 : 0));
  const size_t count = vector.empty() ? 1 : static_cast<size_t>(vector[1] - '0');
  const std::vector<const ptx::Operand*> registers = d.elements(load ? 0 : 1);
  if (registers.size() != count)
    d.fail("has " + std::to_string(registers.size()) + " registers, expected " + std::to_string(count));
  i.a = size_of(type);
  i.b = is_signed(type) ? kSigned : 0;
  if (type == Type::B128) {
    i.a = 8;
    for (const ptx::Operand* one : registers) {
      const Slot slot = d.dst(*one, type);
      i.list.push_back(slot << 1 | 1);
      i.list.push_back((slot + 64) << 1 | 1);
    }
  } else {
    for (const ptx::Operand* one : registers) {
      bool wide = false;
      const Slot slot = load ? d.any_dst(*one, wide) : d.any_src(*one, wide);
      if (size_of(type) == 8 && !wide) d.fail("register " + one->name + " is too narrow");
      i.list.push_back(slot << 1 | (wide ? 1 : 0));
    }
  }
  i.run = load ? run_load : run_store;
}

void decode_ld(Decoder& d) {
  decode_access(d, true);
}
void decode_st(Decoder& d) {
  decode_access(d, false);
}

Step run_nothing(Warp&, const Instruction&, Mask) {
  return Step::Next;
}
void decode_prefetch(Decoder& d) {
  while (!d.take_word().empty()) {
  }
  d.instruction().run = run_nothing;
}

}  // namespace

const Family& memory_family() {
  static const Family family = {
      {"ld", decode_ld},
      {"ldu", decode_ld},
      {"st", decode_st},
      {"prefetch", decode_prefetch},
      {"prefetchu", decode_prefetch},
      {"discard", decode_prefetch},
      {"applypriority", decode_prefetch},
      {"createpolicy", decode_prefetch},
  };
  return family;
}

}  // namespace fastres::emulator
