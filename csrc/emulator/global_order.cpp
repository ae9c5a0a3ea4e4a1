#include "emulator/global_order.h"

namespace fastres::emulator {

std::string GlobalOrder::against_write(const Writes& writes, uint64_t i, const GlobalActor& actor) {
  const uint32_t writer = writes.block[i];
  if (writer == 0 || (actor.strong && writes.strong[i])) return "";
  if (writer != actor.block + 1) {
    return actor.known.count(writer - 1) ? "" : "written by block " + std::to_string(writer - 1);
  }
  if (actor.strong || writes.strong[i] || actor.clock == nullptr || writes.at[i].time == 0) return "";
  return actor.clock->covers(writes.at[i]) ? "" : "written by another warp of the block";
}

std::string GlobalOrder::against_read(const Reads& reads, uint64_t i, const GlobalActor& actor) {
  const uint32_t reader = reads.block[i];
  if (reader == 0) return "";
  if (reader == actor.block + 1) {
    const bool ordered = actor.clock == nullptr || reads.at[i].time == 0 || actor.clock->covers(reads.at[i]);
    return ordered ? "" : "read by another warp of the block";
  }
  // Once several blocks have read a byte, only a block that has acquired something may go on to write it.
  if (reader == kMany) return actor.known.empty() ? "read by several blocks" : "";
  return actor.known.count(reader - 1) ? "" : "read by block " + std::to_string(reader - 1);
}

std::string GlobalOrder::read(uint64_t offset, uint32_t bytes, const GlobalActor& actor) {
  const uint64_t page = offset / kPage, first = offset % kPage;
  std::string conflict;
  if (const Writes* writes = writes_[page].get()) {
    for (uint64_t i = first; i < first + bytes && conflict.empty(); i++) conflict = against_write(*writes, i, actor);
  }
  if (actor.strong) return conflict;
  auto& reads = reads_[page];
  if (!reads) reads = std::make_unique<Reads>();
  const uint32_t me = static_cast<uint32_t>(actor.block) + 1;
  for (uint64_t i = first; i < first + bytes; i++) {
    if (reads->block[i] != me) reads->block[i] = reads->block[i] == 0 ? me : kMany;
    reads->at[i] = actor.clock ? actor.at : Epoch();
  }
  return conflict;
}

std::string GlobalOrder::write(uint64_t offset, uint32_t bytes, const GlobalActor& actor) {
  const uint64_t page = offset / kPage, first = offset % kPage;
  auto& writes = writes_[page];
  if (!writes) writes = std::make_unique<Writes>();
  std::string conflict;
  for (uint64_t i = first; i < first + bytes; i++) {
    if (conflict.empty()) conflict = against_write(*writes, i, actor);
    if (conflict.empty() && reads_[page]) conflict = against_read(*reads_[page], i, actor);
    writes->block[i] = static_cast<uint32_t>(actor.block) + 1;
    writes->strong[i] = actor.strong;
    writes->at[i] = actor.clock ? actor.at : Epoch();
  }
  return conflict;
}

void GlobalOrder::release(uint64_t offset, uint64_t block, const Blocks& known) {
  Blocks& flag = flags_[offset];
  flag.insert(known.begin(), known.end());
  flag.insert(block);
}

const Blocks* GlobalOrder::released(uint64_t offset) const {
  const auto found = flags_.find(offset);
  return found == flags_.end() ? nullptr : &found->second;
}

}  // namespace fastres::emulator
