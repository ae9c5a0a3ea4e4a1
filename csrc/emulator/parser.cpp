#include <algorithm>
#include <cstring>
#include <sstream>

#include "emulator/lexer.h"
#include "emulator/ptx.h"

namespace fastres::emulator::ptx {

uint32_t size_of(const std::string& type) {
  static const std::unordered_map<std::string, uint32_t> sizes = {
      {"b8", 1},     {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2}, {"s16", 2},   {"f16", 2},
      {"bf16", 2},   {"b32", 4}, {"u32", 4}, {"s32", 4}, {"f32", 4}, {"tf32", 4},  {"f16x2", 4},
      {"bf16x2", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8}, {"b128", 16}, {"pred", 0}};
  const auto found = sizes.find(type);
  if (found == sizes.end()) throw PtxError("'" + type + "' is no type");
  return found->second;
}

namespace {

class Parser {
 public:
  explicit Parser(const std::string& text) : tokens_(tokenize(text)) {
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) module_.lines.push_back(line);
  }

  Module run() {
    while (peek().kind != Token::Kind::End) top_level();
    return std::move(module_);
  }

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  Module module_;
  Function* function_ = nullptr;
  Location location_;
  // One map per open scope: the name as written -> the name that is unique in the function.
  std::vector<std::unordered_map<std::string, std::string>> scopes_;
  uint32_t scope_count_ = 0;

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool accept(std::string_view text) { return peek().is(text) ? (next(), true) : false; }
  [[noreturn]] void fail(const std::string& expected) const {
    throw PtxError("PTX line " + std::to_string(peek().line) + ": expected " + expected + ", found '" +
                   std::string(peek().text) + "'");
  }
  void expect(std::string_view text) {
    if (!accept(text)) fail("'" + std::string(text) + "'");
  }
  std::string word() {
    if (peek().kind != Token::Kind::Word) fail("a name");
    return std::string(next().text);
  }
  uint64_t integer() {
    const bool negative = accept("-");
    const Operand value = number();
    return negative ? 0 - value.bits : value.bits;
  }

  Operand number() {
    if (peek().kind != Token::Kind::Number) fail("a number");
    std::string text(next().text);
    Operand operand;
    operand.kind = Operand::Kind::Integer;
    const char second = text.size() > 1 ? static_cast<char>(std::tolower(text[1])) : '\0';
    const bool hexadecimal = second == 'x';
    if (text[0] == '0' && second == 'f' && text.size() == 10) {
      operand.kind = Operand::Kind::Float32;
      operand.bits = std::stoull(text.substr(2), nullptr, 16);
    } else if (text[0] == '0' && second == 'd' && text.size() == 18) {
      operand.kind = Operand::Kind::Float64;
      operand.bits = std::stoull(text.substr(2), nullptr, 16);
    } else if (!hexadecimal && text.find('.') != text.npos) {
      operand.kind = Operand::Kind::Float64;
      const double value = std::stod(text);
      std::memcpy(&operand.bits, &value, sizeof value);
    } else {
      if (text.back() == 'U' || text.back() == 'u') text.pop_back();
      const bool binary = second == 'b';
      operand.bits = std::stoull(text.substr(hexadecimal || binary ? 2 : 0), nullptr,
                                 hexadecimal ? 16 : (binary ? 2 : (text[0] == '0' && text.size() > 1 ? 8 : 10)));
    }
    return operand;
  }

  void skip_braces() {
    expect("{");
    for (int depth = 1; depth > 0;) {
      if (peek().kind == Token::Kind::End) fail("'}'");
      const Token token = next();
      depth += token.is("{") ? 1 : (token.is("}") ? -1 : 0);
    }
  }

  // ---- declarations -------------------------------------------------------------------------------------------------

  void top_level() {
    if (accept(".version")) {
      module_.version = std::string(next().text);
    } else if (accept(".target")) {
      module_.target = word();
      while (accept(",")) word();
    } else if (accept(".address_size")) {
      if (integer() != 64) fail("64-bit addresses");
    } else if (accept(".file")) {
      const uint32_t index = static_cast<uint32_t>(integer());
      module_.files[index] = std::string(next().text);
      while (accept(",")) integer();
    } else if (accept(".section")) {
      word();
      skip_braces();
    } else if (accept(".pragma")) {
      while (!accept(";")) next();
    } else {
      bool external = false;
      while (peek().is(".visible") || peek().is(".extern") || peek().is(".weak") || peek().is(".common")) {
        external |= next().is(".extern");
      }
      if (peek().is(".entry") || peek().is(".func")) {
        function();
      } else if (peek().is(".global") || peek().is(".const") || peek().is(".shared")) {
        for (Variable& variable : declaration(external)) module_.variables.push_back(std::move(variable));
      } else {
        fail("a directive");
      }
    }
  }

  // ".shared .align 16 .b8 name[1024], other;" with initialisers.
  std::vector<Variable> declaration(bool external) {
    Variable first;
    first.space = word().substr(1);
    first.external = external;
    type_and_alignment(first);
    std::vector<Variable> all;
    do {
      Variable variable = first;
      variable.name = word();
      dimensions(variable);
      if (accept("=")) initializer(variable);
      all.push_back(std::move(variable));
    } while (accept(","));
    expect(";");
    return all;
  }

  void type_and_alignment(Variable& variable) {
    uint32_t vector = 1;
    uint64_t align = 0;
    while (peek().kind == Token::Kind::Word && peek().text[0] == '.') {
      const std::string text = word().substr(1);
      if (text == "align") {
        align = integer();
      } else if (text == "v2" || text == "v4") {
        vector = static_cast<uint32_t>(text[1] - '0');
      } else if (text == "ptr" || text == "global" || text == "shared" || text == "const" || text == "local" ||
                 text == "managed" || text == "attribute") {
        if (text == "attribute") {
          while (!accept(")")) next();
        }
      } else {
        variable.type = text;
      }
    }
    if (variable.type.empty()) fail("a type");
    variable.bytes = uint64_t{size_of(variable.type)} * vector;
    variable.align = std::max<uint64_t>(align, std::max<uint64_t>(variable.bytes, 1));
  }

  void dimensions(Variable& variable) {
    if (!peek().is("[")) return;
    const uint64_t element = size_of(variable.type);
    variable.align = std::max(variable.align, element);
    uint64_t count = 1;
    while (accept("[")) {
      count *= peek().is("]") ? 0 : integer();
      expect("]");
    }
    variable.bytes *= count;
  }

  void initializer(Variable& variable) {
    const uint64_t element = size_of(variable.type);
    const auto one = [&] {
      if (peek().kind == Token::Kind::Word) {
        std::string name = word();
        if (name == "generic") {
          expect("(");
          name = word();
          expect(")");
        }
        variable.addresses.emplace_back(variable.init.size(), name);
        variable.init.resize(variable.init.size() + element);
      } else {
        const uint64_t value = integer();
        for (uint64_t byte = 0; byte < element; byte++) {
          variable.init.push_back(static_cast<uint8_t>(value >> 8 * byte));
        }
      }
    };
    if (!accept("{")) return one();
    for (int depth = 1; depth > 0;) {
      if (accept("{")) {
        depth++;
      } else if (accept("}")) {
        depth--;
      } else if (!accept(",")) {
        one();
      }
    }
  }

  // ---- functions ----------------------------------------------------------------------------------------------------

  std::vector<Variable> parameters() {
    std::vector<Variable> params;
    if (!accept("(")) return params;
    uint64_t offset = 0;
    while (!accept(")")) {
      if (!peek().is(".param") && !peek().is(".reg")) fail("a parameter");
      Variable variable;
      variable.space = word().substr(1);
      const bool aligned = peek().is(".align");
      type_and_alignment(variable);
      variable.name = word();
      const uint64_t align = aligned || !peek().is("[") ? variable.align : size_of(variable.type);
      dimensions(variable);
      offset = (offset + align - 1) / align * align;
      variable.offset = offset;
      offset += variable.bytes;
      params.push_back(std::move(variable));
      accept(",");
    }
    return params;
  }

  void function() {
    Function f;
    f.entry = word() == ".entry";
    f.line = peek().line;
    if (peek().is("(")) parameters();  // a return value
    f.name = word();
    f.params = parameters();
    location_ = {};
    for (; !peek().is("{") && !peek().is(";");) {
      const std::string directive = word();
      if (directive == ".reqntid" || directive == ".maxntid" || directive == ".reqnctapercluster") {
        auto& extent = directive == ".reqntid" ? f.reqntid : (directive == ".maxntid" ? f.maxntid : f.cluster);
        extent = {1, 1, 1};
        for (size_t d = 0; d < 3; d++) {
          extent[d] = static_cast<uint32_t>(integer());
          if (!accept(",")) break;
        }
      } else if (directive == ".pragma") {
        while (!accept(";")) next();
      } else {
        while (peek().kind == Token::Kind::Number || peek().is(",")) next();
      }
    }
    if (!accept(";")) {
      f.defined = true;
      function_ = &f;
      expect("{");
      scope();
      function_ = nullptr;
      // Labels at the very end point past the last instruction: leaving a function there is a return.
      Statement end;
      end.opcode = "ret";
      end.line = peek().line;
      f.statements.push_back(end);
    }
    module_.functions.push_back(std::move(f));
  }

  std::string declare(const std::string& name) {
    const size_t depth = scopes_.size();
    const std::string unique = depth == 1 ? name : name + "@" + std::to_string(scope_count_);
    scopes_.back()[name] = unique;
    return unique;
  }

  std::string resolve(const std::string& name) const {
    for (size_t i = scopes_.size(); i-- > 0;) {
      const auto found = scopes_[i].find(name);
      if (found != scopes_[i].end()) return found->second;
    }
    return name;
  }

  // The inside of { }: labels are declared ahead, since a branch may come before its target.
  void scope() {
    scopes_.emplace_back();
    scope_count_++;
    int depth = 0;
    for (size_t i = at_; depth >= 0 && tokens_[i].kind != Token::Kind::End; i++) {
      depth += tokens_[i].is("{") ? 1 : (tokens_[i].is("}") ? -1 : 0);
      if (depth == 0 && tokens_[i].kind == Token::Kind::Word && tokens_[i + 1].is(":")) {
        declare(std::string(tokens_[i].text));
      }
    }
    while (!accept("}")) {
      if (peek().kind == Token::Kind::End) fail("'}'");
      body();
    }
    scopes_.pop_back();
  }

  void body() {
    if (accept("{")) return scope();
    if (accept(";")) return;
    if (peek().is(".reg")) return registers();
    if (peek().is(".loc")) return loc();
    if (peek().is(".pragma")) {
      while (!accept(";")) next();
      return;
    }
    if (peek().is(".shared") || peek().is(".local") || peek().is(".param") || peek().is(".global") ||
        peek().is(".const")) {
      for (Variable& variable : declaration(false)) {
        variable.name = declare(variable.name);
        function_->variables.push_back(std::move(variable));
      }
      return;
    }
    if (peek().kind == Token::Kind::Word && peek(1).is(":")) {
      function_->labels[resolve(word())] = static_cast<uint32_t>(function_->statements.size());
      expect(":");
      return;
    }
    if (peek().kind == Token::Kind::Word && peek().text[0] == '.') fail("an instruction or a known directive");
    statement();
  }

  void registers() {
    expect(".reg");
    std::string type = word().substr(1);
    if (type == "v2" || type == "v4") fail("a scalar register type");
    size_of(type);
    do {
      const std::string name = word();
      if (accept("<")) {
        const uint64_t count = integer();
        expect(">");
        for (uint64_t i = 0; i < count; i++) function_->registers[declare(name + std::to_string(i))] = type;
      } else {
        function_->registers[declare(name)] = type;
      }
    } while (accept(","));
    expect(";");
  }

  void loc() {
    expect(".loc");
    const auto read = [&] {
      Location location;
      location.file = static_cast<uint32_t>(integer());
      location.line = static_cast<uint32_t>(integer());
      location.column = static_cast<uint32_t>(integer());
      return location;
    };
    location_ = read();
    while (accept(",")) {
      const std::string what = word();
      if (what == "inlined_at") {
        function_->inlined_at[location_] = read();
      } else {
        word();  // function_name <label>
        if (accept("+")) integer();
      }
    }
  }

  // ---- instructions -------------------------------------------------------------------------------------------------

  void statement() {
    Statement s;
    s.line = peek().line;
    s.location = location_;
    if (accept("@")) {
      s.guard_negated = accept("!");
      s.guard = resolve(word());
      s.line = peek().line;
    }
    s.opcode = word();
    if (!peek().is(";")) {
      do s.operands.push_back(operand());
      while (accept(","));
    }
    expect(";");
    function_->statements.push_back(std::move(s));
  }

  Operand operand() {
    if (peek().is("{") || peek().is("(")) {
      const bool brace = next().is("{");
      Operand vector;
      vector.kind = Operand::Kind::Vector;
      while (!accept(brace ? "}" : ")")) {
        vector.parts.push_back(operand());
        accept(",");
      }
      return vector;
    }
    if (accept("[")) {
      Operand address;
      address.kind = Operand::Kind::Address;
      while (!accept("]")) {
        address.parts.push_back(operand());
        accept(",");
      }
      if (address.parts.empty()) fail("an address");
      address.offset = address.parts[0].offset;
      return address;
    }
    if (accept("-")) {
      Operand value = number();
      if (value.kind == Operand::Kind::Integer) {
        value.bits = 0 - value.bits;
      } else {
        value.bits ^= value.kind == Operand::Kind::Float32 ? 1ull << 31 : 1ull << 63;
      }
      return value;
    }
    if (peek().kind == Token::Kind::Number) return number();
    Operand name;
    name.negated = accept("!");
    name.name = resolve(word());
    if (accept("|")) name.second = resolve(word());
    if (accept("+")) {
      name.offset = static_cast<int64_t>(integer());
    } else if (peek().is("-")) {
      name.offset = static_cast<int64_t>(integer());
    }
    return name;
  }
};

}  // namespace

Module parse(const std::string& text) {
  return Parser(text).run();
}

}  // namespace fastres::emulator::ptx
