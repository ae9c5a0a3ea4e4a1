// Happens-before by vector clocks (Lamport 1978; Fidge, Mattern 1988), with FastTrack's epochs (Flanagan, Freund 2009).
//
// An agent is whatever makes accesses in an order of its own: a warp, and also the asynchronous side of a
// synchronisation object. Copies that complete on an mbarrier are the accesses of that mbarrier's agent, at time
// phase + 1; a wgmma's reads are those of its warp's wgmma agent, at time group + 1. So an asynchronous access
// is ordered before a thread's exactly when the thread has waited for that phase or group, in constant space.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastres::emulator {

using Agent = uint32_t;

// The `time`-th step of an agent; time 0 precedes everything.
struct Epoch {
  Agent agent = 0;
  uint32_t time = 0;

  bool operator==(const Epoch& o) const { return agent == o.agent && time == o.time; }
};

class VectorClock {
 public:
  uint32_t at(Agent agent) const { return agent < times_.size() ? times_[agent] : 0; }

  // Does what holds this clock know of `epoch`, that is, did the epoch happen before?
  bool covers(Epoch epoch) const { return epoch.time <= at(epoch.agent); }

  void raise(Epoch epoch) {
    if (epoch.agent >= times_.size()) times_.resize(epoch.agent + 1, 0);
    times_[epoch.agent] = std::max(times_[epoch.agent], epoch.time);
  }

  void join(const VectorClock& other) {
    if (other.times_.size() > times_.size()) times_.resize(other.times_.size(), 0);
    for (size_t i = 0; i < other.times_.size(); ++i) times_[i] = std::max(times_[i], other.times_[i]);
  }

 private:
  std::vector<uint32_t> times_;
};

// What an agent, or a synchronisation object on its behalf, knows to have happened: `order` for accesses by the same
// proxy, `proxied` for generic accesses that a proxy fence has made visible to the async proxy (PTX ISA,
// "Proxy-preserved Base Causality Order": the fence may be anywhere along the path).
struct Knowledge {
  VectorClock order, proxied;

  void join(const Knowledge& other) {
    order.join(other.order);
    proxied.join(other.proxied);
  }
};

// A warp's side of happens-before: its accesses are at now(), and a release moves it on.
class Timeline {
 public:
  explicit Timeline(Agent agent) : now_{agent, 1} { known_.order.raise(now_); }

  Epoch now() const { return now_; }
  const Knowledge& known() const { return known_; }
  void acquire(const Knowledge& from) { known_.join(from); }
  void learn(Epoch epoch) { known_.order.raise(epoch); }
  void release_to(Knowledge& to) {
    to.join(known_);
    tick();
  }
  void tick() {
    ++now_.time;
    known_.order.raise(now_);
  }
  void proxy_fence() { known_.proxied.join(known_.order); }
  void proxy_fence(Epoch epoch) { known_.proxied.raise(epoch); }  // for that agent's accesses alone

 private:
  Epoch now_;
  Knowledge known_;
};

}  // namespace fastres::emulator
