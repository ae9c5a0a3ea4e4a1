#include "emulator/machine.h"

#include <algorithm>
#include <numeric>

#include "emulator/async_state.h"

namespace fastres::emulator {

Block::Block(Machine& owner, uint64_t block_id, Extent place) : machine(owner), id(block_id), position(place) {
  const Kernel& kernel = machine.kernel;
  shared.begin = kernel.shared_base;
  shared.end = kernel.static_shared_end + machine.launch.dynamic_shared;
  shared.data.assign(shared.end, 0xff);  // NaN in every float type
  shared.shadow = Shadow(shared.end, false);
  shared.writers.assign(shared.end, 0);
}

bool Block::done() const {
  return std::all_of(warps.begin(), warps.end(), [](const auto& warp) { return warp->done(); });
}

Machine::Machine(const Program& owner, const Kernel& which, Launch how, std::vector<Region> regions)
    : program(owner),
      kernel(which),
      launch(std::move(how)),
      memory(*this,
             [&] {
               for (const auto& global : owner.globals) {
                 regions.push_back({"variable " + global->name, reinterpret_cast<uint64_t>(global->data), global->bytes,
                                    true, !global->constant});
               }
               return std::move(regions);
             }()),
      random(launch.seed * 0x9e3779b97f4a7c15ull + 1),
      executions(which.code.size()) {
  validate();
}

void Machine::validate() const {
  const auto fail = [this](const std::string& why) { throw PtxError("launch of " + kernel.name + ": " + why); };
  const auto text = [](const Extent& e) {
    return "(" + std::to_string(e[0]) + ", " + std::to_string(e[1]) + ", " + std::to_string(e[2]) + ")";
  };
  const auto count = [](const Extent& e) { return uint64_t{e[0]} * e[1] * e[2]; };
  const ptx::Function& f = *kernel.function;
  if (count(launch.grid) == 0) fail("grid is " + text(launch.grid) + ", expected no zero");
  if (count(launch.block) == 0 || count(launch.block) > 1024) {
    fail("block is " + text(launch.block) + ", expected 1 to 1024 threads");
  }
  if (count(f.reqntid) != 0 && f.reqntid != launch.block) {
    fail("block is " + text(launch.block) + ", the kernel requires " + text(f.reqntid));
  }
  if (count(f.maxntid) != 0 && count(launch.block) > count(f.maxntid)) {
    fail("block is " + text(launch.block) + ", the kernel allows " + text(f.maxntid));
  }
  if (count(f.cluster) != 0 && f.cluster != launch.cluster) {
    fail("cluster is " + text(launch.cluster) + ", the kernel requires " + text(f.cluster));
  }
  for (size_t d = 0; d < 3; d++) {
    if (launch.cluster[d] == 0 || launch.grid[d] % launch.cluster[d] != 0) {
      fail("cluster is " + text(launch.cluster) + ", which doesn't divide the grid " + text(launch.grid));
    }
  }
  if (count(launch.cluster) > 16) fail("cluster is " + text(launch.cluster) + ", expected at most 16 blocks");
  if (launch.resident == 0) fail("resident is 0, expected at least 1");
  const uint32_t shared = kernel.static_shared_end - kernel.shared_base + launch.dynamic_shared;
  if (shared > 227 * 1024) {
    fail("a block needs " + std::to_string(shared) + " bytes of shared memory, expected at most 232448");
  }
  if (launch.params.size() != kernel.param_bytes) {
    fail("got " + std::to_string(launch.params.size()) + " bytes of parameters, expected " +
         std::to_string(kernel.param_bytes));
  }
}

void Machine::admit() {
  const Extent& c = launch.cluster;
  const Extent clusters = {launch.grid[0] / c[0], launch.grid[1] / c[1], launch.grid[2] / c[2]};
  const uint32_t blocks = c[0] * c[1] * c[2];
  const uint32_t warps = (launch.block[0] * launch.block[1] * launch.block[2] + 31) / 32;
  clusters_ = uint64_t{clusters[0]} * clusters[1] * clusters[2];
  while (next_cluster_ < clusters_ && resident_.size() < size_t{launch.resident} * blocks) {
    const uint64_t id = next_cluster_++;
    const uint32_t x = static_cast<uint32_t>(id % clusters[0]),
                   y = static_cast<uint32_t>(id / clusters[0] % clusters[1]),
                   z = static_cast<uint32_t>(id / clusters[0] / clusters[1]);
    std::vector<Block*> members;
    for (uint32_t rank = 0; rank < blocks; rank++) {
      const Extent place = {x * c[0] + rank % c[0], y * c[1] + rank / c[0] % c[1], z * c[2] + rank / (c[0] * c[1])};
      const uint64_t linear = place[0] + uint64_t{launch.grid[0]} * (place[1] + uint64_t{launch.grid[1]} * place[2]);
      resident_.push_back(std::make_unique<Block>(*this, linear, place));
      resident_.back()->rank = rank;
      members.push_back(resident_.back().get());
    }
    for (Block* block : members) {
      block->cluster = members;
      for (uint32_t w = 0; w < warps; w++) block->warps.push_back(std::make_unique<Warp>(*block, w));
      block->async = std::make_shared<AsyncState>(*block);
    }
    report.blocks += blocks;
  }
}

// Clusters leave as a whole: their shared memory may be in use by one another until then.
void Machine::retire() {
  const auto finished = [](const std::unique_ptr<Block>& block) {
    return std::all_of(block->cluster.begin(), block->cluster.end(), [](const Block* b) { return b->done(); });
  };
  std::vector<bool> leaves;
  for (const auto& block : resident_) leaves.push_back(finished(block));
  for (size_t i = 0; i < resident_.size(); i++) {
    if (leaves[i]) resident_[i]->async->finish();  // may throw, so before anything moves
  }
  std::deque<std::unique_ptr<Block>> stay;
  for (size_t i = 0; i < resident_.size(); i++) {
    if (leaves[i]) {
      memory.retire(*resident_[i]);
    } else {
      stay.push_back(std::move(resident_[i]));
    }
  }
  resident_.swap(stay);
}

Report Machine::run() {
  static constexpr uint64_t kBudgets[] = {1, 4, 16, 64, 256};
  admit();
  std::vector<Warp*> warps;
  bool changed = true;
  while (!resident_.empty()) {
    if (changed) {
      warps.clear();
      for (const auto& block : resident_) {
        for (const auto& warp : block->warps) {
          if (!warp->done()) warps.push_back(warp.get());
        }
      }
      changed = false;
    }
    if (!pending_.empty() && below(4) == 0) {
      const size_t which = below(pending_.size());
      const std::unique_ptr<Pending> pending = std::move(pending_[which]);
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(which));
      pending->happen(*this);
      notify();
    }
    Warp* chosen = nullptr;
    const size_t start = below(warps.size());
    for (size_t i = 0; i < warps.size() && chosen == nullptr; i++) {
      Warp* warp = warps[(start + i) % warps.size()];
      if (warp->runnable()) chosen = warp;
    }
    if (chosen == nullptr) {
      if (pending_.empty()) deadlock();
      continue;
    }
    chosen->run(kBudgets[below(5)]);
    if (clock > launch.limit) {
      Finding finding;
      finding.kind = "endless";
      finding.message = "still running after " + std::to_string(clock) + " warp instructions";
      finding.expected = "an end, or a larger limit";
      locate(finding, *chosen, kernel.code[chosen->done() ? 0 : chosen->groups()[0].pc], -1);
      fatal(std::move(finding));
    }
    if (chosen->done()) {
      changed = true;
      if (chosen->block.done()) {
        retire();
        admit();
      }
    }
  }
  while (!pending_.empty()) {  // what nobody waited for
    const std::unique_ptr<Pending> pending = std::move(pending_.back());
    pending_.pop_back();
    pending->happen(*this);
  }
  summarize();
  return std::move(report);
}

Report Machine::stopped() {
  for (const auto& block : resident_) memory.retire(*block);
  summarize();
  return std::move(report);
}

void Machine::deadlock() {
  Finding finding;
  finding.kind = "deadlock";
  size_t listed = 0, groups = 0;
  for (const auto& block : resident_) {
    for (const auto& warp : block->warps) {
      for (const Group& group : warp->groups()) {
        groups++;
        if (finding.kernel.empty()) locate(finding, *warp, kernel.code[group.pc], __builtin_ctz(group.mask));
        if (listed++ < 16) finding.message += (listed > 1 ? "; " : "") + describe_wait(*warp, group);
      }
    }
  }
  if (groups > 16) finding.message += "; and " + std::to_string(groups - 16) + " more";
  finding.expected = "some thread that can go on";
  fatal(std::move(finding));
}

void Machine::locate(Finding& finding, const Warp& warp, const Instruction& instruction, int lane) const {
  const ptx::Statement& statement = *instruction.source;
  finding.kernel = kernel.name;
  for (size_t d = 0; d < 3; d++) finding.block[d] = warp.block.position[d];
  finding.warp = warp.index;
  finding.lane = lane;
  if (lane >= 0) {
    const uint32_t thread = warp.index * 32 + static_cast<uint32_t>(lane);
    finding.thread = {thread % launch.block[0], thread / launch.block[0] % launch.block[1],
                      thread / (launch.block[0] * launch.block[1])};
  }
  finding.ptx_line = statement.line;
  if (statement.line >= 1 && statement.line <= program.module.lines.size()) {
    const std::string& line = program.module.lines[statement.line - 1];
    const size_t from = line.find_first_not_of(" \t");
    const size_t to = std::min(line.find("//"), line.size());
    if (from != line.npos && from < to) finding.ptx = line.substr(from, to - from);
    while (!finding.ptx.empty() && std::isspace(static_cast<unsigned char>(finding.ptx.back()))) finding.ptx.pop_back();
  }
  ptx::Location location = statement.location;
  const auto& inlined = kernel.function->inlined_at;
  for (int depth = 0; depth < 16 && location.file != 0; depth++) {
    const auto file = program.module.files.find(location.file);
    finding.source += (depth ? ", inlined at " : "") + (file == program.module.files.end() ? "?" : file->second) + ":" +
                      std::to_string(location.line);
    const auto outer = inlined.find(location);
    if (outer == inlined.end()) break;
    location = outer->second;
  }
}

void Machine::fault(Finding finding, const Warp& warp, const Instruction& instruction, int lane) {
  if (std::find(launch.ignore.begin(), launch.ignore.end(), finding.kind) != launch.ignore.end()) return;
  for (Finding& known : report.findings) {
    if (known.kind == finding.kind && known.ptx_line == instruction.source->line) {
      known.count++;
      return;
    }
  }
  locate(finding, warp, instruction, lane);
  if (launch.strict) throw FaultError(std::move(finding));
  report.findings.push_back(std::move(finding));
}

void Machine::fatal(Finding finding) {
  throw FaultError(std::move(finding));
}

void Machine::summarize() {
  memory.summarize();
  report.kernel = kernel.name;
  report.seed = launch.seed;
  for (size_t i = 0; i < executions.size(); i++) {
    if (executions[i] == 0) continue;
    report.instructions[kernel.opcodes[kernel.code[i].opcode]] += executions[i];
    report.warp_instructions += executions[i];
    report.macs += executions[i] * kernel.code[i].macs;
  }
  for (const Space space : {Space::Global, Space::Shared, Space::Local, Space::Param, Space::Const}) {
    const Traffic& traffic = memory.traffic[static_cast<size_t>(space)];
    if (traffic.read_requested + traffic.write_requested != 0) report.traffic[name_of(space)] = traffic;
  }
}

}  // namespace fastres::emulator
