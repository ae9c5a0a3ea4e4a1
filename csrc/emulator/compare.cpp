// Comparison and selection. PTX ISA, "Comparison and Selection Instructions": set, setp, selp, slct.
#include <cmath>
#include <limits>

#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

enum class Compare : uint32_t { Eq, Ne, Lt, Le, Gt, Ge, Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan };

template <Compare kOp>
struct Test {
  template <class T>
  bool operator()(T a, T b) const {
    const bool unordered = a != a || b != b;
    switch (kOp) {
      case Compare::Eq:
        return a == b;
      case Compare::Ne:
        return !unordered && a != b;
      case Compare::Lt:
        return a < b;
      case Compare::Le:
        return a <= b;
      case Compare::Gt:
        return a > b;
      case Compare::Ge:
        return a >= b;
      case Compare::Equ:
        return unordered || a == b;
      case Compare::Neu:
        return unordered || a != b;
      case Compare::Ltu:
        return unordered || a < b;
      case Compare::Leu:
        return unordered || a <= b;
      case Compare::Gtu:
        return unordered || a > b;
      case Compare::Geu:
        return unordered || a >= b;
      case Compare::Num:
        return !unordered;
      case Compare::Nan:
        return unordered;
    }
    return false;
  }
};

// Lane values of one PTX type as C++ numbers.
template <class T>
struct Plain {
  using Stored = Lane<T>;
  static T get(Stored lane) { return from_lane<T>(lane); }
};
struct FlushedFloat {
  using Stored = uint32_t;
  static float get(uint32_t lane) {
    const float value = bit_cast<float>(lane);
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
  }
};
template <class Fm, int kHalf>
struct Half {
  using Stored = uint32_t;
  static float get(uint32_t lane) { return decode<Fm>(lane >> 16 * kHalf & 0xffff); }
};

template <class Value, class Op>
Mask compare(Warp& w, Slot a, Slot b, Mask mask) {
  const typename Value::Stored *x = w.lanes<typename Value::Stored>(a), *y = w.lanes<typename Value::Stored>(b);
  Mask result = 0;
  for_lanes(mask, [&](int l) { result |= Mask{Op{}(Value::get(x[l]), Value::get(y[l]))} << l; });
  return result;
}

// imm low bits: how to join with predicate r[4] (0 none, 1 and, 2 or, 3 xor).
inline Mask join(Mask compared, Mask with, uint64_t how) {
  return how == 0 ? compared : how == 1 ? compared & with : how == 2 ? compared | with : compared ^ with;
}

template <class Value, class Op>
Step run_setp(Warp& w, const Instruction& i, Mask mask) {
  const Mask compared = compare<Value, Op>(w, i.r[2], i.r[3], mask), with = w.predicate(i.r[4]) ^ i.a;
  const Mask p = join(compared, with, i.imm), q = join(~compared, with, i.imm);
  w.predicate(i.r[0]) = (w.predicate(i.r[0]) & ~mask) | (p & mask);
  if (i.b) w.predicate(i.r[1]) = (w.predicate(i.r[1]) & ~mask) | (q & mask);
  return Step::Next;
}

// setp of pairs: p is the low half's result, q the high half's.
template <class Fm, class Op>
Step run_setp_pair(Warp& w, const Instruction& i, Mask mask) {
  const Mask with = w.predicate(i.r[4]) ^ i.a;
  const Mask p = join(compare<Half<Fm, 0>, Op>(w, i.r[2], i.r[3], mask), with, i.imm);
  const Mask q = join(compare<Half<Fm, 1>, Op>(w, i.r[2], i.r[3], mask), with, i.imm);
  w.predicate(i.r[0]) = (w.predicate(i.r[0]) & ~mask) | (p & mask);
  w.predicate(i.r[1]) = (w.predicate(i.r[1]) & ~mask) | (q & mask);
  return Step::Next;
}

// set: a register gets i.b (all ones, or 1.0 in a float type) or 0.
template <class Value, class Op>
Step run_set(Warp& w, const Instruction& i, Mask mask) {
  const Mask compared = compare<Value, Op>(w, i.r[2], i.r[3], mask), with = w.predicate(i.r[4]) ^ i.a;
  const Mask p = join(compared, with, i.imm);
  for_lanes(mask, [&](int l) { w.lanes<uint32_t>(i.r[0])[l] = p >> l & 1 ? i.b : 0; });
  return Step::Next;
}
template <class Fm, class Op>
Step run_set_pair(Warp& w, const Instruction& i, Mask mask) {
  const Mask low = compare<Half<Fm, 0>, Op>(w, i.r[2], i.r[3], mask);
  const Mask high = compare<Half<Fm, 1>, Op>(w, i.r[2], i.r[3], mask);
  for_lanes(mask, [&](int l) {
    w.lanes<uint32_t>(i.r[0])[l] = (low >> l & 1 ? i.b & 0xffff : 0) | (high >> l & 1 ? i.b & 0xffff0000 : 0);
  });
  return Step::Next;
}

// Picks the handler for a type and a comparison.
template <class Op>
Handler setp_for(Type type, bool ftz) {
  switch (type) {
    case Type::U16:
    case Type::B16:
      return run_setp<Plain<uint16_t>, Op>;
    case Type::S16:
      return run_setp<Plain<int16_t>, Op>;
    case Type::U32:
    case Type::B32:
      return run_setp<Plain<uint32_t>, Op>;
    case Type::S32:
      return run_setp<Plain<int32_t>, Op>;
    case Type::U64:
    case Type::B64:
      return run_setp<Plain<uint64_t>, Op>;
    case Type::S64:
      return run_setp<Plain<int64_t>, Op>;
    case Type::F32:
      return ftz ? run_setp<FlushedFloat, Op> : run_setp<Plain<float>, Op>;
    case Type::F64:
      return run_setp<Plain<double>, Op>;
    case Type::F16:
      return run_setp<Half<F16, 0>, Op>;
    case Type::BF16:
      return run_setp<Half<BF16, 0>, Op>;
    case Type::F16x2:
      return run_setp_pair<F16, Op>;
    case Type::BF16x2:
      return run_setp_pair<BF16, Op>;
    default:
      return nullptr;
  }
}
template <class Op>
Handler set_for(Type type, bool ftz) {
  switch (type) {
    case Type::U16:
    case Type::B16:
      return run_set<Plain<uint16_t>, Op>;
    case Type::S16:
      return run_set<Plain<int16_t>, Op>;
    case Type::U32:
    case Type::B32:
      return run_set<Plain<uint32_t>, Op>;
    case Type::S32:
      return run_set<Plain<int32_t>, Op>;
    case Type::U64:
    case Type::B64:
      return run_set<Plain<uint64_t>, Op>;
    case Type::S64:
      return run_set<Plain<int64_t>, Op>;
    case Type::F32:
      return ftz ? run_set<FlushedFloat, Op> : run_set<Plain<float>, Op>;
    case Type::F64:
      return run_set<Plain<double>, Op>;
    case Type::F16:
      return run_set<Half<F16, 0>, Op>;
    case Type::BF16:
      return run_set<Half<BF16, 0>, Op>;
    case Type::F16x2:
      return run_set_pair<F16, Op>;
    case Type::BF16x2:
      return run_set_pair<BF16, Op>;
    default:
      return nullptr;
  }
}

template <class F>
void with_comparison(Decoder& d, Type type, F f) {
  const std::string op = d.take_any({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu",
                                     "leu", "gtu", "geu", "num", "nan"});
  if (op == "eq") return f(Test<Compare::Eq>{});
  if (op == "ne") return f(Test<Compare::Ne>{});
  if (op == "lt" || op == "lo") return f(Test<Compare::Lt>{});
  if (op == "le" || op == "ls") return f(Test<Compare::Le>{});
  if (op == "gt" || op == "hi") return f(Test<Compare::Gt>{});
  if (op == "ge" || op == "hs") return f(Test<Compare::Ge>{});
  if (op.empty()) d.fail("the comparison is missing");
  if (!is_float(type)) d.fail("'." + op + "' compares floating point");
  if (op == "equ") return f(Test<Compare::Equ>{});
  if (op == "neu") return f(Test<Compare::Neu>{});
  if (op == "ltu") return f(Test<Compare::Ltu>{});
  if (op == "leu") return f(Test<Compare::Leu>{});
  if (op == "gtu") return f(Test<Compare::Gtu>{});
  if (op == "geu") return f(Test<Compare::Geu>{});
  if (op == "num") return f(Test<Compare::Num>{});
  return f(Test<Compare::Nan>{});
}

// "and", "or" or "xor" joins the comparison with the predicate that is the last operand.
void take_join(Decoder& d) {
  Instruction& i = d.instruction();
  const std::string how = d.take_any({"and", "or", "xor"});
  i.imm = how.empty() ? 0 : how == "and" ? 1 : how == "or" ? 2 : 3;
  d.expect_operands(how.empty() ? 3 : 4, how.empty() ? 3 : 4);
  i.r[4] = 0;
  if (!how.empty()) {
    Mask flip = 0;
    i.r[4] = d.predicate_src(d.operand(3), flip);
    i.a = flip;
  }
}

void decode_setp(Decoder& d) {
  Instruction& i = d.instruction();
  take_join(d);
  const bool ftz = d.take("ftz");
  const Type type = d.take_type();
  const ptx::Operand& to = d.operand(0);
  i.r[0] = d.predicate_dst(to);
  i.b = !to.second.empty();
  if (i.b) i.r[1] = to.second == "_" ? d.kernel().predicates++ : d.predicate(to.second);
  i.r[2] = d.src(1, type);
  i.r[3] = d.src(2, type);
  with_comparison(d, type, [&](auto op) { i.run = setp_for<decltype(op)>(type, ftz); });
}

void decode_set(Decoder& d) {
  Instruction& i = d.instruction();
  take_join(d);
  const bool ftz = d.take("ftz");
  const Type to = d.take_type(), type = d.take_type();
  i.r[0] = d.dst(0, to);
  i.r[2] = d.src(1, type);
  i.r[3] = d.src(2, type);
  switch (to) {
    case Type::U32:
    case Type::S32:
      i.b = 0xffffffffu;
      break;
    case Type::F32:
      i.b = 0x3f800000u;
      break;
    case Type::F16:
      i.b = 0x3c00u;
      break;
    case Type::BF16:
      i.b = 0x3f80u;
      break;
    case Type::U16:
    case Type::S16:
      i.b = 0xffffu;
      break;
    case Type::F16x2:
      i.b = 0x3c003c00u;
      break;
    case Type::BF16x2:
      i.b = 0x3f803f80u;
      break;
    default:
      d.fail(std::string("no result of type .") + name_of(to));
  }
  with_comparison(d, type, [&](auto op) { i.run = set_for<decltype(op)>(type, ftz); });
}

template <class L>
Step run_selp(Warp& w, const Instruction& i, Mask mask) {
  L* d = w.lanes<L>(i.r[0]);
  const L *a = w.lanes<L>(i.r[1]), *b = w.lanes<L>(i.r[2]);
  const Mask p = w.predicate(i.r[3]) ^ i.a;
  for_lanes(mask, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
  return Step::Next;
}
void decode_selp(Decoder& d) {
  const Type type = d.take_type();
  d.expect_operands(4, 4);
  Instruction& i = d.instruction();
  i.r[0] = d.dst(0, type);
  i.r[1] = d.src(1, type);
  i.r[2] = d.src(2, type);
  Mask flip = 0;
  i.r[3] = d.predicate_src(d.operand(3), flip);
  i.a = flip;
  i.run = is_wide(type) ? run_selp<uint64_t> : run_selp<uint32_t>;
}

template <class L, bool kFloat>
Step run_slct(Warp& w, const Instruction& i, Mask mask) {
  L* d = w.lanes<L>(i.r[0]);
  const L *a = w.lanes<L>(i.r[1]), *b = w.lanes<L>(i.r[2]);
  const uint32_t* c = w.lanes<uint32_t>(i.r[3]);
  for_lanes(mask, [&](int l) {
    const bool first = kFloat ? bit_cast<float>(c[l]) >= 0 : static_cast<int32_t>(c[l]) >= 0;
    d[l] = first ? a[l] : b[l];
  });
  return Step::Next;
}
void decode_slct(Decoder& d) {
  d.take("ftz");
  const Type type = d.take_type(), by = d.take_type();
  if (by != Type::S32 && by != Type::F32) d.fail("selects by .s32 or .f32");
  operands(d, type, {type, type, by});
  const bool real = by == Type::F32;
  d.instruction().run = is_wide(type) ? (real ? run_slct<uint64_t, true> : run_slct<uint64_t, false>)
                                      : (real ? run_slct<uint32_t, true> : run_slct<uint32_t, false>);
}

}  // namespace

const Family& compare_family() {
  static const Family family = {
      {"setp", decode_setp}, {"set", decode_set}, {"selp", decode_selp}, {"slct", decode_slct}};
  return family;
}

}  // namespace fastres::emulator
