// Bulk asynchronous copies. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy", bulk and tensor.
//
// Kernel: at issue the destination's or source's bytes are checked against earlier accesses and, when they are written,
// poisoned; the copy itself happens later, in steps, and then completes bytes on its mbarrier or its bulk group.
#include <algorithm>
#include <cstring>

#include "emulator/addressing.h"
#include "emulator/async_state.h"
#include "emulator/lanes.h"
#include "emulator/numeric.h"
#include "emulator/tensor_map.h"

namespace fastres::emulator {
namespace {

constexpr uint32_t kChunk = 16, kTensorAlign = 128;

enum class Reduction : uint8_t { None, Add, Min, Max };

// An address operand other than the instruction's first.
struct AddressOperand {
  Slot base = 0;
  bool narrow = false;
  int64_t offset = 0;

  uint64_t at(Warp& w, int lane) const {
    return narrow ? static_cast<uint32_t>(w.lanes<uint32_t>(base)[lane] + offset)
                  : w.lanes<uint64_t>(base)[lane] + static_cast<uint64_t>(offset);
  }
};

struct Bulk {
  bool tensor = false, load = false, prefetch = false, from_shared = false, multicast = false;
  Reduction reduction = Reduction::None;
  Type type = Type::B8;                    // of a non-tensor reduction
  AddressOperand shared, global, barrier;  // global: the tensor map of a tensor copy; from_shared: the source
  std::vector<Slot> coordinates, offsets;
  Slot size = 0, mask = 0;
};

// What one copy moves: rows as TensorMap walks them; a plain copy is one row.
struct Rows {
  TensorMap map;
  std::vector<BoxRow> rows;
  uint32_t bytes = 0;   // that complete on the mbarrier
  uint32_t extent = 0;  // of shared memory, from its start
};

// The address of byte `at` of a row in shared memory, whose copy starts at `base`.
uint32_t shared_at(const Rows& rows, uint32_t base, const BoxRow& row, uint32_t at) {
  return swizzled(rows.map.swizzle, base + row.shared_offset + at);
}

// Calls body(first byte, bytes) for naturally aligned pieces of at most 16 bytes of global memory at `address`.
template <class Body>
void for_pieces(uint64_t address, uint32_t first, uint32_t end, Body&& body) {
  while (first < end) {
    uint32_t bytes = kChunk;
    while ((address + first) % bytes != 0 || first + bytes > end) bytes /= 2;
    body(first, bytes);
    first += bytes;
  }
}

// --- global to shared memory ----------------------------------------------------------------------------------------

struct Target {
  SharedPlace place;
  SharedPlace barrier_place;
  BarrierCell* barrier;
  uint32_t phase;
};

class Load : public Transfer {
 public:
  Load(Warp& w, const Instruction& i, int at, Rows rows, std::vector<Target> targets)
      : Transfer(w, i, at), rows_(std::move(rows)), targets_(std::move(targets)) {}

  // Two steps: half of the rows each, in an order that the copy's address decides.
  void advance(Machine& machine) override {
    const size_t half = rows_.rows.size() / 2;
    const bool tail = (done_ == 0) == (targets_.front().place.offset / kTensorAlign % 2 == 0);
    uint32_t moved = 0;
    for (size_t r = tail ? half : 0; r < (tail ? rows_.rows.size() : half); ++r) {
      copy(machine, rows_.rows[r]);
      moved += rows_.rows[r].bytes;
    }
    source_read = finished = ++done_ == 2;
    if (moved == 0) return;
    for (const Target& target : targets_) {
      const std::string error = target.barrier->barrier.complete_bytes(moved, target.phase, Knowledge());
      if (error.empty()) continue;
      report(warp, instruction, lane, "mbarrier", "mbarrier at " + hex(target.barrier_place.offset) + ": " + error,
             "expect_tx of the bytes that the phase's copies write", target.barrier_place.offset);
    }
  }

  std::string describe() const override { return "a bulk copy into shared memory"; }

 private:
  Rows rows_;
  std::vector<Target> targets_;
  int done_ = 0;

  void copy(Machine& machine, const BoxRow& row) {
    std::vector<uint8_t> data(row.bytes);
    fill(data);
    for_pieces(row.global, row.first, row.end, [&](uint32_t at, uint32_t bytes) {
      const uint8_t* from = machine.memory.access(
          {warp, instruction, lane, Space::Global, row.global + at, bytes, AccessKind::Read, Proxy::Async});
      if (from != nullptr) std::memcpy(data.data() + at, from, bytes);
    });
    for (const Target& target : targets_) {
      for (uint32_t at = 0; at < row.bytes; at += kChunk) {
        const SharedPlace place{target.place.block, shared_at(rows_, target.place.offset, row, at)};
        uint8_t* to = machine.memory.access(
            {warp, instruction, lane, Space::Shared, place.address(), kChunk, AccessKind::Write, Proxy::Async});
        if (to != nullptr) std::memcpy(to, data.data() + at, kChunk);
      }
    }
  }

  void fill(std::vector<uint8_t>& data) const {
    const uint64_t element = fill_element(rows_.map);
    const uint32_t bytes = bytes_of(rows_.map.type);
    for (uint32_t at = 0; at < data.size(); at += bytes) std::memcpy(data.data() + at, &element, bytes);
  }
};

// Checks the destination against earlier accesses, and poisons it.
void occupy(Warp& w, const Instruction& i, int lane, const Rows& rows, const Target& target) {
  AsyncState& own = *w.block.async;
  Block& owner = *target.place.block;
  const SharedAccess access{target.barrier->barrier.copy_epoch(), Proxy::Async, false};
  Conflict first;
  for (const BoxRow& row : rows.rows) {
    for (uint32_t at = 0; at < row.bytes; at += kChunk) {
      const uint32_t offset = shared_at(rows, target.place.offset, row, at);
      const Conflict conflict = owner.async->order.write(offset, kChunk, access, own.of(w).timeline.known());
      if (!first) first = conflict;
      std::memset(owner.shared.data.data() + offset, 0xff, kChunk);
      uint8_t* flags = &owner.shared.shadow.flags(offset);
      for (uint32_t byte = 0; byte < kChunk; ++byte) flags[byte] &= static_cast<uint8_t>(~Shadow::kWritten);
    }
  }
  if (first) report(w, i, lane, first, "a bulk copy's write");
}

void start_load(Warp& w, const Instruction& i, int lane, const Bulk& bulk, Rows rows) {
  const SharedPlace to = shared_place(w, i, lane, Space::Shared, bulk.shared.at(w, lane), rows.extent,
                                      bulk.tensor ? kTensorAlign : kChunk);
  const SharedPlace barrier = shared_place(w, i, lane, Space::Shared, bulk.barrier.at(w, lane), 8, 8);
  if (to.block == nullptr || barrier.block == nullptr) return;
  std::vector<Target> targets;
  const uint32_t mask = bulk.multicast ? w.lanes<uint32_t>(bulk.mask)[lane] & 0xffff : 0;
  if (bulk.multicast && (mask == 0 || mask >> w.block.cluster.size() != 0)) {
    report(w, i, lane, "operand", "multicast to blocks of mask " + hex(mask),
           "ranks below " + std::to_string(w.block.cluster.size()) + ", at least one");
    return;
  }
  const auto add = [&](const SharedPlace& place, const SharedPlace& at) {
    BarrierCell* cell = barrier_at(w, i, lane, at, true);
    if (cell != nullptr) targets.push_back({place, at, cell, cell->barrier.phase()});
  };
  if (!bulk.multicast) {
    add(to, barrier);
  } else {
    for (uint32_t rank = 0; rank < w.block.cluster.size(); ++rank) {
      if (mask >> rank & 1) add({w.block.cluster[rank], to.offset}, {w.block.cluster[rank], barrier.offset});
    }
  }
  if (targets.empty()) return;
  for (const Target& target : targets) {
    occupy(w, i, lane, rows, target);
    target.barrier->copies = target.phase + 1;
  }
  w.block.async->start(std::make_shared<Load>(w, i, lane, std::move(rows), std::move(targets)));
}

// --- shared to global memory ----------------------------------------------------------------------------------------

template <class F>
void reduce_float(Reduction reduction, uint8_t* to, const uint8_t* from) {
  uint16_t a, b;
  std::memcpy(&a, to, 2);
  std::memcpy(&b, from, 2);
  const bool less = decode<F>(b) < decode<F>(a);
  const uint16_t result = reduction == Reduction::Add             ? static_cast<uint16_t>(add<F>(a, b))
                          : less == (reduction == Reduction::Min) ? b
                                                                  : a;
  std::memcpy(to, &result, 2);
}

template <class T>
void reduce_plain(Reduction reduction, uint8_t* to, const uint8_t* from) {
  T a, b;
  std::memcpy(&a, to, sizeof a);
  std::memcpy(&b, from, sizeof b);
  a = reduction == Reduction::Add   ? static_cast<T>(a + b)
      : reduction == Reduction::Min ? std::min(a, b)
                                    : std::max(a, b);
  std::memcpy(to, &a, sizeof a);
}

void reduce(TensorType type, Reduction reduction, uint8_t* to, const uint8_t* from) {
  switch (type) {
    case TensorType::kF16:
      return reduce_float<F16>(reduction, to, from);
    case TensorType::kBF16:
      return reduce_float<BF16>(reduction, to, from);
    case TensorType::kF32:
      return reduce_plain<float>(reduction, to, from);
    case TensorType::kF64:
      return reduce_plain<double>(reduction, to, from);
    case TensorType::kS32:
      return reduce_plain<int32_t>(reduction, to, from);
    case TensorType::kS64:
      return reduce_plain<int64_t>(reduction, to, from);
    case TensorType::kU64:
      return reduce_plain<uint64_t>(reduction, to, from);
    default:
      return reduce_plain<uint32_t>(reduction, to, from);
  }
}

class Store : public Transfer {
 public:
  Store(Warp& w, const Instruction& i, int at, Rows rows, SharedPlace from, Reduction reduction)
      : Transfer(w, i, at), rows_(std::move(rows)), from_(from), reduction_(reduction) {}

  // Two steps: read everything, write everything.
  void advance(Machine& machine) override {
    if (!source_read) {
      for (const BoxRow& row : rows_.rows) read(machine, row);
      source_read = true;
      return;
    }
    size_t at = 0;
    for (const BoxRow& row : rows_.rows) {
      write(machine, row, data_.data() + at);
      at += row.bytes;
    }
    finished = true;
  }

  std::string describe() const override { return "a bulk copy out of shared memory"; }

 private:
  Rows rows_;
  SharedPlace from_;
  Reduction reduction_;
  std::vector<uint8_t> data_;

  void read(Machine& machine, const BoxRow& row) {
    for (uint32_t at = 0; at < row.bytes; at += kChunk) {
      const SharedPlace place{from_.block, shared_at(rows_, from_.offset, row, at)};
      const uint8_t* from = nullptr;
      if (at < row.end && at + kChunk > row.first) {  // what is out of bounds needn't have been written
        from = machine.memory.access(
            {warp, instruction, lane, Space::Shared, place.address(), kChunk, AccessKind::Read, Proxy::Async});
      }
      data_.resize(data_.size() + kChunk, 0xff);
      if (from != nullptr) std::memcpy(data_.data() + data_.size() - kChunk, from, kChunk);
    }
  }

  void write(Machine& machine, const BoxRow& row, const uint8_t* data) {
    const AccessKind kind = reduction_ == Reduction::None ? AccessKind::Write : AccessKind::ReadWrite;
    for_pieces(row.global, row.first, row.end, [&](uint32_t at, uint32_t bytes) {
      uint8_t* to =
          machine.memory.access({warp, instruction, lane, Space::Global, row.global + at, bytes, kind, Proxy::Async});
      if (to == nullptr) return;
      if (reduction_ == Reduction::None) {
        std::memcpy(to, data + at, bytes);
        return;
      }
      const uint32_t element = bytes_of(rows_.map.type);
      for (uint32_t e = 0; e < bytes; e += element) reduce(rows_.map.type, reduction_, to + e, data + at + e);
    });
  }
};

void start_store(Warp& w, const Instruction& i, int lane, const Bulk& bulk, Rows rows) {
  const SharedPlace from = shared_place(w, i, lane, Space::Shared, bulk.shared.at(w, lane), rows.extent,
                                        bulk.tensor ? kTensorAlign : kChunk);
  if (from.block == nullptr) return;
  AsyncState& async = *w.block.async;
  BulkThread& thread = async.bulk(w, lane);
  const SharedAccess access{{thread.agent, static_cast<uint32_t>(thread.committed.size() + 1)}, Proxy::Async, false};
  Conflict first;
  for (const BoxRow& row : rows.rows) {
    for (uint32_t at = 0; at < row.bytes; at += kChunk) {
      const Conflict conflict =
          async.order.read(shared_at(rows, from.offset, row, at), kChunk, access, async.of(w).timeline.known());
      if (!first) first = conflict;
    }
  }
  if (first) report(w, i, lane, first, "a bulk copy's read");
  auto store = std::make_shared<Store>(w, i, lane, std::move(rows), from, bulk.reduction);
  thread.open.push_back(store);
  async.start(std::move(store));
}

// --- issue ----------------------------------------------------------------------------------------------------------

Rows plain_rows(uint64_t global, uint32_t bytes, TensorType type) {
  Rows rows;
  rows.map.type = type;
  rows.rows = {{global, 0, bytes, 0, bytes}};
  rows.bytes = rows.extent = bytes;
  return rows;
}

// The tensor map that the instruction names, and the rows it walks; no rows after a finding.
Rows tensor_rows(Warp& w, const Instruction& i, int lane, const Bulk& bulk) {
  Rows rows;
  const uint64_t at = bulk.global.at(w, lane);
  uint8_t blob[128];
  if (at % 64 != 0) {
    report(w, i, lane, "misaligned", "tensor map at " + hex(at), "a multiple of 64", at);
    return rows;
  }
  for (uint32_t part = 0; part < sizeof blob; part += kChunk) {
    const uint8_t* from =
        w.block.machine.memory.access({w, i, lane, Space::Generic, at + part, kChunk, AccessKind::Read, Proxy::Async});
    if (from == nullptr) return rows;
    std::memcpy(blob + part, from, kChunk);
  }
  std::memcpy(&rows.map, blob, sizeof rows.map);
  const auto fail = [&](const std::string& message, const std::string& expected) {
    report(w, i, lane, "tensor-map", message, expected, at);
    return Rows();
  };
  if (rows.map.magic != TensorMap::kMagic) return fail("there is no tensor map at " + hex(at), "a TensorMap argument");
  if (bulk.coordinates.size() != rows.map.rank) {
    return fail("the tensor map has rank " + std::to_string(rows.map.rank),
                "the instruction's " + std::to_string(bulk.coordinates.size()));
  }
  if (bulk.load && rows.map.im2col != !bulk.offsets.empty()) {
    return fail(rows.map.im2col ? "the tensor map is for im2col" : "the tensor map is for tiles",
                "the mode of the instruction");
  }
  std::array<int32_t, kMaxRank> coordinates{};
  std::array<uint16_t, 3> offsets{};
  for (size_t n = 0; n < bulk.coordinates.size(); ++n) {
    coordinates[n] = static_cast<int32_t>(w.lanes<uint32_t>(bulk.coordinates[n])[lane]);
  }
  for (size_t n = 0; n < bulk.offsets.size(); ++n) {
    offsets[n] = static_cast<uint16_t>(w.lanes<uint32_t>(bulk.offsets[n])[lane]);
    if (offsets[n] > 255) return fail("im2col offset " + std::to_string(offsets[n]), "0 to 255");
  }
  for_each_row(rows.map, coordinates, offsets, [&](const BoxRow& row) { rows.rows.push_back(row); });
  rows.bytes = box_bytes(rows.map);
  rows.extent = static_cast<uint32_t>(rows.rows.size()) * row_pitch(rows.map);
  return rows;
}

TensorType tensor_type(Type type) {
  switch (type) {
    case Type::F16:
      return TensorType::kF16;
    case Type::BF16:
      return TensorType::kBF16;
    case Type::F64:
      return TensorType::kF64;
    case Type::F32:
      return TensorType::kF32;
    case Type::S32:
      return TensorType::kS32;
    case Type::U64:
      return TensorType::kU64;
    case Type::S64:
      return TensorType::kS64;
    case Type::U32:
      return TensorType::kU32;
    default:
      return TensorType::kU8;
  }
}

Step run_bulk(Warp& w, const Instruction& i, Mask mask) {
  const Bulk& bulk = *static_cast<const Bulk*>(i.extra.get());
  for_lanes(mask, [&](int lane) {
    if (bulk.prefetch) return;
    if (bulk.tensor) {
      Rows rows = tensor_rows(w, i, lane, bulk);
      if (rows.rows.empty()) return;
      return bulk.load ? start_load(w, i, lane, bulk, std::move(rows)) : start_store(w, i, lane, bulk, std::move(rows));
    }
    const uint32_t bytes = w.lanes<uint32_t>(bulk.size)[lane];
    const uint64_t global = bulk.global.at(w, lane);
    if (bytes % kChunk != 0 || (!bulk.from_shared && global % kChunk != 0)) {
      report(w, i, lane, "misaligned", "bulk copy of " + std::to_string(bytes) + " bytes at " + hex(global),
             "multiples of 16");
      return;
    }
    if (bytes == 0) return;
    Rows rows = plain_rows(global, bytes, tensor_type(bulk.type));
    bulk.load ? start_load(w, i, lane, bulk, std::move(rows)) : start_store(w, i, lane, bulk, std::move(rows));
  });
  return Step::Next;
}

Step run_commit(Warp& w, const Instruction&, Mask mask) {
  for_lanes(mask, [&](int lane) {
    BulkThread& thread = w.block.async->bulk(w, lane);
    thread.committed.push_back(std::move(thread.open));
    thread.open.clear();
  });
  return Step::Next;
}

// imm: groups that may be unfinished. a: only the reading of the source is waited for.
Step run_wait(Warp& w, const Instruction& i, Mask mask) {
  AsyncState& async = *w.block.async;
  bool ready = true;
  const auto groups = [&](int lane) {
    const size_t committed = async.bulk(w, lane).committed.size();
    return committed > i.imm ? committed - i.imm : 0;
  };
  for_lanes(mask, [&](int lane) {
    const BulkThread& thread = async.bulk(w, lane);
    for (size_t g = thread.waited; g < groups(lane); ++g) {
      for (const auto& transfer : thread.committed[g]) ready &= i.a ? transfer->source_read : transfer->finished;
    }
  });
  if (!ready) return Step::Wait;
  for_lanes(mask, [&](int lane) {
    BulkThread& thread = async.bulk(w, lane);
    thread.waited = std::max(thread.waited, groups(lane));
    async.of(w).timeline.learn({thread.agent, static_cast<uint32_t>(groups(lane))});
  });
  return Step::Next;
}

// --- decoding -------------------------------------------------------------------------------------------------------

AddressOperand address_of(Decoder& d, const ptx::Operand& operand) {
  const Decoder::Address address = d.address(operand);
  if (address.param) return {d.constant_slot(kParamWindow + static_cast<uint64_t>(address.offset), true), false, 0};
  return {address.base, address.narrow, address.offset};
}

void tensor_operand(Decoder& d, Bulk& bulk, size_t operand, int rank) {
  const ptx::Operand& whole = d.operand(operand);
  if (whole.kind != ptx::Operand::Kind::Address || whole.parts.size() != 2) d.fail("expected [map, {coordinates}]");
  bulk.global = address_of(d, whole);
  const ptx::Operand& list = whole.parts[1];
  if (list.kind == ptx::Operand::Kind::Vector) {
    for (const ptx::Operand& part : list.parts) bulk.coordinates.push_back(d.src(part, Type::S32));
  } else {
    bulk.coordinates.push_back(d.src(list, Type::S32));
  }
  if (bulk.coordinates.size() != static_cast<size_t>(rank)) {
    d.fail("has " + std::to_string(bulk.coordinates.size()) + " coordinates, expected " + std::to_string(rank));
  }
}

void take_reduction(Decoder& d, Bulk& bulk) {
  const std::string op = d.take_any({"add", "min", "max", "inc", "dec", "and", "or", "xor"});
  bulk.reduction = op == "add"   ? Reduction::Add
                   : op == "min" ? Reduction::Min
                   : op == "max" ? Reduction::Max
                                 : (d.fail("reduction '" + op + "' is not supported"), Reduction::None);
}

void decode_copy(Decoder& d, bool reduces) {
  auto bulk = std::make_shared<Bulk>();
  bulk->prefetch = d.take("prefetch");
  bulk->tensor = d.take("tensor");
  int rank = 0;
  bool im2col = false;
  if (bulk->tensor) {
    const std::string dimensions = d.take_any({"1d", "2d", "3d", "4d", "5d"});
    if (dimensions.empty()) d.fail("the number of dimensions is missing");
    rank = dimensions[0] - '0';
    im2col = d.take("im2col") || d.take("im2col_no_offs");
    d.take("tile");
  }
  d.take("L2");
  if (reduces) take_reduction(d, *bulk);
  bulk->load = d.take("mbarrier::complete_tx::bytes");
  d.take("bulk_group");
  const bool to_shared = d.take("shared::cluster"), own_shared = d.take("shared::cta");
  const bool global = d.take("global");
  bulk->from_shared = bulk->load && to_shared && own_shared && !global;
  if (bulk->from_shared || (reduces && to_shared)) d.fail("copies between shared memories are not supported");
  bulk->multicast = d.take("multicast::cluster");
  d.take("L2::cache_hint");
  d.take("noftz");
  if (reduces && !bulk->tensor) bulk->type = d.take_type();
  Instruction& i = d.instruction();
  if (!bulk->prefetch) {
    const size_t at_shared = bulk->load ? 0 : 1, at_global = bulk->load ? 1 : 0;
    bulk->shared = address_of(d, d.operand(at_shared));
    if (bulk->tensor) {
      tensor_operand(d, *bulk, at_global, rank);
    } else {
      bulk->global = address_of(d, d.operand(at_global));
      bulk->size = d.src(2, Type::U32);
    }
    size_t next = bulk->tensor ? 2 : 3;
    if (bulk->load) bulk->barrier = address_of(d, d.operand(next++));
    if (bulk->load && im2col) {
      for (const ptx::Operand* part : d.elements(next++)) bulk->offsets.push_back(d.src(*part, Type::U16));
      if (bulk->offsets.size() != static_cast<size_t>(rank - 2)) d.fail("has the wrong number of im2col offsets");
    }
    if (bulk->multicast) bulk->mask = d.src(next++, Type::U16);
  }
  i.extra = std::move(bulk);
  i.run = run_bulk;
}

}  // namespace

void decode_bulk(Decoder& d) {
  Instruction& i = d.instruction();
  if (d.take("commit_group")) {
    d.expect_operands(0, 0);
    i.run = run_commit;
  } else if (d.take("wait_group")) {
    d.expect_operands(1, 1);
    i.imm = d.constant(d.operand(0));
    i.a = d.take("read");
    i.run = run_wait;
  } else {
    decode_copy(d, d.take("reduce"));
  }
}

std::string describe_bulk_wait(Warp&, const Instruction& i, Mask) {
  return i.run == run_wait ? " for its bulk copies" : "";
}

}  // namespace fastres::emulator
