// A kernel decoded for execution: operands are slots of a warp's register file, every instruction has a handler.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/ptx.h"

namespace fastres::emulator {

class Warp;
struct Instruction;

using Mask = uint32_t;  // one bit a lane
constexpr Mask kFullMask = 0xffffffffu;

// What the scheduler does after a handler: go on, look where the handler sent the lanes, or try the same instruction
// again once something has changed (a barrier completed, a copy landed).
enum class Step : uint8_t { Next, Moved, Wait };

// Executes for the lanes of `mask`, which is never 0. A handler that returns Step::Wait is called again with the same
// lanes and must not repeat what it has already done: Group::ticket is its memory.
using Handler = Step (*)(Warp& warp, const Instruction& instruction, Mask mask);

// A slot is the register's first word in Warp's register file: 32 lanes of 4 bytes (8 for 64-bit types, 16 for
// b128: 32 low halves, then 32 high halves). Predicates live apart, one 32-bit mask each; predicate 0 is always true.
using Slot = uint32_t;

struct Instruction {
  Handler run = nullptr;
  uint32_t guard = 0;  // predicate
  Mask guard_flip = 0;
  std::array<Slot, 8> r{};      // meaning by family
  uint64_t imm = 0;             // a family's constant, for memory the address offset
  uint32_t a = 0, b = 0;        // smaller constants
  std::vector<Slot> list;       // long operand lists
  std::shared_ptr<void> extra;  // anything a family wants to keep
  uint64_t macs = 0;            // multiply-adds of one execution by a warp
  uint32_t opcode = 0;          // index into Kernel::opcodes
  const ptx::Statement* source = nullptr;
};

// Slots with a value that is known before a warp's first instruction.
struct Constant {
  Slot slot;
  bool wide;
  uint64_t value;
};

enum class Special : uint8_t {
  TidX,
  TidY,
  TidZ,
  NtidX,
  NtidY,
  NtidZ,
  CtaidX,
  CtaidY,
  CtaidZ,
  NctaidX,
  NctaidY,
  NctaidZ,
  LaneId,
  WarpId,
  NWarpId,
  LanemaskEq,
  LanemaskLt,
  LanemaskLe,
  LanemaskGt,
  LanemaskGe,
  ClusterIdX,
  ClusterIdY,
  ClusterIdZ,
  NClusterIdX,
  NClusterIdY,
  NClusterIdZ,
  ClusterCtaidX,
  ClusterCtaidY,
  ClusterCtaidZ,
  ClusterNctaidX,
  ClusterNctaidY,
  ClusterNctaidZ,
  ClusterCtaRank,
  ClusterNctaRank,
  IsExplicitCluster,
  SmId,
  NSmId,
  GridId,
  DynamicSmemSize,
  TotalSmemSize,
  Clock,
  Clock64,
  GlobalTimer
};
struct SpecialSlot {
  Slot slot;
  Special special;
};

// Registers that wgmma uses, and the instructions that mention them: see wgmma_registers.h.
struct WgmmaWatch {
  struct Entry {
    Handler run = nullptr;            // the instruction's own
    std::vector<uint32_t> registers;  // by index among the watched
  };
  size_t registers = 0;
  std::unordered_map<uint32_t, Entry> entries;  // by index of the instruction
};

struct SharedVariable {
  std::string name;
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name;
  const ptx::Function* function = nullptr;
  std::vector<Instruction> code;
  std::vector<std::string> opcodes;
  std::vector<Constant> constants;
  std::vector<SpecialSlot> specials;
  uint32_t register_words = 0, predicates = 1;
  uint32_t param_bytes = 0, local_bytes = 0;
  uint32_t shared_base = 0, static_shared_end = 0;  // dynamic shared memory starts at the latter
  std::vector<SharedVariable> shared;
  uint32_t shared_align = 16;
  WgmmaWatch watch;
  uint32_t registers = 0;  // 32-bit registers a thread declares: an upper bound, no allocation
};

// Shared memory starts here, as on Hopper, so that address 0 is nobody's.
constexpr uint32_t kSharedBase = 1024;

// Generic addresses of the spaces that are not host memory: the top byte names the space.
enum class Space : uint8_t { Generic, Global, Shared, Local, Param, Const };
constexpr uint64_t kSharedWindow = 0x51ull << 56, kLocalWindow = 0x52ull << 56, kParamWindow = 0x53ull << 56;
constexpr uint64_t kWindowMask = 0xffull << 56;

// Memory of .global and .const variables: lives as long as the module, as on a device.
struct GlobalVariable {
  std::string name;
  std::vector<uint64_t> storage;  // 8-byte words, so that any alignment up to 16 can be found inside
  uint8_t* data = nullptr;
  uint64_t bytes = 0;
  bool constant = false;
};

struct Program {
  ptx::Module module;
  std::vector<std::unique_ptr<GlobalVariable>> globals;
  std::unordered_map<std::string, const GlobalVariable*> global_by_name;
  std::vector<std::unique_ptr<Kernel>> kernels;

  // Throws PtxError: bad text, or an instruction that no family knows, by name.
  explicit Program(const std::string& text);
  // Throws PtxError with the names there are.
  const Kernel& kernel(const std::string& name) const;
};

}  // namespace fastres::emulator
