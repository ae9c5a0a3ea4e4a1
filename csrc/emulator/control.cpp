// Control flow. PTX ISA, "Control Flow Instructions" and "Miscellaneous Instructions". Calls go to the two functions
// of CUDA's runtime that compilers leave in: __assertfail and vprintf.
#include <cstring>

#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

Step run_bra(Warp& w, const Instruction& i, Mask mask) {
  return w.branch(mask, i.a);
}

void decode_bra(Decoder& d) {
  d.take("uni");
  d.expect_operands(1, 1);
  d.instruction().a = d.label(0);
  d.instruction().run = run_bra;
}

Step run_exit(Warp& w, const Instruction&, Mask mask) {
  return w.exit(mask);
}
void decode_exit(Decoder& d) {
  d.take("uni");
  d.instruction().run = run_exit;
}

Step run_nothing(Warp&, const Instruction&, Mask) {
  return Step::Next;
}
void decode_nanosleep(Decoder& d) {
  d.take("u32");
  d.expect_operands(1, 1);
  d.instruction().run = run_nothing;
}

Step run_trap(Warp& w, const Instruction& i, Mask mask) {
  Finding finding;
  finding.kind = i.a ? "breakpoint" : "trap";
  finding.message = i.a ? "brkpt was executed" : "trap was executed";
  finding.expected = "a kernel that doesn't give up";
  Machine& machine = w.block.machine;
  machine.locate(finding, w, i, __builtin_ctz(mask));
  machine.fatal(std::move(finding));
}
template <bool kBreak>
void decode_trap(Decoder& d) {
  d.instruction().a = kBreak;
  d.instruction().run = run_trap;
}

// A C string in a module's variable, for messages.
std::string text_at(const Program& program, uint64_t address) {
  for (const auto& global : program.globals) {
    const uint64_t begin = reinterpret_cast<uint64_t>(global->data);
    if (address < begin || address >= begin + global->bytes) continue;
    const char* text = reinterpret_cast<const char*>(address);
    return std::string(text, strnlen(text, begin + global->bytes - address));
  }
  return "?";
}

// __assertfail(message, file, line, function, size): r[0..2] are the local addresses of the first three.
Step run_assertfail(Warp& w, const Instruction& i, Mask mask) {
  const int lane = __builtin_ctz(mask);
  Machine& machine = w.block.machine;
  const uint8_t* local = w.local.data() + static_cast<size_t>(lane) * machine.kernel.local_bytes;
  uint64_t message, file;
  uint32_t line;
  std::memcpy(&message, local + i.r[0], 8);
  std::memcpy(&file, local + i.r[1], 8);
  std::memcpy(&line, local + i.r[2], 4);
  Finding finding;
  finding.kind = "assertion";
  finding.message = "assertion '" + text_at(machine.program, message) + "' failed at " +
                    text_at(machine.program, file) + ":" + std::to_string(line);
  finding.expected = "the assertion to hold";
  machine.locate(finding, w, i, lane);
  machine.fatal(std::move(finding));
}

void decode_call(Decoder& d) {
  d.take("uni");
  size_t name = 0;
  while (name < d.operands() && d.operand(name).kind == ptx::Operand::Kind::Vector) name++;
  const std::string function = d.operand(name).name;
  Instruction& i = d.instruction();
  if (function == "vprintf") {
    i.run = run_nothing;
  } else if (function == "__assertfail") {
    const ptx::Operand& arguments = d.operand(name + 1);
    for (size_t n = 0; n < 3; n++) i.r[n] = static_cast<Slot>(d.local_offset(arguments.parts.at(n)));
    i.run = run_assertfail;
  } else {
    d.fail("calls function '" + function + "'; only inlined code can be emulated");
  }
}

}  // namespace

const Family& control_family() {
  static const Family family = {
      {"bra", decode_bra},          {"ret", decode_exit},
      {"exit", decode_exit},        {"nanosleep", decode_nanosleep},
      {"trap", decode_trap<false>}, {"brkpt", decode_trap<true>},
      {"call", decode_call},
  };
  return family;
}

}  // namespace fastres::emulator
