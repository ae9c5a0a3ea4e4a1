#include "emulator/mbarrier.h"

namespace fastres::emulator {
namespace {

const std::string kNotInitialised = "used before mbarrier.init or after mbarrier.inval";

std::string number(int64_t value) {
  return std::to_string(value);
}

}  // namespace

std::string Mbarrier::init(uint32_t count, Agent agent) {
  if (count == 0 || count > kMaxCount) return "mbarrier.init with count " + number(count) + ", expected 1..1048575";
  std::string error;
  if (valid_) error = "mbarrier.init over a live object (" + describe() + "), expected mbarrier.inval first";
  valid_ = true;
  expected_ = pending_ = count;
  phase_ = 0;
  bytes_ = 0;
  agent_ = agent;
  current_ = released_ = {};
  watchers_.clear();
  return error;
}

std::string Mbarrier::invalidate() {
  if (!valid_) return kNotInitialised;
  valid_ = false;
  if (bytes_ != 0) return "mbarrier.inval while copies are in flight (" + describe() + ")";
  if (!watchers_.empty()) return "mbarrier.inval while " + number(watchers_.size()) + " warp(s) wait";
  return {};
}

std::string Mbarrier::arrive(uint32_t count, const Knowledge& known, bool drop, bool no_complete) {
  if (!valid_) return kNotInitialised;
  if (count == 0 || count > pending_) {
    return "arrival of " + number(count) + " where " + number(pending_) + " of " + number(expected_) +
           " are pending in phase " + number(phase_);
  }
  if (no_complete && count == pending_) return "arrive.noComplete would complete phase " + number(phase_);
  current_.join(known);
  pending_ -= count;
  if (drop) expected_ -= count;
  return try_complete();
}

std::string Mbarrier::expect_bytes(uint32_t bytes) {
  if (!valid_) return kNotInitialised;
  bytes_ += bytes;
  if (bytes_ > kMaxBytes) return "expects " + number(bytes_) + " transaction bytes, the most is 1048575";
  return {};
}

std::string Mbarrier::complete_bytes(uint32_t bytes, uint32_t issued, const Knowledge& known) {
  if (!valid_) return kNotInitialised;
  std::string error;
  if (issued != phase_) {
    error = number(bytes) + " bytes issued in phase " + number(issued) + " arrive in phase " + number(phase_) +
            ": the phase they belong to expected fewer";
  }
  current_.join(known);
  current_.order.raise({agent_, issued + 1});
  bytes_ -= bytes;
  if (bytes_ < -kMaxBytes) error = "transaction bytes fell below -1048575";
  const std::string completion = try_complete();
  return error.empty() ? completion : error;
}

std::string Mbarrier::try_complete() {
  if (pending_ != 0 || bytes_ != 0) return {};
  released_.join(current_);
  ++phase_;
  pending_ = expected_;
  for (const auto& [waiter, phase] : watchers_) {
    if (phase_ - phase >= 2) {
      return "phase " + number(phase_ - 1) + " completed while agent " + number(waiter) + " still waits for phase " +
             number(phase) + ": their parities alias";
    }
  }
  return {};
}

std::string Mbarrier::watch(Agent waiter, uint32_t parity, bool done) {
  if (!valid_) return kNotInitialised;
  const auto known = watchers_.find(waiter);
  const bool overtaken = known != watchers_.end() && phase_ - known->second >= 2;
  if (overtaken) {
    const std::string text = "the wait for phase " + number(known->second) + " was overtaken: phase " + number(phase_) +
                             " is current, and parity " + number(parity) + " aliases";
    watchers_.erase(known);
    return text;
  }
  if (done) {
    if (known != watchers_.end()) watchers_.erase(known);
  } else {
    watchers_[waiter] = (phase_ & 1) == (parity & 1) ? phase_ : phase_ - 1;  // else a spurious failure
  }
  return {};
}

std::string Mbarrier::describe() const {
  return "phase " + number(phase_) + ", " + number(pending_) + " of " + number(expected_) + " arrivals pending, " +
         number(bytes_) + " bytes to come";
}

std::string Mbarrier::leftover() const {
  if (!valid_ || (bytes_ == 0 && pending_ == expected_)) return {};
  return "block ends in an unfinished phase (" + describe() + ")";
}

}  // namespace fastres::emulator
