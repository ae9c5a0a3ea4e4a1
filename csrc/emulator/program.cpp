// A module's variables get their memory, and its kernels are decoded.
#include "emulator/program.h"

#include <algorithm>
#include <cstring>

#include "emulator/decoder.h"

namespace fastres::emulator {

Program::Program(const std::string& text) : module(ptx::parse(text)) {
  const auto allocate = [this](const ptx::Variable& variable) {
    if (variable.space != "global" && variable.space != "const") return;
    auto global = std::make_unique<GlobalVariable>();
    global->name = variable.name;
    global->bytes = variable.bytes;
    global->constant = variable.space == "const";
    global->storage.resize((variable.bytes + std::max<uint64_t>(variable.align, 16)) / 8 + 2);
    const uint64_t address =
        align_up(reinterpret_cast<uint64_t>(global->storage.data()), std::max<uint64_t>(variable.align, 16));
    global->data = reinterpret_cast<uint8_t*>(address);
    std::copy(variable.init.begin(), variable.init.end(), global->data);
    global_by_name[variable.name] = global.get();
    globals.push_back(std::move(global));
  };
  for (const ptx::Variable& variable : module.variables) allocate(variable);
  for (const ptx::Function& function : module.functions) {
    for (const ptx::Variable& variable : function.variables) allocate(variable);
  }
  for (const ptx::Variable& variable : module.variables) {
    for (const auto& [offset, name] : variable.addresses) {
      const auto found = global_by_name.find(name);
      if (found == global_by_name.end()) throw PtxError("variable " + variable.name + " refers to unknown " + name);
      const uint64_t address = reinterpret_cast<uint64_t>(found->second->data);
      std::memcpy(global_by_name[variable.name]->data + offset, &address, 8);
    }
  }
  for (const ptx::Function& function : module.functions) {
    if (!function.entry) continue;
    kernels.push_back(std::make_unique<Kernel>());
    Decoder(*this, function, *kernels.back()).run();
  }
}

const Kernel& Program::kernel(const std::string& name) const {
  std::string names;
  for (const auto& kernel : kernels) {
    if (kernel->name == name) return *kernel;
    names += (names.empty() ? "" : ", ") + kernel->name;
  }
  throw PtxError("no kernel '" + name + "' in this module, which has: " + (names.empty() ? "none" : names));
}

}  // namespace fastres::emulator
