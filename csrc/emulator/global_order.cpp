#include "emulator/global_order.h"

namespace fastres::emulator {

GlobalOrder::Page& GlobalOrder::page(uint64_t offset) {
  auto& page = pages_[offset / kPage];
  if (!page) page = std::make_unique<Page>();
  return *page;
}

std::string GlobalOrder::against_write(const Page& p, uint64_t i, const GlobalActor& actor) {
  const uint32_t writer = p.writer[i];
  if (writer == 0 || (actor.strong && p.strong[i])) return "";
  if (writer != actor.block + 1) {
    return actor.known.count(writer - 1) ? "" : "written by block " + std::to_string(writer - 1);
  }
  if (actor.strong || p.strong[i] || actor.clock == nullptr || p.written[i].time == 0) return "";
  return actor.clock->covers(p.written[i]) ? "" : "written by another warp of the block";
}

std::string GlobalOrder::read(uint64_t offset, uint32_t bytes, const GlobalActor& actor) {
  Page& p = page(offset);
  const uint32_t me = static_cast<uint32_t>(actor.block) + 1;
  std::string conflict;
  for (uint64_t i = offset % kPage; i < offset % kPage + bytes; i++) {
    if (conflict.empty() && p.writer[i] != 0) conflict = against_write(p, i, actor);
    if (actor.strong) continue;
    if (p.reader[i] != me) p.reader[i] = p.reader[i] == 0 ? me : kMany;
    p.read[i] = actor.clock ? actor.at : Epoch();
  }
  return conflict;
}

std::string GlobalOrder::write(uint64_t offset, uint32_t bytes, const GlobalActor& actor) {
  Page& p = page(offset);
  const uint32_t me = static_cast<uint32_t>(actor.block) + 1;
  std::string conflict;
  for (uint64_t i = offset % kPage; i < offset % kPage + bytes; i++) {
    const uint32_t reader = p.reader[i];
    if (conflict.empty() && p.writer[i] != 0) conflict = against_write(p, i, actor);
    if (conflict.empty() && reader == me) {
      const bool ordered = actor.clock == nullptr || p.read[i].time == 0 || actor.clock->covers(p.read[i]);
      if (!ordered) conflict = "read by another warp of the block";
    } else if (conflict.empty() && reader == kMany) {
      // Once several blocks have read a byte, only a block that has acquired something may go on to write it.
      if (actor.known.empty()) conflict = "read by several blocks";
    } else if (conflict.empty() && reader != 0 && !actor.known.count(reader - 1)) {
      conflict = "read by block " + std::to_string(reader - 1);
    }
    p.writer[i] = me;
    p.strong[i] = actor.strong;
    p.written[i] = actor.clock ? actor.at : Epoch();
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
