#include "emulator/wgmma_registers.h"

#include <algorithm>

#include "emulator/async_state.h"
#include "emulator/decoder.h"

namespace fastres::emulator {
namespace {

const WgmmaWatch::Entry& entry_of(Warp& w) {
  return w.block.machine.kernel.watch.entries.at(w.group().pc);
}

Step run_touch(Warp& w, const Instruction& i, Mask mask) {
  const WgmmaWatch::Entry& entry = entry_of(w);
  const std::string error = w.block.async->of(w).wgmma.touch(entry.registers);
  if (!error.empty()) {
    report(w, i, __builtin_ctz(mask), "wgmma-wait", error, "wgmma.wait_group before its registers are touched");
  }
  return entry.run(w, i, mask);
}

Step run_copy(Warp& w, const Instruction& i, Mask mask) {
  const WgmmaWatch::Entry& entry = entry_of(w);
  w.block.async->of(w).wgmma.copy(entry.registers[0], entry.registers[1]);
  return entry.run(w, i, mask);
}

void collect_names(const ptx::Operand& operand, std::vector<std::string>& names) {
  if (operand.kind == ptx::Operand::Kind::Name) {
    names.push_back(operand.name);
    if (!operand.second.empty()) names.push_back(operand.second);
  }
  for (const ptx::Operand& part : operand.parts) collect_names(part, names);
}

bool has_prefix(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

bool is_copy(const ptx::Statement& statement) {
  using Kind = ptx::Operand::Kind;
  return has_prefix(statement.opcode, "mov.") && statement.operands.size() == 2 &&
         statement.operands[0].kind == Kind::Name && statement.operands[1].kind == Kind::Name;
}

}  // namespace

std::string WgmmaRegisters::take(const std::vector<uint32_t>& registers, size_t accumulators, uint32_t group) {
  bool touched = false;
  for (size_t i = 0; i < registers.size(); ++i) {
    State& state = states_[registers[i]];
    touched |= state.touched;
    if (i < accumulators) state.group = group;
  }
  return touched ? "registers of this wgmma were accessed after the last wgmma.fence, or there was none" : "";
}

void WgmmaRegisters::complete(uint32_t group) {
  for (State& state : states_) {
    if (state.group <= group) state.group = 0;
  }
}

std::string WgmmaRegisters::touch(const std::vector<uint32_t>& registers) {
  bool flying = false;
  for (const uint32_t r : registers) {
    flying |= states_[r].group != 0;
    states_[r].touched = true;
  }
  return flying ? "a register of a wgmma that may still be running is accessed" : "";
}

void watch_wgmma_registers(Kernel& kernel, const ptx::Function& function) {
  std::unordered_map<std::string, uint32_t> index;
  const auto add = [&](const std::string& name) {
    return function.registers.count(name) && index.emplace(name, static_cast<uint32_t>(index.size())).second;
  };
  const auto wgmma = [](const ptx::Statement& s) { return has_prefix(s.opcode, "wgmma.mma_async"); };
  std::vector<std::string> names;
  for (const ptx::Statement& statement : function.statements) {
    if (!wgmma(statement)) continue;
    names.clear();
    collect_names(statement.operands[0], names);
    if (statement.operands[1].kind == ptx::Operand::Kind::Vector) collect_names(statement.operands[1], names);
    for (const std::string& name : names) add(name);
  }
  if (index.empty()) return;
  for (bool grown = true; grown;) {  // copies of what is watched are watched
    grown = false;
    for (const ptx::Statement& statement : function.statements) {
      if (!is_copy(statement)) continue;
      const std::string &to = statement.operands[0].name, &from = statement.operands[1].name;
      if (index.count(to) || index.count(from)) grown |= add(to) | add(from);
    }
  }
  WgmmaWatch& watch = kernel.watch;
  watch.registers = index.size();
  for (size_t pc = 0; pc < function.statements.size(); ++pc) {
    const ptx::Statement& statement = function.statements[pc];
    names.clear();
    const size_t operands = wgmma(statement) ? 2 : statement.operands.size();
    for (size_t o = 0; o < operands; ++o) {
      const ptx::Operand& operand = statement.operands[o];
      if (!wgmma(statement) || o == 0 || operand.kind == ptx::Operand::Kind::Vector) collect_names(operand, names);
    }
    WgmmaWatch::Entry entry;
    for (const std::string& name : names) {
      const auto found = index.find(name);
      if (found != index.end()) entry.registers.push_back(found->second);
    }
    if (entry.registers.empty()) continue;
    Instruction& instruction = kernel.code[pc];
    entry.run = instruction.run;
    if (!wgmma(statement)) {
      instruction.run = is_copy(statement) && entry.registers.size() == 2 ? run_copy : run_touch;
    }
    watch.entries.emplace(static_cast<uint32_t>(pc), std::move(entry));
  }
}

}  // namespace fastres::emulator
