// wgmma instructions. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// Kernel: each warp computes its 16 rows when it issues. Its reads of shared memory belong to the warpgroup's agent
// until the group is waited for, and a wait passes only when all four warps have committed the group.
#include <algorithm>
#include <vector>

#include "emulator/async_state.h"
#include "emulator/lanes.h"
#include "emulator/wgmma.h"

namespace fastres::emulator {
namespace {

struct Multiply {
  Element element = Element::kF16;
  Element b_element = Element::kF16;
  Accumulator accumulator = Accumulator::kF32;
  int columns = 0;
  std::vector<Slot> d, a;  // a: empty if A is in shared memory
  Slot a_descriptor = 0, b_descriptor = 0;
  uint32_t scale_d = 0;  // predicate
  Mask scale_d_flip = 0;
  float scale_a = 1, scale_b = 1;
  bool a_mn_major = false, b_mn_major = false, saturate = false;
};

// Reads operands through the checks that a wgmma's reads are subject to.
class OperandReader {
 public:
  OperandReader(Warp& w, const Instruction& i, Epoch at) : w_(w), i_(i), access_{at, Proxy::Async, false} {}

  const uint8_t* operator()(uint32_t address) {
    static const uint8_t nothing[16] = {};
    const SharedPlace place = shared_place(w_, i_, 0, Space::Shared, address, 16, 16);
    if (place.block == nullptr) return nothing;
    AsyncState& async = *w_.block.async;
    const Conflict conflict = async.order.read(address, 16, access_, async.of(w_).timeline.known());
    if (conflict) report(w_, i_, 0, conflict, "a wgmma's read");
    const uint8_t* data =
        w_.block.machine.memory.access({w_, i_, 0, Space::Shared, address, 16, AccessKind::Read, Proxy::Async});
    return data == nullptr ? nothing : data;
  }

 private:
  Warp& w_;
  const Instruction& i_;
  SharedAccess access_;
};

std::vector<uint32_t*> lanes_of(Warp& w, const std::vector<Slot>& slots) {
  std::vector<uint32_t*> lanes;
  for (const Slot slot : slots) lanes.push_back(w.lanes<uint32_t>(slot));
  return lanes;
}

void check_agreement(Warp& w, const Instruction& i, uint64_t a, uint64_t b) {
  AsyncState& async = *w.block.async;
  auto& log = async.warpgroup(w).descriptors;
  const uint32_t index = async.of(w).multiplies++;
  if (index == log.size()) log.push_back({a, b});
  if (log[index] == std::array{a, b}) return;
  report(w, i, 0, "wgmma", "the warps of a warpgroup give different descriptors to one wgmma",
         "the same descriptors in all four warps");
}

void check_descriptor(Warp& w, const Instruction& i, const WgmmaDescriptor& descriptor, Element element,
                      bool mn_major) {
  const std::string error = check_descriptor(descriptor, element, mn_major);
  if (!error.empty()) report(w, i, 0, "wgmma", error, "a descriptor as the PTX ISA's matrix descriptor format has it");
}

Step run_multiply(Warp& w, const Instruction& i, Mask mask) {
  if (mask != w.live()) return Step::Wait;  // .aligned: all lanes together
  const Multiply& m = *static_cast<const Multiply*>(i.extra.get());
  AsyncState& async = *w.block.async;
  WarpState& state = async.of(w);
  if (w.block.warps.size() < w.index / 4 * 4 + 4) {
    report(w, i, 0, "wgmma", "the block's last warpgroup is not whole", "a multiple of 128 threads");
  }
  const uint32_t group = state.groups + 1;
  const std::string fence =
      state.wgmma.take(w.block.machine.kernel.watch.entries.at(w.group().pc).registers, m.d.size(), group);
  if (!fence.empty()) {
    report(w, i, 0, "wgmma-fence", fence, "wgmma.fence before the first wgmma and after any access to its registers");
  }

  const int k = wgmma_k(m.element), first = static_cast<int>(w.index % 4) * 16;
  const uint64_t a_bits = m.a.empty() ? w.lanes<uint64_t>(m.a_descriptor)[0] : 0;
  const uint64_t b_bits = w.lanes<uint64_t>(m.b_descriptor)[0];
  check_agreement(w, i, a_bits, b_bits);
  OperandReader read(w, i, {async.warpgroup(w).agent, group});
  std::vector<float> a(16 * k), b(k * m.columns), sum(16 * m.columns);
  if (m.a.empty()) {
    const WgmmaDescriptor descriptor = decode_descriptor(a_bits);
    check_descriptor(w, i, descriptor, m.element, m.a_mn_major);
    gather_wgmma_a(descriptor, m.element, m.a_mn_major, first, 16, m.scale_a, std::ref(read), a.data());
  } else {
    gather_wgmma_a_registers(m.element, lanes_of(w, m.a).data(), m.scale_a, a.data());
  }
  const WgmmaDescriptor descriptor = decode_descriptor(b_bits);
  check_descriptor(w, i, descriptor, m.b_element, m.b_mn_major);
  gather_wgmma_b(descriptor, m.b_element, m.b_mn_major, m.columns, m.scale_b, std::ref(read), b.data());

  const std::vector<uint32_t*> d = lanes_of(w, m.d);
  const bool accumulate = ((w.predicate(m.scale_d) ^ m.scale_d_flip) & 1) != 0;
  if (accumulate && m.accumulator != Accumulator::kS32) {
    gather_accumulators(m.accumulator, m.columns, d.data(), sum.data());
  }
  multiply_accumulate(16, m.columns, k, a.data(), b.data(), sum.data());
  if (m.accumulator == Accumulator::kS32) {
    scatter_integers(m.columns, sum.data(), accumulate, m.saturate, d.data());
  } else {
    scatter_accumulators(m.accumulator, m.columns, sum.data(), d.data());
  }
  return Step::Next;
}

Step run_fence(Warp& w, const Instruction&, Mask mask) {
  if (mask != w.live()) return Step::Wait;
  w.block.async->of(w).wgmma.fence();
  return Step::Next;
}

Step run_commit(Warp& w, const Instruction&, Mask mask) {
  if (mask != w.live()) return Step::Wait;
  w.block.async->of(w).groups++;
  w.block.machine.notify();
  return Step::Next;
}

Step run_wait(Warp& w, const Instruction& i, Mask mask) {
  if (mask != w.live()) return Step::Wait;
  AsyncState& async = *w.block.async;
  WarpState& state = async.of(w);
  const uint32_t done = state.groups > i.imm ? state.groups - static_cast<uint32_t>(i.imm) : 0;
  const size_t first = w.index / 4 * 4, end = std::min<size_t>(first + 4, w.block.warps.size());
  for (size_t other = first; other < end; ++other) {
    if (async.of(*w.block.warps[other]).groups < done) return Step::Wait;
  }
  state.wgmma.complete(done);
  state.timeline.learn({async.warpgroup(w).agent, done});
  return Step::Next;
}

float scale_of(Decoder& d, size_t operand) {
  const int64_t value = static_cast<int64_t>(d.constant(d.operand(operand)));
  if (value != 1 && value != -1) d.fail("a scale is " + std::to_string(value) + ", expected 1 or -1");
  return static_cast<float>(value);
}

Element element_of(Decoder& d, const std::string& name) {
  if (name == "f16") return Element::kF16;
  if (name == "bf16") return Element::kBF16;
  if (name == "tf32") return Element::kTF32;
  if (name == "e4m3") return Element::kE4M3;
  if (name == "e5m2") return Element::kE5M2;
  if (name == "s8") return Element::kS8;
  if (name == "u8") return Element::kU8;
  d.fail("unknown operand type ." + name);
}

void decode_multiply(Decoder& d) {
  auto m = std::make_shared<Multiply>();
  Instruction& i = d.instruction();
  d.take("sync");
  d.take("aligned");
  m->saturate = d.take("satfinite");
  const std::string shape = d.take_word();
  const size_t n = shape.find('n'), k = shape.find('k');
  if (shape.rfind("m64n", 0) != 0 || k == std::string::npos) d.fail("unknown shape ." + shape);
  m->columns = std::stoi(shape.substr(n + 1, k - n - 1));
  if (m->columns < 8 || m->columns > 256 || m->columns % 8 != 0) d.fail("N is " + std::to_string(m->columns));
  const std::string to = d.take_word();
  m->accumulator = to == "f32"   ? Accumulator::kF32
                   : to == "f16" ? Accumulator::kF16
                   : to == "s32" ? Accumulator::kS32
                                 : (d.fail("unknown accumulator ." + to), Accumulator::kF32);
  m->element = element_of(d, d.take_word());
  m->b_element = element_of(d, d.take_word());
  if (std::stoi(shape.substr(k + 1)) != wgmma_k(m->element)) d.fail("shape ." + shape + " is not one of this type");

  m->d = d.dst_list(0, Type::B32);
  const size_t expected = static_cast<size_t>(m->columns) / (m->accumulator == Accumulator::kF16 ? 4 : 2);
  if (m->d.size() != expected) {
    d.fail("has " + std::to_string(m->d.size()) + " accumulators, expected " + std::to_string(expected));
  }
  const bool registers = d.operand(1).kind == ptx::Operand::Kind::Vector;
  if (registers) {
    m->a = d.src_list(1, Type::B32);
    if (m->a.size() != 4) d.fail("A has " + std::to_string(m->a.size()) + " registers, expected 4");
  } else {
    m->a_descriptor = d.src(1, Type::B64);
  }
  m->b_descriptor = d.src(2, Type::B64);
  m->scale_d = d.predicate_src(d.operand(3), m->scale_d_flip);
  if (m->accumulator == Accumulator::kS32) {
    d.expect_operands(4, 4);
  } else {
    const bool sixteen = bits_of(m->element) == 16;
    const size_t count = 6 + (sixteen ? (registers ? 1 : 2) : 0);
    d.expect_operands(count, count);
    m->scale_a = scale_of(d, 4);
    m->scale_b = scale_of(d, 5);
    if (sixteen && !registers) m->a_mn_major = d.constant(d.operand(6)) != 0;
    if (sixteen) m->b_mn_major = d.constant(d.operand(count - 1)) != 0;
  }
  i.macs = 16ull * m->columns * wgmma_k(m->element);
  i.extra = std::move(m);
  i.run = run_multiply;
}

void decode_wgmma(Decoder& d) {
  Instruction& i = d.instruction();
  const std::string op = d.take_word();
  if (op == "mma_async") return decode_multiply(d);
  d.take("sync");
  d.take("aligned");
  if (op == "fence") {
    i.run = run_fence;
  } else if (op == "commit_group") {
    i.run = run_commit;
  } else if (op == "wait_group") {
    d.expect_operands(1, 1);
    i.imm = d.constant(d.operand(0));
    i.run = run_wait;
  } else {
    d.fail("unknown wgmma operation '" + op + "'");
  }
}

}  // namespace

std::string describe_wgmma_wait(Warp& w, const Instruction& i, Mask mask) {
  if (i.run != run_wait || mask != w.live()) return "";
  return " for the other warps of its warpgroup to commit their group";
}

const Family& wgmma_family() {
  static const Family family = {{"wgmma", decode_wgmma}};
  return family;
}

}  // namespace fastres::emulator
