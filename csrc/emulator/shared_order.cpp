#include "emulator/shared_order.h"

#include <algorithm>

namespace fastres::emulator {
namespace {

constexpr uint8_t kWord = 0xf;

// The bytes of word `index` that [address, address + bytes) covers.
uint8_t mask_of(uint32_t index, uint32_t address, uint32_t bytes) {
  const uint32_t first = std::max(address, index * 4) - index * 4;
  const uint32_t end = std::min(address + bytes, index * 4 + 4) - index * 4;
  return static_cast<uint8_t>((1u << end) - (1u << first));
}

}  // namespace

Conflict SharedOrder::against_write(const Cell& cell, uint8_t mask, const SharedAccess& access,
                                    const Knowledge& known) const {
  if (!(cell.mask & mask) || (cell.atomic && access.atomic)) return {};
  if (!known.order.covers(cell.write)) return {Conflict::Kind::kRace, cell.write, true, cell.proxy, 0};
  if (access.proxy == Proxy::Async && cell.proxy == Proxy::Generic && !known.proxied.covers(cell.write)) {
    return {Conflict::Kind::kProxy, cell.write, true, cell.proxy, 0};
  }
  return {};
}

SharedOrder::Set SharedOrder::with(Set set, const SharedAccess& access) {
  const std::pair<Agent, uint64_t> key = {access.at.agent,
                                          uint64_t{access.at.time} * 4 + static_cast<uint64_t>(access.proxy)};
  const auto known = sets_[set].with.find(key);
  if (known != sets_[set].with.end()) return known->second;
  std::vector<Reader> all = sets_[set].all;
  const auto same =
      std::find_if(all.begin(), all.end(), [&](const Reader& r) { return r.at.agent == access.at.agent; });
  if (same == all.end()) {
    all.push_back({access.at, access.proxy});
  } else {
    *same = {access.at, access.proxy};  // an agent's later read implies its earlier ones
  }
  const Set next = static_cast<Set>(sets_.size());
  sets_.push_back({std::move(all), {}});
  sets_[set].with.emplace(key, next);
  sets_[next].with.emplace(key, next);
  return next;
}

// Keeps the sets that some word has.
void SharedOrder::collect() {
  if (sets_.size() < kMostSets) return;
  std::vector<Set> kept(sets_.size(), 0);
  std::vector<Readers> sets(1);
  for (Cell& cell : cells_) {
    if (cell.readers != 0 && kept[cell.readers] == 0) {
      kept[cell.readers] = static_cast<Set>(sets.size());
      sets.push_back({std::move(sets_[cell.readers].all), {}});
    }
    cell.readers = kept[cell.readers];
  }
  sets_ = std::move(sets);
  last_from_ = last_to_ = 0;
  last_reader_ = {};
}

Conflict SharedOrder::read(uint32_t address, uint32_t bytes, const SharedAccess& access, const Knowledge& known) {
  Conflict first;
  const Cell* checked = nullptr;  // words of a tile have the same history, so compare with the last one first
  for (uint32_t i = address / 4; i < (address + bytes + 3) / 4; ++i) {
    Cell& cell = cells_[i];
    if (!first && (checked == nullptr || !cell.same_write(*checked))) {
      first = against_write(cell, mask_of(i, address, bytes), access, known);
      first.address = i * 4;
      checked = mask_of(i, address, bytes) == kWord ? &cell : nullptr;
    }
    if (cell.readers != last_from_ || !(access.at == last_reader_.at) || access.proxy != last_reader_.proxy) {
      last_from_ = cell.readers;
      last_reader_ = access;
      last_to_ = with(last_from_, access);
    }
    cell.readers = last_to_;
  }
  return first;
}

Conflict SharedOrder::write(uint32_t address, uint32_t bytes, const SharedAccess& access, const Knowledge& known) {
  collect();
  Conflict first;
  Set checked = 0;
  for (uint32_t i = address / 4; i < (address + bytes + 3) / 4; ++i) {
    Cell& cell = cells_[i];
    const uint8_t mask = mask_of(i, address, bytes);
    if (!first) {
      first = against_write(cell, mask, access, known);
      first.address = i * 4;
    }
    if (mask == kWord) {
      if (!first && cell.readers != checked) {
        checked = cell.readers;
        for (const Reader& reader : sets_[checked].all) {
          if (known.order.covers(reader.at) || (access.atomic && cell.atomic)) continue;
          first = {Conflict::Kind::kRace, reader.at, false, reader.proxy, i * 4};
          break;
        }
      }
      cell.readers = 0;
    }
    cell.mask = cell.write == access.at ? cell.mask | mask : mask;
    cell.write = access.at;
    cell.proxy = access.proxy;
    cell.atomic = access.atomic;
  }
  return first;
}

}  // namespace fastres::emulator
