// The functions of real numbers that floating-point instructions compute, of float and double alike.
#pragma once

#include <cmath>
#include <limits>

namespace fastres::emulator::real {

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <class T>
  T operator()(T a, T b) const {
    return a / b;
  }
};
struct Fma {
  template <class T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};
// -0 is below +0. One NaN: the other operand; with .NaN, NaN.
template <bool kMax, bool kNaN>
struct MinMax {
  template <class T>
  T operator()(T a, T b) const {
    if (a != a || b != b) {
      if (kNaN || (a != a && b != b)) return std::numeric_limits<T>::quiet_NaN();
      return a != a ? b : a;
    }
    if (a == b) return std::signbit(a) == kMax ? b : a;
    return (a < b) == kMax ? b : a;
  }
};
struct Rcp {
  template <class T>
  T operator()(T a) const {
    return T{1} / a;
  }
};
struct Sqrt {
  template <class T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)));
  }
};
struct Ex2 {
  template <class T>
  T operator()(T a) const {
    return std::exp2(a);
  }
};
struct Lg2 {
  template <class T>
  T operator()(T a) const {
    return std::log2(a);
  }
};
struct Sin {
  template <class T>
  T operator()(T a) const {
    return std::sin(a);
  }
};
struct Cos {
  template <class T>
  T operator()(T a) const {
    return std::cos(a);
  }
};
struct Tanh {
  template <class T>
  T operator()(T a) const {
    return std::tanh(a);
  }
};

}  // namespace fastres::emulator::real
