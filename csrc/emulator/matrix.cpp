// A warp's matrix instructions. PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions": ldmatrix, stmatrix, mma,
// movmatrix.
#include "emulator/addressing.h"
#include "emulator/lanes.h"
#include "emulator/mma_fragments.h"

namespace fastres::emulator {

namespace {

// a: number of matrices, b: transposed. list: one register a matrix.
template <bool kLoad>
Step run_matrix_copy(Warp& w, const Instruction& i, Mask mask) {
  if (mask != kFullMask) return Step::Wait;
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  for (uint32_t matrix = 0; matrix < i.a; matrix++) {
    uint8_t* rows[8];
    uint8_t nothing[16];
    std::fill_n(nothing, 16, 0xff);
    for (uint32_t row = 0; row < 8; row++) {
      const int lane = static_cast<int>(8 * matrix + row);
      rows[row] = w.block.machine.memory.access(
          {w, i, lane, space_of(i), address[lane], 16, kLoad ? AccessKind::Read : AccessKind::Write});
      if (rows[row] == nullptr) rows[row] = nothing;
    }
    uint32_t* lanes = w.lanes<uint32_t>(i.list[matrix]);
    if (kLoad) {
      ldmatrix_m8n8(rows, i.b, lanes);
    } else {
      stmatrix_m8n8(lanes, i.b, rows);
    }
  }
  return Step::Next;
}

void decode_matrix_copy(Decoder& d, bool load) {
  Instruction& i = d.instruction();
  d.take("sync");
  d.take("aligned");
  if (!d.take("m8n8")) d.fail("only .m8n8 is supported");
  const std::string count = d.take_any({"x1", "x2", "x4"});
  i.a = count == "x4" ? 4 : count == "x2" ? 2 : 1;
  i.b = d.take("trans");
  take_space(d);
  if (d.take_type() != Type::B16) d.fail("only .b16 is supported");
  d.expect_operands(2, 2);
  take_address(d, d.operand(load ? 1 : 0));
  i.list = load ? d.dst_list(0, Type::B32) : d.src_list(1, Type::B32);
  if (i.list.size() != i.a)
    d.fail("has " + std::to_string(i.list.size()) + " registers, expected " + std::to_string(i.a));
  i.run = load ? run_matrix_copy<true> : run_matrix_copy<false>;
}

void decode_ldmatrix(Decoder& d) {
  decode_matrix_copy(d, true);
}
void decode_stmatrix(Decoder& d) {
  decode_matrix_copy(d, false);
}

struct Shape {
  Element a, b;
  Accumulator accumulator;
  int k;
  bool satfinite;
  size_t a_registers, b_registers, c_registers;
};

Step run_mma(Warp& w, const Instruction& i, Mask mask) {
  if (mask != kFullMask) return Step::Wait;
  const Shape& shape = *static_cast<const Shape*>(i.extra.get());
  uint32_t* d[4];
  const uint32_t *a[4], *b[2], *c[4];
  const Slot* slot = i.list.data();
  for (size_t n = 0; n < shape.c_registers; n++) d[n] = w.lanes<uint32_t>(*slot++);
  for (size_t n = 0; n < shape.a_registers; n++) a[n] = w.lanes<uint32_t>(*slot++);
  for (size_t n = 0; n < shape.b_registers; n++) b[n] = w.lanes<uint32_t>(*slot++);
  for (size_t n = 0; n < shape.c_registers; n++) c[n] = w.lanes<uint32_t>(*slot++);
  mma_m16n8(shape.a, shape.b, shape.accumulator, shape.k, a, b, c, d, shape.satfinite);
  return Step::Next;
}

Element element(Decoder& d, const std::string& name) {
  if (name == "f16") return Element::kF16;
  if (name == "bf16") return Element::kBF16;
  if (name == "tf32") return Element::kTF32;
  if (name == "e4m3") return Element::kE4M3;
  if (name == "e5m2") return Element::kE5M2;
  if (name == "s8") return Element::kS8;
  if (name == "u8") return Element::kU8;
  d.fail("elements of type '" + name + "' are not supported");
}

void decode_mma(Decoder& d) {
  Instruction& i = d.instruction();
  d.take("sync");
  d.take("aligned");
  const std::string shape_name = d.take_any({"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32", "m8n8k4", "m8n8k16",
                                             "m8n8k32", "m16n8k64", "m16n8k128", "m16n8k256"});
  if (shape_name.rfind("m16n8k", 0) != 0) d.fail("shape '" + shape_name + "' is not supported");
  if (!d.take("row") || !d.take("col")) d.fail("only .row.col is supported");
  const auto shape = std::make_shared<Shape>();
  shape->satfinite = d.take("satfinite");
  const std::string result = d.take_word();
  shape->a = element(d, d.take_word());
  shape->b = element(d, d.take_word());
  if (d.take_word() != result) d.fail("C and D must be of one type");
  if (result != "f32" && result != "f16" && result != "s32") d.fail("accumulator '" + result + "' is not supported");
  shape->accumulator = result == "f32" ? Accumulator::kF32 : result == "f16" ? Accumulator::kF16 : Accumulator::kS32;
  shape->k = std::stoi(shape_name.substr(6));
  const int bits = bits_of(shape->a) * shape->k;
  if (bits != 128 && bits != 256) d.fail("no such shape for these elements");
  shape->a_registers = static_cast<size_t>(bits) / 64;
  shape->b_registers = static_cast<size_t>(bits) / 128;
  shape->c_registers = shape->accumulator == Accumulator::kF16 ? 2 : 4;
  d.expect_operands(4, 4);
  const size_t wanted[] = {shape->c_registers, shape->a_registers, shape->b_registers, shape->c_registers};
  for (size_t n = 0; n < 4; n++) {
    const std::vector<Slot> slots = n == 0 ? d.dst_list(n, Type::B32) : d.src_list(n, Type::B32);
    if (slots.size() != wanted[n]) {
      d.fail("operand " + std::to_string(n + 1) + " has " + std::to_string(slots.size()) + " registers, expected " +
             std::to_string(wanted[n]));
    }
    i.list.insert(i.list.end(), slots.begin(), slots.end());
  }
  i.macs = 16 * 8 * static_cast<uint64_t>(shape->k);
  i.extra = shape;
  i.run = run_mma;
}

Step run_movmatrix(Warp& w, const Instruction& i, Mask mask) {
  if (mask != kFullMask) return Step::Wait;
  alignas(16) uint8_t matrix[8][16];
  uint8_t* rows[8];
  for (int row = 0; row < 8; row++) rows[row] = matrix[row];
  stmatrix_m8n8(w.lanes<uint32_t>(i.r[1]), false, rows);
  ldmatrix_m8n8(rows, true, w.lanes<uint32_t>(i.r[0]));
  return Step::Next;
}
void decode_movmatrix(Decoder& d) {
  for (const char* word : {"sync", "aligned", "m8n8", "trans", "b16"}) {
    if (!d.take(word)) d.fail(std::string("'.") + word + "' is missing");
  }
  operands(d, Type::B32, {Type::B32});
  d.instruction().run = run_movmatrix;
}

}  // namespace

const Family& matrix_family() {
  static const Family family = {{"ldmatrix", decode_ldmatrix},
                                {"stmatrix", decode_stmatrix},
                                {"mma", decode_mma},
                                {"movmatrix", decode_movmatrix}};
  return family;
}

}  // namespace fastres::emulator
