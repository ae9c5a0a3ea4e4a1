#include "emulator/global_order.h"

namespace fastres::emulator {

GlobalOrder::Page& GlobalOrder::page(uint64_t offset) {
  auto& page = pages_[offset / kPage];
  if (!page) page = std::make_unique<Page>();
  return *page;
}

std::string GlobalOrder::read(uint64_t offset, uint32_t bytes, uint64_t block, bool strong, const Blocks& known) {
  Page& p = page(offset);
  const uint32_t me = static_cast<uint32_t>(block) + 1;
  std::string conflict;
  for (uint64_t i = offset % kPage; i < offset % kPage + bytes; i++) {
    const uint32_t writer = p.writer[i];
    if (writer != 0 && writer != me && !(strong && p.strong[i]) && conflict.empty() && !known.count(writer - 1)) {
      conflict = "written by block " + std::to_string(writer - 1);
    }
    if (!strong && p.reader[i] != me) p.reader[i] = p.reader[i] == 0 ? me : kMany;
  }
  return conflict;
}

std::string GlobalOrder::write(uint64_t offset, uint32_t bytes, uint64_t block, bool strong, const Blocks& known) {
  Page& p = page(offset);
  const uint32_t me = static_cast<uint32_t>(block) + 1;
  std::string conflict;
  for (uint64_t i = offset % kPage; i < offset % kPage + bytes; i++) {
    const uint32_t writer = p.writer[i], reader = p.reader[i];
    if (conflict.empty() && writer != 0 && writer != me && !(strong && p.strong[i]) && !known.count(writer - 1)) {
      conflict = "written by block " + std::to_string(writer - 1);
    }
    // Once several blocks have read a byte, only a block that has acquired something may go on to write it.
    if (conflict.empty() && reader != 0 && reader != me &&
        (reader == kMany ? known.empty() : !known.count(reader - 1))) {
      conflict = reader == kMany ? "read by several blocks" : "read by block " + std::to_string(reader - 1);
    }
    p.writer[i] = me;
    p.strong[i] = strong;
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
