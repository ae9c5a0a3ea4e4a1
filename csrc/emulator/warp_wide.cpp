// Exchange between the lanes of a warp. PTX ISA: shfl.sync, vote.sync, match.sync, activemask, redux.sync, elect.sync.
#include <bitset>

#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

enum class Shuffle : uint32_t { Up, Down, Butterfly, Index };

// r: d, a, b, c, members; r[5]: predicate p if b.
Step run_shfl(Warp& w, const Instruction& i, Mask mask) {
  if (!gathered(w, i, mask, w.lanes<uint32_t>(i.r[4]))) return Step::Wait;
  const uint32_t *a = w.lanes<uint32_t>(i.r[1]), *b = w.lanes<uint32_t>(i.r[2]), *c = w.lanes<uint32_t>(i.r[3]);
  uint32_t result[32];
  Mask in_range = 0;
  for_lanes(mask, [&](int l) {
    const int bound = static_cast<int>(c[l] & 31), segment = static_cast<int>(c[l] >> 8 & 31);
    const int by = static_cast<int>(b[l] & 31);
    const int max_lane = (l & segment) | (bound & ~segment), min_lane = l & segment;
    int source = l;
    bool p = false;
    switch (static_cast<Shuffle>(i.a)) {
      case Shuffle::Up:
        source = l - by;
        p = source >= max_lane;
        break;
      case Shuffle::Down:
        source = l + by;
        p = source <= max_lane;
        break;
      case Shuffle::Butterfly:
        source = l ^ by;
        p = source <= max_lane;
        break;
      case Shuffle::Index:
        source = min_lane | (by & ~segment);
        p = source <= max_lane;
        break;
    }
    if (!p) source = l;
    in_range |= Mask{p} << l;
    if (!(mask >> source & 1)) {
      Finding finding;
      finding.kind = "inactive-lane";
      finding.message = "shuffle reads lane " + std::to_string(source) + ", which takes no part";
      finding.expected = "a source lane in the member mask that has not exited";
      w.block.machine.fault(std::move(finding), w, i, l);
      result[l] = ~0u;
      return;
    }
    result[l] = a[source];
  });
  uint32_t* d = w.lanes<uint32_t>(i.r[0]);
  for_lanes(mask, [&](int l) { d[l] = result[l]; });
  if (i.b) w.predicate(i.r[5]) = (w.predicate(i.r[5]) & ~mask) | in_range;
  return Step::Next;
}

void decode_shfl(Decoder& d) {
  if (!d.take("sync")) d.fail("only the .sync form is supported");
  const std::string mode = d.take_any({"up", "down", "bfly", "idx"});
  d.take("b32");
  d.expect_operands(5, 5);
  Instruction& i = d.instruction();
  if (mode.empty()) d.fail("the mode is missing");
  i.a = static_cast<uint32_t>(mode == "up"     ? Shuffle::Up
                              : mode == "down" ? Shuffle::Down
                              : mode == "bfly" ? Shuffle::Butterfly
                                               : Shuffle::Index);
  i.r[0] = d.dst(0, Type::B32);
  for (size_t n = 1; n < 5; n++) i.r[n] = d.src(n, Type::B32);
  const std::string& p = d.operand(0).second;
  i.b = !p.empty() && p != "_";
  if (i.b) i.r[5] = d.predicate(p);
  i.run = run_shfl;
}

enum class Vote : uint32_t { All, Any, Uni, Ballot };

// r[0]: result, r[1]: predicate (flip in b), r[2]: members.
Step run_vote(Warp& w, const Instruction& i, Mask mask) {
  if (!gathered(w, i, mask, w.lanes<uint32_t>(i.r[2]))) return Step::Wait;
  const Mask p = (w.predicate(i.r[1]) ^ i.b) & mask;
  const Vote kind = static_cast<Vote>(i.a);
  if (kind == Vote::Ballot) {
    for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = p; });
    return Step::Next;
  }
  const bool result = kind == Vote::All ? p == mask : kind == Vote::Any ? p != 0 : p == mask || p == 0;
  Mask& d = w.predicate(i.r[0]);
  d = (d & ~mask) | (result ? mask : 0);
  return Step::Next;
}

void decode_vote(Decoder& d) {
  if (!d.take("sync")) d.fail("only the .sync form is supported");
  const std::string mode = d.take_any({"all", "any", "uni", "ballot"});
  d.take_any({"pred", "b32"});
  d.expect_operands(3, 3);
  Instruction& i = d.instruction();
  i.a = static_cast<uint32_t>(mode == "all"   ? Vote::All
                              : mode == "any" ? Vote::Any
                              : mode == "uni" ? Vote::Uni
                                              : Vote::Ballot);
  i.r[0] = mode == "ballot" ? d.dst(0, Type::B32) : d.predicate_dst(d.operand(0));
  Mask flip = 0;
  i.r[1] = d.predicate_src(d.operand(1), flip);
  i.b = flip;
  i.r[2] = d.src(2, Type::B32);
  i.run = run_vote;
}

// match.any: lanes with my value. match.all: all members if they agree, else 0. r[3]: predicate if b.
template <class L, bool kAll>
Step run_match(Warp& w, const Instruction& i, Mask mask) {
  if (!gathered(w, i, mask, w.lanes<uint32_t>(i.r[2]))) return Step::Wait;
  const L* a = w.lanes<L>(i.r[1]);
  uint32_t result[32];
  for_lanes(mask, [&](int l) {
    result[l] = 0;
    for_lanes(mask, [&](int other) { result[l] |= Mask{a[other] == a[l]} << other; });
  });
  const bool agree = result[__builtin_ctz(mask)] == mask;
  for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = kAll && !agree ? 0 : result[l]; });
  if (i.b) w.predicate(i.r[3]) = (w.predicate(i.r[3]) & ~mask) | (agree ? mask : 0);
  return Step::Next;
}

void decode_match(Decoder& d) {
  const bool all = d.take_any({"any", "all"}) == "all";
  if (!d.take("sync")) d.fail("only the .sync form exists");
  const Type type = d.take_type();
  operands(d, Type::B32, {type, Type::B32});
  Instruction& i = d.instruction();
  const std::string& p = d.operand(0).second;
  i.b = !p.empty() && p != "_";
  if (i.b) i.r[3] = d.predicate(p);
  i.run = is_wide(type) ? (all ? run_match<uint64_t, true> : run_match<uint64_t, false>)
                        : (all ? run_match<uint32_t, true> : run_match<uint32_t, false>);
}

Step run_activemask(Warp& w, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = mask; });
  return Step::Next;
}
void decode_activemask(Decoder& d) {
  d.take("b32");
  operands(d, Type::B32, {});
  d.instruction().run = run_activemask;
}

template <class T, class Op>
Step run_redux(Warp& w, const Instruction& i, Mask mask) {
  if (!gathered(w, i, mask, w.lanes<uint32_t>(i.r[2]))) return Step::Wait;
  const uint32_t* a = w.lanes<uint32_t>(i.r[1]);
  bool first = true;
  T result{};
  for_lanes(mask, [&](int l) {
    const T value = static_cast<T>(a[l]);
    result = first ? value : Op{}(result, value);
    first = false;
  });
  for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = static_cast<uint32_t>(result); });
  return Step::Next;
}
struct Sum {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a + b; }
};
struct Least {
  template <class T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};
struct Most {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};
struct And {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a & b; }
};
struct Or {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a | b; }
};
struct Xor {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a ^ b; }
};

void decode_redux(Decoder& d) {
  if (!d.take("sync")) d.fail("only the .sync form exists");
  const std::string op = d.take_any({"add", "min", "max", "and", "or", "xor"});
  const Type type = d.take_type();
  operands(d, Type::B32, {Type::B32, Type::B32});
  Instruction& i = d.instruction();
  const bool negative = is_signed(type);
  if (op == "add") i.run = run_redux<uint32_t, Sum>;
  if (op == "min") i.run = negative ? run_redux<int32_t, Least> : run_redux<uint32_t, Least>;
  if (op == "max") i.run = negative ? run_redux<int32_t, Most> : run_redux<uint32_t, Most>;
  if (op == "and") i.run = run_redux<uint32_t, And>;
  if (op == "or") i.run = run_redux<uint32_t, Or>;
  if (op == "xor") i.run = run_redux<uint32_t, Xor>;
}

// Any member may be elected; the lowest is, on every execution, as the manual's wording "deterministic" asks.
Step run_elect(Warp& w, const Instruction& i, Mask mask) {
  if (!gathered(w, i, mask, w.lanes<uint32_t>(i.r[1]))) return Step::Wait;
  const uint32_t leader = static_cast<uint32_t>(__builtin_ctz(mask));
  for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = leader; });
  Mask& p = w.predicate(i.r[2]);
  p = (p & ~mask) | 1u << leader;
  return Step::Next;
}
void decode_elect(Decoder& d) {
  if (!d.take("sync")) d.fail("only the .sync form exists");
  d.expect_operands(2, 2);
  Instruction& i = d.instruction();
  i.r[0] = d.dst(0, Type::B32);
  if (d.operand(0).second.empty()) d.fail("elect.sync writes d|p");
  i.r[2] = d.predicate(d.operand(0).second);
  i.r[1] = d.src(1, Type::B32);
  i.run = run_elect;
}

}  // namespace

const Family& warp_family() {
  static const Family family = {{"shfl", decode_shfl},   {"vote", decode_vote},
                                {"match", decode_match}, {"activemask", decode_activemask},
                                {"redux", decode_redux}, {"elect", decode_elect}};
  return family;
}

}  // namespace fastres::emulator
