#include "emulator/decoder.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace fastres::emulator {

namespace {

const std::array<const Family*, 16>& families() {
  static const std::array<const Family*, 16> all = {
      &float_family(),      &integer_family(),  &bits_family(),    &move_family(),
      &conversion_family(), &compare_family(),  &control_family(), &memory_family(),
      &atomic_family(),     &barrier_family(),  &warp_family(),    &matrix_family(),
      &async_copy_family(), &mbarrier_family(), &wgmma_family(),   &cluster_family()};
  return all;
}

const std::unordered_map<std::string, std::pair<Special, bool>>& specials() {  // name -> which, 64 bits wide
  static const std::unordered_map<std::string, std::pair<Special, bool>> all = {
      {"%tid.x", {Special::TidX, false}},
      {"%tid.y", {Special::TidY, false}},
      {"%tid.z", {Special::TidZ, false}},
      {"%ntid.x", {Special::NtidX, false}},
      {"%ntid.y", {Special::NtidY, false}},
      {"%ntid.z", {Special::NtidZ, false}},
      {"%ctaid.x", {Special::CtaidX, false}},
      {"%ctaid.y", {Special::CtaidY, false}},
      {"%ctaid.z", {Special::CtaidZ, false}},
      {"%nctaid.x", {Special::NctaidX, false}},
      {"%nctaid.y", {Special::NctaidY, false}},
      {"%nctaid.z", {Special::NctaidZ, false}},
      {"%laneid", {Special::LaneId, false}},
      {"%warpid", {Special::WarpId, false}},
      {"%nwarpid", {Special::NWarpId, false}},
      {"%lanemask_eq", {Special::LanemaskEq, false}},
      {"%lanemask_lt", {Special::LanemaskLt, false}},
      {"%lanemask_le", {Special::LanemaskLe, false}},
      {"%lanemask_gt", {Special::LanemaskGt, false}},
      {"%lanemask_ge", {Special::LanemaskGe, false}},
      {"%clusterid.x", {Special::ClusterIdX, false}},
      {"%clusterid.y", {Special::ClusterIdY, false}},
      {"%clusterid.z", {Special::ClusterIdZ, false}},
      {"%nclusterid.x", {Special::NClusterIdX, false}},
      {"%nclusterid.y", {Special::NClusterIdY, false}},
      {"%nclusterid.z", {Special::NClusterIdZ, false}},
      {"%cluster_ctaid.x", {Special::ClusterCtaidX, false}},
      {"%cluster_ctaid.y", {Special::ClusterCtaidY, false}},
      {"%cluster_ctaid.z", {Special::ClusterCtaidZ, false}},
      {"%cluster_nctaid.x", {Special::ClusterNctaidX, false}},
      {"%cluster_nctaid.y", {Special::ClusterNctaidY, false}},
      {"%cluster_nctaid.z", {Special::ClusterNctaidZ, false}},
      {"%cluster_ctarank", {Special::ClusterCtaRank, false}},
      {"%cluster_nctarank", {Special::ClusterNctaRank, false}},
      {"%smid", {Special::SmId, false}},
      {"%nsmid", {Special::NSmId, false}},
      {"%gridid", {Special::GridId, true}},
      {"%dynamic_smem_size", {Special::DynamicSmemSize, false}},
      {"%total_smem_size", {Special::TotalSmemSize, false}},
      {"%clock", {Special::Clock, false}},
      {"%clock64", {Special::Clock64, true}},
      {"%globaltimer", {Special::GlobalTimer, true}},
  };
  return all;
}

}  // namespace

bool parse_type(const std::string& word, Type& type) {
  static const std::unordered_map<std::string, Type> types = {
      {"pred", Type::Pred},   {"b8", Type::B8},       {"u8", Type::U8},         {"s8", Type::S8},
      {"b16", Type::B16},     {"u16", Type::U16},     {"s16", Type::S16},       {"f16", Type::F16},
      {"bf16", Type::BF16},   {"b32", Type::B32},     {"u32", Type::U32},       {"s32", Type::S32},
      {"f32", Type::F32},     {"tf32", Type::TF32},   {"f16x2", Type::F16x2},   {"bf16x2", Type::BF16x2},
      {"u16x2", Type::U16x2}, {"s16x2", Type::S16x2}, {"e4m3x2", Type::E4M3x2}, {"e5m2x2", Type::E5M2x2},
      {"b64", Type::B64},     {"u64", Type::U64},     {"s64", Type::S64},       {"f64", Type::F64},
      {"b128", Type::B128}};
  const auto found = types.find(word);
  if (found == types.end()) return false;
  type = found->second;
  return true;
}

const char* name_of(Type type) {
  static const char* const names[] = {"pred",   "b8",     "u8",  "s8",  "b16",  "u16",   "s16",    "f16",   "bf16",
                                      "b32",    "u32",    "s32", "f32", "tf32", "f16x2", "bf16x2", "u16x2", "s16x2",
                                      "e4m3x2", "e5m2x2", "b64", "u64", "s64",  "f64",   "b128"};
  return names[static_cast<size_t>(type)];
}

Decoder::Decoder(Program& program, const ptx::Function& function, Kernel& kernel)
    : program_(program), function_(function), kernel_(kernel) {}

void Decoder::run() {
  kernel_.name = function_.name;
  kernel_.function = &function_;
  declare_registers();
  lay_out_memory();
  kernel_.code.reserve(function_.statements.size());
  for (const ptx::Statement& statement : function_.statements) decode(statement);
  watch_wgmma_registers(kernel_, function_);
}

void Decoder::declare_registers() {
  for (const auto& [name, type_name] : function_.registers) {
    Type type = Type::Pred;
    parse_type(type_name, type);
    if (type == Type::Pred) {
      predicates_[name] = kernel_.predicates++;
      continue;
    }
    const uint32_t words = std::max(1u, size_of(type) / 4) * 32;
    registers_[name] = {kernel_.register_words, type};
    kernel_.register_words += words;
    kernel_.registers += words / 32;
  }
}

void Decoder::lay_out_memory() {
  for (const ptx::Variable& param : function_.params) {
    params_[param.name] = param.offset;
    kernel_.param_bytes = static_cast<uint32_t>(std::max<uint64_t>(kernel_.param_bytes, param.offset + param.bytes));
  }
  kernel_.shared_base = kSharedBase;
  uint64_t shared = kSharedBase, local = 0;
  std::vector<const ptx::Variable*> dynamic;
  const auto place = [&](const ptx::Variable& variable) {
    if (variable.space == "shared" && variable.external) {
      dynamic.push_back(&variable);
    } else if (variable.space == "shared") {
      shared = align_up(shared, variable.align);
      symbols_[variable.name] = shared;
      kernel_.shared.push_back({variable.name, static_cast<uint32_t>(shared), static_cast<uint32_t>(variable.bytes)});
      shared += variable.bytes;
    } else if (variable.space == "local" || variable.space == "param") {
      local = align_up(local, variable.align);
      symbols_[variable.name] = local;
      if (variable.space == "param") local_params_[variable.name] = local;
      local += variable.bytes;
    }
  };
  for (const ptx::Variable& variable : program_.module.variables) place(variable);
  for (const ptx::Variable& variable : function_.variables) place(variable);
  for (const ptx::Variable* variable : dynamic) shared = align_up(shared, variable->align);
  for (const ptx::Variable* variable : dynamic) symbols_[variable->name] = shared;
  kernel_.static_shared_end = static_cast<uint32_t>(shared);
  kernel_.local_bytes = static_cast<uint32_t>(align_up(local, 16));
  for (const auto& global : program_.globals) symbols_[global->name] = reinterpret_cast<uint64_t>(global->data);
}

void Decoder::decode(const ptx::Statement& statement) {
  statement_ = &statement;
  words_.clear();
  for (size_t start = 0; start <= statement.opcode.size();) {
    const size_t dot = std::min(statement.opcode.find('.', start), statement.opcode.size());
    words_.push_back(statement.opcode.substr(start, dot - start));
    start = dot + 1;
  }
  const std::string root = words_.front();
  words_.erase(words_.begin());

  kernel_.code.emplace_back();
  instruction_ = &kernel_.code.back();
  instruction_->source = &statement;
  const auto [index, fresh] = opcode_index_.emplace(statement.opcode, kernel_.opcodes.size());
  if (fresh) kernel_.opcodes.push_back(statement.opcode);
  instruction_->opcode = index->second;
  if (!statement.guard.empty()) {
    instruction_->guard = predicate(statement.guard);
    instruction_->guard_flip = statement.guard_negated ? kFullMask : 0;
  }
  for (const Family* family : families()) {
    const auto found = family->find(root);
    if (found == family->end()) continue;
    found->second(*this);
    if (!words_.empty()) fail("unknown modifier '." + words_.front() + "'");
    if (instruction_->run == nullptr) fail("this combination of modifiers is not supported");
    return;
  }
  fail("unknown instruction");
}

void Decoder::fail(const std::string& why) const {
  throw PtxError("PTX line " + std::to_string(statement_->line) + ", kernel " + function_.name + ", '" +
                 statement_->opcode + "': " + why);
}

bool Decoder::take(const std::string& modifier) {
  const auto found = std::find(words_.begin(), words_.end(), modifier);
  if (found == words_.end()) return false;
  words_.erase(found);
  return true;
}

std::string Decoder::take_any(std::initializer_list<const char*> modifiers) {
  for (auto word = words_.begin(); word != words_.end(); ++word) {
    for (const char* modifier : modifiers) {
      if (*word == modifier) {
        words_.erase(word);
        return modifier;
      }
    }
  }
  return "";
}

bool Decoder::has_type() const {
  Type type;
  return std::any_of(words_.begin(), words_.end(), [&](const std::string& word) { return parse_type(word, type); });
}

Type Decoder::take_type() {
  Type type;
  for (auto word = words_.begin(); word != words_.end(); ++word) {
    if (parse_type(*word, type)) {
      words_.erase(word);
      return type;
    }
  }
  fail("a type is missing");
}

std::string Decoder::take_word() {
  if (words_.empty()) return "";
  std::string word = words_.front();
  words_.erase(words_.begin());
  return word;
}

const ptx::Operand& Decoder::operand(size_t i) const {
  if (i >= statement_->operands.size()) fail("operand " + std::to_string(i + 1) + " is missing");
  return statement_->operands[i];
}

void Decoder::expect_operands(size_t least, size_t most) {
  if (operands() < least || operands() > most) {
    fail("has " + std::to_string(operands()) + " operands, expected " + std::to_string(least) +
         (least == most ? "" : " to " + std::to_string(most)));
  }
}

Slot Decoder::scratch(bool wide) {
  const Slot slot = kernel_.register_words;
  kernel_.register_words += wide ? 64 : 32;
  return slot;
}

Slot Decoder::constant_slot(uint64_t value, bool wide) {
  if (!wide) value &= 0xffffffffu;
  const auto [found, fresh] = constants_[wide].emplace(value, kernel_.register_words);
  if (fresh) {
    scratch(wide);
    kernel_.constants.push_back({found->second, wide, value});
  }
  return found->second;
}

bool Decoder::special(const std::string& name, Slot& slot, bool& wide) {
  const auto known = specials().find(name);
  if (known == specials().end()) return false;
  wide = known->second.second;
  const auto [found, fresh] = special_slots_.emplace(name, kernel_.register_words);
  if (fresh) {
    scratch(wide);
    kernel_.specials.push_back({found->second, known->second.first});
  }
  slot = found->second;
  return true;
}

bool Decoder::is_constant(const ptx::Operand& operand) const {
  using Kind = ptx::Operand::Kind;
  return operand.kind == Kind::Integer || operand.kind == Kind::Float32 || operand.kind == Kind::Float64;
}

uint64_t Decoder::constant(const ptx::Operand& operand) const {
  if (!is_constant(operand)) fail("expected a constant operand");
  return operand.bits;
}

Slot Decoder::any_dst(const ptx::Operand& operand, bool& wide) {
  if (operand.kind != ptx::Operand::Kind::Name) fail("the destination is no register");
  if (operand.name == "_") return scratch(wide);
  const auto found = registers_.find(operand.name);
  if (found == registers_.end()) fail("'" + operand.name + "' is no register of this kernel");
  if (size_of(found->second.type) == 16) fail("'" + operand.name + "' has 128 bits");
  wide = is_wide(found->second.type);
  return found->second.slot;
}

Slot Decoder::dst(const ptx::Operand& operand, Type type) {
  if (operand.name == "_") return scratch(size_of(type) >= 8);
  const auto found = registers_.find(operand.name);
  if (operand.kind != ptx::Operand::Kind::Name || found == registers_.end()) {
    fail("'" + operand.name + "' is no register of this kernel");
  }
  const uint32_t have = std::max(size_of(found->second.type), 4u), want = std::max(size_of(type), 4u);
  if (have != want) {
    fail("register " + operand.name + " has " + std::to_string(8 * have) + " bits, ." + name_of(type) + " wants " +
         std::to_string(8 * want));
  }
  return found->second.slot;
}

Slot Decoder::any_src(const ptx::Operand& operand, bool& wide) {
  if (is_constant(operand)) {
    wide = true;
    return constant_slot(operand.bits, true);
  }
  if (operand.kind != ptx::Operand::Kind::Name) fail("expected a register or a constant");
  if (registers_.count(operand.name)) return any_dst(operand, wide);
  Slot slot;
  if (special(operand.name, slot, wide)) return slot;
  wide = true;
  if (operand.name == "WARP_SZ") return constant_slot(32, true);
  const auto param = params_.find(operand.name);
  if (param != params_.end()) return constant_slot(kParamWindow + param->second + operand.offset, true);
  const auto symbol = symbols_.find(operand.name);
  if (symbol == symbols_.end()) fail("'" + operand.name + "' is neither a register nor a variable");
  return constant_slot(symbol->second + operand.offset, true);
}

Slot Decoder::src(const ptx::Operand& operand, Type type) {
  const bool want = size_of(type) == 8;
  if (is_constant(operand)) {
    uint64_t bits = operand.bits;
    if (operand.kind == ptx::Operand::Kind::Float64 && type == Type::F32) {
      double value;
      std::memcpy(&value, &bits, 8);
      const float narrow = static_cast<float>(value);
      uint32_t word;
      std::memcpy(&word, &narrow, 4);
      bits = word;
    }
    return constant_slot(bits, want);
  }
  if (operand.kind == ptx::Operand::Kind::Name && registers_.count(operand.name)) return dst(operand, type);
  bool wide = false;
  const Slot slot = any_src(operand, wide);
  if (wide && !want) {  // a variable's address in a 32-bit operand
    for (const Constant& known : kernel_.constants) {
      if (known.slot == slot) return constant_slot(known.value, false);
    }
  }
  if (wide != want) fail("operand " + operand.name + " has the wrong size for ." + name_of(type));
  return slot;
}

std::vector<const ptx::Operand*> Decoder::elements(size_t i) const {
  const ptx::Operand& whole = operand(i);
  if (whole.kind != ptx::Operand::Kind::Vector) return {&whole};
  std::vector<const ptx::Operand*> parts;
  for (const ptx::Operand& part : whole.parts) parts.push_back(&part);
  return parts;
}

std::vector<Slot> Decoder::src_list(size_t i, Type type) {
  std::vector<Slot> slots;
  for (const ptx::Operand* part : elements(i)) slots.push_back(src(*part, type));
  return slots;
}

std::vector<Slot> Decoder::dst_list(size_t i, Type type) {
  std::vector<Slot> slots;
  for (const ptx::Operand* part : elements(i)) slots.push_back(dst(*part, type));
  return slots;
}

uint32_t Decoder::predicate(const std::string& name) const {
  const auto found = predicates_.find(name);
  if (found == predicates_.end()) fail("'" + name + "' is no predicate of this kernel");
  return found->second;
}

bool Decoder::is_predicate(const ptx::Operand& operand) const {
  return operand.kind == ptx::Operand::Kind::Name && predicates_.count(operand.name) != 0;
}

uint32_t Decoder::predicate_dst(const ptx::Operand& operand) {
  return operand.name == "_" ? kernel_.predicates++ : predicate(operand.name);
}

uint32_t Decoder::predicate_src(const ptx::Operand& operand, Mask& flip) {
  if (is_constant(operand)) {
    flip = operand.bits == 0 ? kFullMask : 0;  // predicate 0 is true
    return 0;
  }
  flip = operand.negated ? kFullMask : 0;
  return predicate(operand.name);
}

Decoder::Address Decoder::address(const ptx::Operand& operand) {
  if (operand.kind != ptx::Operand::Kind::Address) fail("expected an address in [ ]");
  const ptx::Operand& base = operand.parts[0];
  Address address;
  address.offset = operand.offset;
  if (base.kind == ptx::Operand::Kind::Name && params_.count(base.name)) {
    address.param = true;
    address.offset += static_cast<int64_t>(params_[base.name]);
    address.base = constant_slot(0, true);
    return address;
  }
  ptx::Operand bare = base;
  bare.offset = 0;
  bool wide = true;
  address.base = any_src(bare, wide);
  address.narrow = !wide;
  return address;
}

uint32_t Decoder::label(size_t i) const {
  const auto found = function_.labels.find(operand(i).name);
  if (found == function_.labels.end()) fail("'" + operand(i).name + "' is no label of this kernel");
  return found->second;
}

uint64_t Decoder::local_offset(const ptx::Operand& operand) const {
  const auto found = local_params_.find(operand.name);
  if (found == local_params_.end()) fail("'" + operand.name + "' is no parameter of a call");
  return found->second;
}

}  // namespace fastres::emulator
