// Atomic operations. PTX ISA, "Parallel Synchronization and Communication Instructions": atom, red. A warp's lanes go
// one after the other, in lane order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "emulator/addressing.h"
#include "emulator/lanes.h"

namespace fastres::emulator {

namespace {

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
void store(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// r[0]: result if b, r[1]: operand, r[2]: cas's new value.
template <class T, class Op>
Step run_atomic(Warp& w, const Instruction& i, Mask mask) {
  uint64_t address[32];
  lane_addresses(w, i, mask, address);
  for_lanes(mask, [&](int l) {
    uint8_t* at = w.block.machine.memory.access({w, i, l, space_of(i), address[l], sizeof(T), AccessKind::ReadWrite});
    Lane<T> old = static_cast<Lane<T>>(~0ull);
    if (at != nullptr) {
      const T before = load<T>(at);
      const T b = static_cast<T>(w.lanes<Lane<T>>(i.r[1])[l]), c = static_cast<T>(w.lanes<Lane<T>>(i.r[2])[l]);
      store<T>(at, Op{}(before, b, c));
      old = static_cast<Lane<T>>(before);
    }
    if (i.b) w.lanes<Lane<T>>(i.r[0])[l] = old;
  });
  return Step::Next;
}

// Operations on the bits of memory, the operand and cas's third operand; T is unsigned.
struct Add {
  template <class T>
  T operator()(T a, T b, T) const {
    return static_cast<T>(a + b);
  }
};
template <bool kMax, bool kSigned>
struct MinMax {
  template <class T>
  T operator()(T a, T b, T) const {
    using V = std::conditional_t<kSigned, std::make_signed_t<T>, T>;
    return static_cast<V>(a) < static_cast<V>(b) ? (kMax ? b : a) : (kMax ? a : b);
  }
};
struct Inc {
  template <class T>
  T operator()(T a, T b, T) const {
    return a >= b ? 0 : a + 1;
  }
};
struct Dec {
  template <class T>
  T operator()(T a, T b, T) const {
    return a == 0 || a > b ? b : a - 1;
  }
};
struct And {
  template <class T>
  T operator()(T a, T b, T) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b, T) const {
    return a | b;
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b, T) const {
    return a ^ b;
  }
};
struct Exchange {
  template <class T>
  T operator()(T, T b, T) const {
    return b;
  }
};
struct CompareAndSwap {
  template <class T>
  T operator()(T a, T b, T c) const {
    return a == b ? c : a;
  }
};
struct AddFloat {  // subnormals are flushed in global memory by f32's atom.add
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t) const {
    return bit_cast<uint32_t>(bit_cast<float>(a) + bit_cast<float>(b));
  }
};
struct AddDouble {
  uint64_t operator()(uint64_t a, uint64_t b, uint64_t) const {
    return bit_cast<uint64_t>(bit_cast<double>(a) + bit_cast<double>(b));
  }
};
template <class Fm, bool kPair>
struct AddHalf {
  template <class T>
  T operator()(T a, T b, T) const {
    const uint32_t low = add<Fm>(a & 0xffff, b & 0xffff);
    return static_cast<T>(kPair ? add<Fm>(a >> 16 & 0xffff, b >> 16 & 0xffff) << 16 | low : low);
  }
};

template <class Op>
Handler by_size(Type type) {
  return size_of(type) == 8   ? run_atomic<uint64_t, Op>
         : size_of(type) == 2 ? run_atomic<uint16_t, Op>
                              : run_atomic<uint32_t, Op>;
}

Handler choose(const std::string& op, Type type) {
  const bool negative = is_signed(type);
  if (op == "add") {
    switch (type) {
      case Type::F32:
        return run_atomic<uint32_t, AddFloat>;
      case Type::F64:
        return run_atomic<uint64_t, AddDouble>;
      case Type::F16:
        return run_atomic<uint16_t, AddHalf<F16, false>>;
      case Type::BF16:
        return run_atomic<uint16_t, AddHalf<BF16, false>>;
      case Type::F16x2:
        return run_atomic<uint32_t, AddHalf<F16, true>>;
      case Type::BF16x2:
        return run_atomic<uint32_t, AddHalf<BF16, true>>;
      default:
        return by_size<Add>(type);
    }
  }
  if (is_float(type)) return nullptr;
  if (op == "min") return negative ? by_size<MinMax<false, true>>(type) : by_size<MinMax<false, false>>(type);
  if (op == "max") return negative ? by_size<MinMax<true, true>>(type) : by_size<MinMax<true, false>>(type);
  if (op == "inc") return by_size<Inc>(type);
  if (op == "dec") return by_size<Dec>(type);
  if (op == "and") return by_size<And>(type);
  if (op == "or") return by_size<Or>(type);
  if (op == "xor") return by_size<Xor>(type);
  if (op == "exch") return by_size<Exchange>(type);
  if (op == "cas") return by_size<CompareAndSwap>(type);
  return nullptr;
}

void decode_atomic(Decoder& d, bool returns) {
  Instruction& i = d.instruction();
  if (d.take("async")) d.fail("the asynchronous form is not supported");
  const std::string op = d.take_any({"add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"});
  take_ordering(d);
  take_space(d);
  const bool hint = d.take("L2::cache_hint");
  d.take("noftz");
  const Type type = d.take_type();
  const size_t first = returns ? 1 : 0, wanted = first + (op == "cas" ? 3 : 2) + (hint ? 1 : 0);
  d.expect_operands(wanted, wanted);
  i.b = returns && d.operand(0).name != "_";
  if (returns) i.r[0] = d.dst(0, type);
  take_address(d, d.operand(first));
  i.r[1] = d.src(first + 1, type);
  i.r[2] = op == "cas" ? d.src(first + 2, type) : i.r[1];
  i.run = choose(op, type);
}

void decode_atom(Decoder& d) {
  decode_atomic(d, true);
}
void decode_red(Decoder& d) {
  decode_atomic(d, false);
}

}  // namespace

const Family& atomic_family() {
  static const Family family = {{"atom", decode_atom}, {"red", decode_red}};
  return family;
}

}  // namespace fastres::emulator
