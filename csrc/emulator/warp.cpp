#include <algorithm>
#include <bitset>

#include "emulator/machine.h"

namespace fastres::emulator {

namespace {

Mask existing_lanes(const Block& block, uint32_t warp) {
  const Extent& extent = block.machine.launch.block;
  const uint32_t threads = extent[0] * extent[1] * extent[2];
  const uint32_t left = threads - warp * 32;
  return left >= 32 ? kFullMask : (1u << left) - 1;
}

}  // namespace

Warp::Warp(Block& owner, uint32_t warp_index)
    : block(owner), index(warp_index), initial(existing_lanes(owner, warp_index)) {
  const Kernel& kernel = block.machine.kernel;
  storage_.resize(kernel.register_words / 16 + 1);
  registers_.begin = storage_.front().words.data();
  std::fill_n(registers_.begin, kernel.register_words, 0xffffffffu);  // NaN in every float type
  predicates_.assign(kernel.predicates, 0);
  predicates_[0] = kFullMask;
  local.assign(size_t{32} * kernel.local_bytes, 0xff);
  for (const Constant& constant : kernel.constants) {
    if (constant.wide) {
      std::fill_n(lanes<uint64_t>(constant.slot), 32, constant.value);
    } else {
      std::fill_n(lanes<uint32_t>(constant.slot), 32, static_cast<uint32_t>(constant.value));
    }
  }
  fill_specials();
  groups_.push_back({0, initial});
}

void Warp::fill_specials() {
  const Machine& machine = block.machine;
  const Launch& launch = machine.launch;
  const Extent& grid = launch.grid;
  const Extent& cluster = launch.cluster;
  const Extent& p = block.position;
  for (const SpecialSlot& special : machine.kernel.specials) {
    for (uint32_t lane = 0; lane < 32; lane++) {
      const uint32_t thread = index * 32 + lane;
      uint64_t value = 0;
      bool wide = false;
      const uint32_t which = static_cast<uint32_t>(special.special);
      const auto dimension = [&](Special first) { return which - static_cast<uint32_t>(first); };
      switch (special.special) {
        case Special::TidX:
          value = thread % launch.block[0];
          break;
        case Special::TidY:
          value = thread / launch.block[0] % launch.block[1];
          break;
        case Special::TidZ:
          value = thread / (launch.block[0] * launch.block[1]);
          break;
        case Special::NtidX:
        case Special::NtidY:
        case Special::NtidZ:
          value = launch.block[dimension(Special::NtidX)];
          break;
        case Special::CtaidX:
        case Special::CtaidY:
        case Special::CtaidZ:
          value = p[dimension(Special::CtaidX)];
          break;
        case Special::NctaidX:
        case Special::NctaidY:
        case Special::NctaidZ:
          value = grid[dimension(Special::NctaidX)];
          break;
        case Special::ClusterIdX:
        case Special::ClusterIdY:
        case Special::ClusterIdZ:
          value = p[dimension(Special::ClusterIdX)] / cluster[dimension(Special::ClusterIdX)];
          break;
        case Special::NClusterIdX:
        case Special::NClusterIdY:
        case Special::NClusterIdZ:
          value = grid[dimension(Special::NClusterIdX)] / cluster[dimension(Special::NClusterIdX)];
          break;
        case Special::ClusterCtaidX:
        case Special::ClusterCtaidY:
        case Special::ClusterCtaidZ:
          value = p[dimension(Special::ClusterCtaidX)] % cluster[dimension(Special::ClusterCtaidX)];
          break;
        case Special::ClusterNctaidX:
        case Special::ClusterNctaidY:
        case Special::ClusterNctaidZ:
          value = cluster[dimension(Special::ClusterNctaidX)];
          break;
        case Special::ClusterCtaRank:
          value = block.rank;
          break;
        case Special::ClusterNctaRank:
          value = cluster[0] * cluster[1] * cluster[2];
          break;
        case Special::IsExplicitCluster:
          value = cluster[0] * cluster[1] * cluster[2] > 1;
          break;
        case Special::LaneId:
          value = lane;
          break;
        case Special::WarpId:
          value = index;
          break;
        case Special::NWarpId:
          value = (launch.block[0] * launch.block[1] * launch.block[2] + 31) / 32;
          break;
        case Special::LanemaskEq:
          value = 1u << lane;
          break;
        case Special::LanemaskLt:
          value = (1u << lane) - 1;
          break;
        case Special::LanemaskLe:
          value = (2ull << lane) - 1;
          break;
        case Special::LanemaskGt:
          value = ~((2ull << lane) - 1) & kFullMask;
          break;
        case Special::LanemaskGe:
          value = ~((1ull << lane) - 1) & kFullMask;
          break;
        case Special::SmId:
          value = block.id % launch.resident;
          break;
        case Special::NSmId:
          value = launch.resident;
          break;
        case Special::DynamicSmemSize:
          value = launch.dynamic_shared;
          break;
        case Special::TotalSmemSize:
          value = block.shared.end - block.shared.begin;
          break;
        case Special::GridId:
        case Special::Clock64:
        case Special::GlobalTimer:
          wide = true;
          break;
        case Special::Clock:
          break;
      }
      if (wide) {
        lanes<uint64_t>(special.slot)[lane] = value;
      } else {
        lanes<uint32_t>(special.slot)[lane] = static_cast<uint32_t>(value);
      }
    }
  }
}

Mask Warp::live() const {
  Mask mask = 0;
  for (const Group& group : groups_) mask |= group.mask;
  return mask;
}

bool Warp::runnable() const {
  const uint64_t events = block.machine.events();
  return std::any_of(groups_.begin(), groups_.end(),
                     [&](const Group& group) { return !group.waiting || group.waited_at != events; });
}

// The lowest runnable group; after many turns of it, or now and then, another one.
size_t Warp::pick() {
  Machine& machine = block.machine;
  size_t best = groups_.size(), count = 0;
  for (size_t i = 0; i < groups_.size(); i++) {
    if (groups_[i].waiting && groups_[i].waited_at == machine.events()) continue;
    count++;
    if (best == groups_.size() || groups_[i].pc < groups_[best].pc) best = i;
  }
  if (count <= 1 || ++turns_ % 8 != 0) return best;
  size_t skip = machine.below(count);
  for (size_t i = 0; i < groups_.size(); i++) {
    if (groups_[i].waiting && groups_[i].waited_at == machine.events()) continue;
    if (skip-- == 0) return i;
  }
  return best;
}

// Groups at the same instruction become one, unless one of them is in the middle of it.
void Warp::merge() {
  for (size_t i = 0; i < groups_.size(); i++) {
    for (size_t j = i + 1; j < groups_.size();) {
      if (groups_[i].pc == groups_[j].pc && groups_[i].ticket == 0 && groups_[j].ticket == 0) {
        groups_[i].mask |= groups_[j].mask;
        groups_[i].waiting = false;
        groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(j));
        if (current_ == j) current_ = i;
        if (current_ > j) current_--;
      } else {
        j++;
      }
    }
  }
}

void Warp::run(uint64_t budget) {
  Machine& machine = block.machine;
  const std::vector<Instruction>& code = machine.kernel.code;
  current_ = pick();
  while (budget-- > 0) {
    Group* group = &groups_[current_];
    const uint32_t pc = group->pc;
    const Instruction& instruction = code[pc];
    const Mask mask = group->mask & (predicates_[instruction.guard] ^ instruction.guard_flip);
    Step step = Step::Next;
    if (mask != 0) {
      if (!group->waiting) {
        machine.executions[pc]++;
        machine.report.thread_instructions += std::bitset<32>(mask).count();
        machine.clock++;
        if (machine.launch.trace) {
          machine.launch.trace("block " + std::to_string(block.id) + " warp " + std::to_string(index) + " mask " +
                               std::bitset<32>(mask).to_string() + " line " + std::to_string(instruction.source->line) +
                               ": " + machine.program.module.lines[instruction.source->line - 1]);
        }
      }
      step = instruction.run(*this, instruction, mask);
    }
    if (step == Step::Moved) {
      if (groups_.empty()) return;
      if (current_ >= groups_.size()) current_ = 0;
      if (groups_.size() > 1) {
        merge();
        current_ = pick();
        if (current_ >= groups_.size()) return;  // every group waits
      }
      continue;
    }
    group = &groups_[current_];
    if (step == Step::Wait) {
      if (mask != group->mask) {  // the guard's other lanes don't wait
        groups_.push_back({pc + 1, group->mask & ~mask});
        group = &groups_[current_];
        group->mask = mask;
      }
      group->waiting = true;
      group->waited_at = machine.events();
      if (groups_.size() > 1) merge();
      return;
    }
    group->pc = pc + 1;
    group->ticket = 0;
    group->waiting = false;
    if (groups_.size() > 1) {
      merge();
      const uint32_t here = groups_[current_].pc;
      const bool behind = std::any_of(groups_.begin(), groups_.end(), [&](const Group& other) {
        return other.pc < here && !(other.waiting && other.waited_at == machine.events());
      });
      if (behind) return;  // let the ones behind catch up
    }
  }
}

Step Warp::branch(Mask mask, uint32_t target) {
  Group& group = groups_[current_];
  if (mask == group.mask) {
    group.pc = target;
  } else {
    group.mask &= ~mask;
    group.pc++;
    groups_.push_back({target, mask});
  }
  return Step::Moved;
}

Step Warp::exit(Mask mask) {
  Group& group = groups_[current_];
  if (mask == group.mask) {
    groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(current_));
    current_ = 0;
  } else {
    group.mask &= ~mask;
    group.pc++;
  }
  check_barriers(block);
  block.machine.notify();
  return Step::Moved;
}

}  // namespace fastres::emulator
