// From PTX statements to instructions. Each instruction family has one .cpp with a table of decode functions by the
// opcode's first word; `families` lists them. A modifier that no decode function took is an error that names it.
#pragma once

#include <initializer_list>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/program.h"
#include "emulator/types.h"

namespace fastres::emulator {

inline uint64_t align_up(uint64_t value, uint64_t align) {
  return (value + align - 1) / align * align;
}

class Decoder;
using Decode = void (*)(Decoder& d);
using Family = std::unordered_map<std::string, Decode>;

// One function per family, in the family's own file.
const Family& integer_family();
const Family& bits_family();
const Family& float_family();
const Family& move_family();
const Family& conversion_family();
const Family& compare_family();
const Family& control_family();
const Family& memory_family();
const Family& atomic_family();
const Family& barrier_family();
const Family& warp_family();
const Family& matrix_family();
const Family& async_copy_family();
const Family& mbarrier_family();
const Family& wgmma_family();
const Family& cluster_family();

// Instructions of sm_90 whose first word an older family owns.
void decode_bulk(Decoder& d);             // cp.async.bulk, cp.reduce.async.bulk
void decode_proxy_fence(Decoder& d);      // fence.proxy
void decode_mbarrier_fence(Decoder& d);   // fence.mbarrier_init
void decode_cluster_barrier(Decoder& d);  // barrier.cluster
// Wraps the instructions that touch wgmma's registers.
void watch_wgmma_registers(Kernel& kernel, const ptx::Function& function);

class Decoder {
 public:
  Decoder(Program& program, const ptx::Function& function, Kernel& kernel);
  void run();

  // ---- the opcode's words, after the first ----
  // Takes the modifier if it is there, in any position.
  bool take(const std::string& modifier);
  // Takes the first word that is one of these; empty if none.
  std::string take_any(std::initializer_list<const char*> modifiers);
  // Takes the first word that is a type. Throws if there is none.
  Type take_type();
  bool has_type() const;
  // Takes the first word left, or empty.
  std::string take_word();

  // ---- operands ----
  const ptx::Operand& operand(size_t i) const;
  size_t operands() const { return statement_->operands.size(); }
  // Throws unless the number of operands is in [least, most].
  void expect_operands(size_t least, size_t most);
  // A destination register of the type's size (16-bit and 32-bit registers have the same slots). '_' gives a slot
  // that nobody reads.
  Slot dst(size_t i, Type type) { return dst(operand(i), type); }
  Slot dst(const ptx::Operand& operand, Type type);
  // A source of the type's size: register, special register, constant or a variable's address.
  Slot src(size_t i, Type type) { return src(operand(i), type); }
  Slot src(const ptx::Operand& operand, Type type);
  // Any register or constant, with `wide` set to whether its slot is of 64 bits.
  Slot any_src(const ptx::Operand& operand, bool& wide);
  Slot any_dst(const ptx::Operand& operand, bool& wide);
  // Elements of {..}, or the operand itself as a list of one.
  std::vector<const ptx::Operand*> elements(size_t i) const;
  std::vector<Slot> src_list(size_t i, Type type);
  std::vector<Slot> dst_list(size_t i, Type type);
  uint32_t predicate(const std::string& name) const;
  uint32_t predicate_dst(const ptx::Operand& operand);
  // A source predicate, its negation in `flip`. Constants 0 and 1 are predicates too.
  uint32_t predicate_src(const ptx::Operand& operand, Mask& flip);
  bool is_predicate(const ptx::Operand& operand) const;
  bool is_constant(const ptx::Operand& operand) const;
  uint64_t constant(const ptx::Operand& operand) const;
  // An address operand [base + offset]: the base's slot (64 bits wide always: narrow bases are marked in `narrow`).
  struct Address {
    Slot base = 0;
    bool narrow = false;
    int64_t offset = 0;
    bool param = false;  // the base is a kernel parameter's name: offset is in the parameter block
  };
  Address address(const ptx::Operand& operand);
  uint32_t label(size_t i) const;
  // Where a call's parameter lies: they are kept in local memory.
  uint64_t local_offset(const ptx::Operand& operand) const;
  bool is_local_param(const ptx::Operand& operand) const { return local_params_.count(operand.name) != 0; }
  // A slot that holds this constant in every lane.
  Slot constant_slot(uint64_t value, bool wide);
  // A fresh slot.
  Slot scratch(bool wide);

  Instruction& instruction() { return *instruction_; }
  Kernel& kernel() { return kernel_; }
  Program& program() { return program_; }
  const ptx::Statement& statement() const { return *statement_; }
  [[noreturn]] void fail(const std::string& why) const;

 private:
  Program& program_;
  const ptx::Function& function_;
  Kernel& kernel_;
  const ptx::Statement* statement_ = nullptr;
  Instruction* instruction_ = nullptr;
  std::vector<std::string> words_;
  struct Register {
    Slot slot;
    Type type;
  };
  std::unordered_map<std::string, Register> registers_;
  std::unordered_map<std::string, uint32_t> predicates_;
  std::unordered_map<std::string, Slot> special_slots_;
  std::unordered_map<uint64_t, Slot> constants_[2];
  std::unordered_map<std::string, uint64_t> symbols_;  // name -> address in its space
  std::unordered_map<std::string, uint64_t> params_, local_params_;
  std::unordered_map<std::string, uint32_t> opcode_index_;

  void declare_registers();
  void lay_out_memory();
  void decode(const ptx::Statement& statement);
  bool special(const std::string& name, Slot& slot, bool& wide);
};

}  // namespace fastres::emulator
