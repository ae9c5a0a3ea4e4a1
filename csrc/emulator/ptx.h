// The text of a PTX module as a tree: what is declared, and each instruction with its operands. Nothing here knows what
// an instruction means. Names are resolved to one flat name space per function (a name declared in a nested scope gets
// a suffix), so that inline assembly may declare the same register or label in every expansion.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace fastres::emulator {

// Bad PTX, an instruction that the emulator doesn't know, or a launch that makes no sense.
struct PtxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace ptx {

struct Operand {
  enum class Kind { Name, Integer, Float32, Float64, Vector, Address };
  Kind kind = Kind::Name;
  std::string name;            // Name: register, label, variable, special register or '_'
  std::string second;          // Name: the q of p|q, else empty
  uint64_t bits = 0;           // Integer (two's complement), Float32, Float64
  int64_t offset = 0;          // Name and Address: a constant added
  bool negated = false;        // Name: !p
  std::vector<Operand> parts;  // Vector: its elements. Address: the base, then any further parts (tensor coordinates)
};

struct Location {
  uint32_t file = 0, line = 0, column = 0;
  bool operator<(const Location& o) const {
    return std::array{file, line, column} < std::array{o.file, o.line, o.column};
  }
};

struct Statement {
  std::string guard;  // the guard predicate's name, or empty
  bool guard_negated = false;
  std::string opcode;  // with every modifier
  std::vector<Operand> operands;
  uint32_t line = 0;  // in the PTX text, from 1
  Location location;  // from .loc; file 0 if none came before
};

struct Variable {
  std::string name;
  std::string space;  // shared, global, const, local, param
  std::string type;   // b8, u64, ...
  uint64_t align = 1, bytes = 0;
  uint64_t offset = 0;                                      // param only: in the parameter block
  bool external = false;                                    // .extern: dynamic shared memory
  std::vector<uint8_t> init;                                // empty: zeros
  std::vector<std::pair<uint64_t, std::string>> addresses;  // initialisers that are the address of another variable
};

struct Function {
  std::string name;
  bool entry = false, defined = false;
  std::vector<Variable> params;
  std::vector<Variable> variables;                         // shared, local, ... declared in the body
  std::unordered_map<std::string, std::string> registers;  // name -> type
  std::unordered_map<std::string, uint32_t> labels;        // name -> index of the statement that follows
  std::vector<Statement> statements;
  std::map<Location, Location> inlined_at;
  std::array<uint32_t, 3> reqntid{}, maxntid{}, cluster{};  // zeros: not given
  uint32_t line = 0;
};

struct Module {
  std::string version, target;
  std::map<uint32_t, std::string> files;
  std::vector<Variable> variables;
  std::vector<Function> functions;
  std::vector<std::string> lines;  // the text, for reports
};

// Throws PtxError with the line and what was expected there.
Module parse(const std::string& text);

// Size in bytes of a fundamental type's name ("b32"); 0 for pred. Throws PtxError on any other word.
uint32_t size_of(const std::string& type);

}  // namespace ptx
}  // namespace fastres::emulator
