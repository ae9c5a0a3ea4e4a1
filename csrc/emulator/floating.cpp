// Floating-point arithmetic: f32, f64, f16, bf16 and their pairs. PTX ISA, "Floating Point Instructions" and "Half
// Precision Floating Point Instructions". NaN results are the format's canonical NaN, as on the hardware.
//
// The .approx instructions are computed to full precision: the hardware's error of one or two units is not modelled.
#include <cfenv>
#include <cmath>
#include <limits>

#include "emulator/float_functions.h"
#include "emulator/half_lanes.h"
#include "emulator/lanes.h"

namespace fastres::emulator {

void decode_integer_add(Decoder& d);
void decode_integer_sub(Decoder& d);
void decode_integer_mul(Decoder& d);
void decode_integer_mad(Decoder& d);
void decode_integer_div(Decoder& d);
void decode_integer_min(Decoder& d);
void decode_integer_max(Decoder& d);
void decode_integer_abs(Decoder& d);
void decode_integer_neg(Decoder& d);

namespace {

using namespace real;

template <class T>
inline T canonical(T value) {
  if constexpr (sizeof(T) == 4) {
    return value != value ? bit_cast<float>(0x7fffffffu) : value;
  } else {
    return value != value ? bit_cast<double>(0x7fffffffffffffffull) : value;
  }
}
template <bool kFtz, class T>
inline T flush(T value) {
  if constexpr (kFtz) return std::fabs(value) < std::numeric_limits<T>::min() ? std::copysign(T{0}, value) : value;
  return value;
}
inline float saturate(float value) {
  return value > 0 ? (value < 1 ? value : 1.0f) : 0.0f;  // NaN becomes 0
}

template <class Op, bool kFtz, bool kSat>
struct F {
  template <class T>
  T operator()(T a) const {
    return finish(Op{}(flush<kFtz>(a)));
  }
  template <class T>
  T operator()(T a, T b) const {
    return finish(Op{}(flush<kFtz>(a), flush<kFtz>(b)));
  }
  template <class T>
  T operator()(T a, T b, T c) const {
    return finish(Op{}(flush<kFtz>(a), flush<kFtz>(b), flush<kFtz>(c)));
  }
  template <class T>
  T finish(T value) const {
    if constexpr (kSat) return saturate(flush<kFtz>(value));
    return canonical(flush<kFtz>(value));
  }
};

// Sign changes keep every other bit, of NaN too.
template <class T, bool kFtz>
struct Abs {
  T operator()(T a) const { return std::fabs(flush<kFtz>(a)); }
};
template <class T, bool kFtz>
struct Neg {
  T operator()(T a) const { return -flush<kFtz>(a); }
};

// Directed rounding: the same operation under another mode of the FPU. The loop must not move past the mode's change.
template <class T, class Op, int kOperands>
Step run_rounded(Warp& w, const Instruction& i, Mask mask) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  Lane<T>* d = w.lanes<Lane<T>>(i.r[0]);
  const int before = std::fegetround();
  std::fesetround(modes[i.a]);
  for_lanes(mask, [&](int l) {
    volatile T x[3] = {};
    for (int n = 0; n < kOperands; n++) {
      const T value = from_lane<T>(w.lanes<Lane<T>>(i.r[1 + n])[l]);
      x[n] = i.b & 1 ? flush<true>(value) : value;
    }
    volatile T result;
    if constexpr (kOperands == 1) {
      result = Op{}(T{x[0]});
    } else if constexpr (kOperands == 2) {
      result = Op{}(T{x[0]}, T{x[1]});
    } else {
      result = Op{}(T{x[0]}, T{x[1]}, T{x[2]});
    }
    T value = i.b & 1 ? flush<true>(T{result}) : T{result};
    if (i.b & 2) value = static_cast<T>(saturate(static_cast<float>(value)));
    d[l] = to_lane<T>(canonical(value));
  });
  std::fesetround(before);
  return Step::Next;
}

template <class Op, int kOperands>
void choose(Decoder& d, Type type, const std::string& rounding, bool ftz, bool sat) {
  Instruction& i = d.instruction();
  if (type != Type::F32 && type != Type::F64) d.fail(std::string("not an instruction for .") + name_of(type));
  if (!rounding.empty() && rounding != "rn") {
    i.a = rounding == "rz" ? 1 : rounding == "rm" ? 2 : 3;
    i.b = (ftz ? 1 : 0) | (sat ? 2 : 0);
    i.run = type == Type::F32 ? run_rounded<float, Op, kOperands> : run_rounded<double, Op, kOperands>;
    return;
  }
  const auto pick = [&](auto op) {
    using G = decltype(op);
    if constexpr (kOperands == 1) {
      i.run = map1<float, float, G>;
    } else if constexpr (kOperands == 2) {
      i.run = map2<float, float, float, G>;
    } else {
      i.run = map3<float, float, float, float, G>;
    }
  };
  if (type == Type::F64) {
    using G = F<Op, false, false>;
    if constexpr (kOperands == 1) {
      i.run = map1<double, double, G>;
    } else if constexpr (kOperands == 2) {
      i.run = map2<double, double, double, G>;
    } else {
      i.run = map3<double, double, double, double, G>;
    }
  } else if (ftz) {
    sat ? pick(F<Op, true, true>{}) : pick(F<Op, true, false>{});
  } else {
    sat ? pick(F<Op, false, true>{}) : pick(F<Op, false, false>{});
  }
}

// The float types among an opcode's words; add.s32 and its like go to the integer family.
bool names_float(const Decoder& d) {
  const std::string& opcode = d.statement().opcode;
  const size_t dot = opcode.rfind('.');
  Type type;
  return dot != opcode.npos && parse_type(opcode.substr(dot + 1), type) && is_float(type);
}

template <class Op, template <class> class Half, int kOperands, Decode kInteger>
void arithmetic(Decoder& d) {
  if (!names_float(d)) {
    if constexpr (kInteger != nullptr) return kInteger(d);
    d.fail("is for floating point");
  }
  const std::string rounding = d.take_any({"rn", "rz", "rm", "rp"});
  d.take_any({"full", "approx"});
  const bool ftz = d.take("ftz"), sat = d.take("sat"), relu = d.take("relu");
  const Type type = d.take_type();
  if constexpr (kOperands == 2) {
    operands(d, type, {type, type});
  } else {
    operands(d, type, {type, type, type});
    if (type == Type::F32 || type == Type::F64) d.instruction().macs = 32;
  }
  if (is_half(type)) {
    if (rounding != "" && rounding != "rn") d.fail("halves round to nearest even");
    return choose_half<Half, kOperands>(d, type, (sat ? kHalfSat : 0) | (relu ? kHalfRelu : 0) | (ftz ? kHalfFtz : 0));
  }
  if (relu) d.fail(".relu is for halves");
  choose<Op, kOperands>(d, type, rounding, ftz, sat);
}

void decode_div(Decoder& d) {
  if (!names_float(d)) return decode_integer_div(d);
  const std::string rounding = d.take_any({"rn", "rz", "rm", "rp", "full", "approx"});
  const bool ftz = d.take("ftz");
  const Type type = d.take_type();
  operands(d, type, {type, type});
  choose<Div, 2>(d, type, rounding == "full" || rounding == "approx" ? "rn" : rounding, ftz, false);
}

template <bool kMax>
void decode_min_max(Decoder& d) {
  if (!names_float(d)) return kMax ? decode_integer_max(d) : decode_integer_min(d);
  const bool ftz = d.take("ftz"), nan = d.take("NaN");
  const Type type = d.take_type();
  operands(d, type, {type, type});
  if (is_half(type)) {
    const uint32_t flags = (nan ? kHalfNaN : 0) | (ftz ? kHalfFtz : 0);
    return kMax ? choose_half<HalfMax, 2>(d, type, flags) : choose_half<HalfMin, 2>(d, type, flags);
  }
  if (nan) {
    choose<MinMax<kMax, true>, 2>(d, type, "", ftz, false);
  } else {
    choose<MinMax<kMax, false>, 2>(d, type, "", ftz, false);
  }
}

template <template <class, bool> class Op, template <class> class Half, Decode kInteger>
void decode_sign(Decoder& d) {
  if (!names_float(d)) return kInteger(d);
  const bool ftz = d.take("ftz");
  const Type type = d.take_type();
  operands(d, type, {type});
  if (is_half(type)) return choose_half<Half, 1>(d, type, ftz ? kHalfFtz : 0);
  d.instruction().run = type == Type::F64 ? map1<double, double, Op<double, false>>
                        : ftz             ? map1<float, float, Op<float, true>>
                                          : map1<float, float, Op<float, false>>;
}

template <class Op>
void function(Decoder& d) {
  const std::string rounding = d.take_any({"rn", "rz", "rm", "rp", "approx"});
  const bool ftz = d.take("ftz");
  const Type type = d.take_type();
  operands(d, type, {type});
  choose<Op, 1>(d, type, rounding == "approx" ? "" : rounding, ftz, false);
}

template <class Op, template <class> class Half>
void function_with_half(Decoder& d) {
  d.take("approx");
  const bool ftz = d.take("ftz");
  const Type type = d.take_type();
  operands(d, type, {type});
  if (is_half(type)) return choose_half<Half, 1>(d, type, ftz ? kHalfFtz : 0);
  choose<Op, 1>(d, type, "", ftz, false);
}

struct CopySign {
  template <class T>
  T operator()(T sign, T magnitude) const {
    return std::copysign(magnitude, sign);
  }
};
void decode_copysign(Decoder& d) {
  const Type type = d.take_type();
  operands(d, type, {type, type});
  d.instruction().run =
      type == Type::F64 ? map2<double, double, double, CopySign> : map2<float, float, float, CopySign>;
}

enum class Test : uint32_t { Finite, Infinite, Number, NotANumber, Normal, Subnormal };
template <class T>
Step run_testp(Warp& w, const Instruction& i, Mask mask) {
  Mask result = 0;
  const Lane<T>* a = w.lanes<Lane<T>>(i.r[1]);
  for_lanes(mask, [&](int l) {
    const T x = from_lane<T>(a[l]);
    bool is = false;
    switch (static_cast<Test>(i.a)) {
      case Test::Finite:
        is = std::isfinite(x);
        break;
      case Test::Infinite:
        is = std::isinf(x);
        break;
      case Test::Number:
        is = !std::isnan(x);
        break;
      case Test::NotANumber:
        is = std::isnan(x);
        break;
      case Test::Normal:
        is = std::isnormal(x);
        break;
      case Test::Subnormal:
        is = std::fpclassify(x) == FP_SUBNORMAL;
        break;
    }
    result |= Mask{is} << l;
  });
  Mask& p = w.predicate(i.r[0]);
  p = (p & ~mask) | result;
  return Step::Next;
}
void decode_testp(Decoder& d) {
  const char* const names[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
  const std::string test = d.take_any({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  const Type type = d.take_type();
  d.expect_operands(2, 2);
  Instruction& i = d.instruction();
  i.a = static_cast<uint32_t>(std::find(names, names + 6, test) - names);
  if (i.a == 6) d.fail("the test is missing");
  i.r[0] = d.predicate_dst(d.operand(0));
  i.r[1] = d.src(1, type);
  i.run = type == Type::F64 ? run_testp<double> : run_testp<float>;
}

}  // namespace

const Family& float_family() {
  static const Family family = {
      {"add", arithmetic<Add, HalfAdd, 2, decode_integer_add>},
      {"sub", arithmetic<Sub, HalfSub, 2, decode_integer_sub>},
      {"mul", arithmetic<Mul, HalfMul, 2, decode_integer_mul>},
      {"fma", arithmetic<Fma, HalfFma, 3, nullptr>},
      {"mad", arithmetic<Fma, HalfFma, 3, decode_integer_mad>},
      {"div", decode_div},
      {"min", decode_min_max<false>},
      {"max", decode_min_max<true>},
      {"abs", decode_sign<Abs, HalfAbs, decode_integer_abs>},
      {"neg", decode_sign<Neg, HalfNeg, decode_integer_neg>},
      {"rcp", function<Rcp>},
      {"sqrt", function<Sqrt>},
      {"rsqrt", function<Rsqrt>},
      {"sin", function<Sin>},
      {"cos", function<Cos>},
      {"lg2", function<Lg2>},
      {"ex2", function_with_half<Ex2, HalfEx2>},
      {"tanh", function_with_half<Tanh, HalfTanh>},
      {"copysign", decode_copysign},
      {"testp", decode_testp},
  };
  return family;
}

}  // namespace fastres::emulator
