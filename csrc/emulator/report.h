// What a launch found and counted.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastres::emulator {

// One finding, in the words of a sanitizer's report. Numbers that make no sense for a kind are -1.
struct Finding {
  std::string kind;  // "out-of-bounds", "race", "deadlock", ...: docs/emulator.md lists them
  std::string message;
  std::string expected;
  std::string kernel;
  std::array<int64_t, 3> block{-1, -1, -1}, thread{-1, -1, -1};
  int64_t warp = -1, lane = -1;
  uint32_t ptx_line = 0;
  std::string ptx;
  std::string source;  // file:line, and what it was inlined into
  std::string space;
  uint64_t address = 0;
  uint32_t bytes = 0;
  uint64_t count = 1;  // how often the same instruction gave the same kind
};

struct Traffic {
  uint64_t read_requested = 0, read_unique = 0, write_requested = 0, write_unique = 0;
};

struct Report {
  std::string kernel;
  uint64_t seed = 0;
  std::vector<Finding> findings;
  std::map<std::string, uint64_t> instructions;  // opcode -> executions by a warp
  std::map<std::string, Traffic> traffic;        // global, shared, local, param, const
  uint64_t warp_instructions = 0, thread_instructions = 0, macs = 0;
  uint64_t blocks = 0;
};

// Ends a strict launch at its first finding, and any launch that can't go on.
struct FaultError : std::runtime_error {
  Finding finding;
  explicit FaultError(Finding f) : std::runtime_error(f.kind + ": " + f.message), finding(std::move(f)) {}
};

}  // namespace fastres::emulator
