// Loops over columns that a compiler vectorises. Compiled once for each instruction set, FASTRES_ISA; no header with
// inline functions is included, or one instruction set's copy of those might be linked into another's callers.
#include "rows.h"

namespace fastres::cpu::FASTRES_ISA {

namespace {

enum class Shortcut { kNone, kPlain, kAffine };

// Of row r, column c. Every pass has it from here, so that backward's masks are forward's.
template <Shortcut kShortcut, class T>
inline T argument(const Rows<T>& of, int64_t at, int64_t c) {
  const T own = of.y[at] * of.scale[c] + of.shift[c];
  if constexpr (kShortcut == Shortcut::kPlain) return own + of.shortcut[at];
  if constexpr (kShortcut == Shortcut::kAffine) return own + (of.shortcut[at] * of.scale2[c] + of.shift2[c]);
  return own;
}

// NaN stays, as in PyTorch.
template <class T>
inline T relu(T x) {
  return x < 0 ? T(0) : x;
}

template <Shortcut kShortcut, bool kRelu, class T>
inline T passed(const Rows<T>& of, int64_t at, int64_t c) {
  const T g = of.gradient[at];  // read in any case: a read under a condition costs more
  if constexpr (!kRelu) return g;
  return argument<kShortcut>(of, at, c) <= 0 ? T(0) : g;
}

template <Shortcut kShortcut, bool kRelu, class T>
void apply(const Rows<T> of) {
  for (int64_t r = 0; r < of.rows; ++r) {
    const int64_t row = r * of.width;
#pragma GCC ivdep
    for (int64_t c = 0; c < of.width; ++c) {
      const T x = argument<kShortcut>(of, row + c, c);
      of.out[row + c] = kRelu ? relu(x) : x;
    }
  }
}

// Two values a place, for two sums a column.
template <class T>
struct Two {
  T first, second;
};

// Sums by column of what `term` gives at a place, as sums of sums of few rows: rounding errors grow with the square
// root of both numbers, not of all rows. `sums` is [4, width]: both sums, and room for both of few rows. One row after
// the other, as hardware prefetches: two or four at once spare loads and stores of sums, and were half as fast from
// memory.
template <class T, class Term>
inline void add_two(int64_t rows, int64_t width, T* sums, const Term& term) {
  constexpr int64_t kFew = 64;
  T *first = sums + 2 * width, *second = first + width;
  for (int64_t c = 0; c < 2 * width; ++c) sums[c] = 0;
  for (int64_t start = 0; start < rows; start += kFew) {
    for (int64_t c = 0; c < 2 * width; ++c) first[c] = 0;
    const int64_t end = start + kFew < rows ? start + kFew : rows;
    for (int64_t r = start; r < end; ++r) {
#pragma GCC ivdep
      for (int64_t c = 0; c < width; ++c) {
        const Two<T> value = term(r * width + c, c);
        first[c] += value.first, second[c] += value.second;
      }
    }
#pragma GCC ivdep
    for (int64_t c = 0; c < 2 * width; ++c) sums[c] += first[c];
  }
}

template <class T>
void moments(const Rows<T>& given) {
  const Rows<T> of = given;
  const int64_t width = of.width;
  T* mean = of.sums;
  for (int64_t c = 0; c < width; ++c) mean[c] = 0;
  for (int64_t r = 0; r < of.rows; ++r) {
#pragma GCC ivdep
    for (int64_t c = 0; c < width; ++c) mean[c] += of.y[r * width + c];
  }
  const T share = T(1) / static_cast<T>(of.rows);
  for (int64_t c = 0; c < width; ++c) mean[c] *= share;
  add_two(of.rows, width, mean + width, [&](int64_t at, int64_t c) {
    const T deviation = of.y[at] - mean[c];
    return Two<T>{deviation, deviation * deviation};
  });
}

template <Shortcut kShortcut, bool kRelu, bool kMasked, class T>
void sums(const Rows<T> of) {
  add_two(of.rows, of.width, of.sums, [&](int64_t at, int64_t c) {
    const T g = passed<kShortcut, kRelu>(of, at, c);
    if constexpr (kMasked) of.masked[at] = g;
    return Two<T>{g, g * (of.y[at] - of.mean[c])};
  });
}

template <Shortcut kShortcut, bool kRelu, class T>
void backward(const Rows<T> of) {
  for (int64_t r = 0; r < of.rows; ++r) {
    const int64_t row = r * of.width;
#pragma GCC ivdep
    for (int64_t c = 0; c < of.width; ++c) {
      const int64_t at = row + c;
      const T g = passed<kShortcut, kRelu>(of, at, c);
      of.out[at] = of.factor[c] * g + (of.slope[c] * (of.y[at] - of.mean[c]) + of.offset[c]);
    }
  }
}

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// pass(shortcut, relu), constants: of a shortcut that is not there, and of no argument at all, nothing is read.
template <class T, class Pass>
inline void choose(const Rows<T>& of, bool needs_argument, const Pass& pass) {
  const auto with = [&](auto shortcut) {
    of.relu ? pass(shortcut, Constant<true>()) : pass(shortcut, Constant<false>());
  };
  if (!needs_argument || !of.shortcut) {
    with(Constant<Shortcut::kNone>());
  } else if (!of.scale2) {
    with(Constant<Shortcut::kPlain>());
  } else {
    with(Constant<Shortcut::kAffine>());
  }
}

template <class T>
void apply_any(const Rows<T>& of) {
  choose(of, true, [&](auto shortcut, auto relu) { apply<shortcut.value, relu.value>(of); });
}

template <class T>
void sums_any(const Rows<T>& of) {
  choose(of, of.relu, [&](auto shortcut, auto relu) {
    of.masked ? sums<shortcut.value, relu.value, true>(of) : sums<shortcut.value, relu.value, false>(of);
  });
}

template <class T>
void backward_any(const Rows<T>& of) {
  choose(of, of.relu, [&](auto shortcut, auto relu) { backward<shortcut.value, relu.value>(of); });
}

template <class T>
constexpr RowKernels<T> kernels = {apply_any<T>, moments<T>, sums_any<T>, backward_any<T>};

}  // namespace

const RowKernels<float> float_kernels = kernels<float>;
const RowKernels<double> double_kernels = kernels<double>;

}  // namespace fastres::cpu::FASTRES_ISA
