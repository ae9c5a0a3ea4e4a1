// Loops over channels that a compiler vectorises; compiled as rows.cpp is.
#include "rows.h"

namespace fastres::cpu::FASTRES_ISA {

namespace {

constexpr int64_t kBlock = 256;  // channels at a time, whose maxima are in the first-level cache

template <class T>
struct Index;  // an integer as wide as T
template <>
struct Index<float> {
  using Type = int32_t;
};
template <>
struct Index<double> {
  using Type = int64_t;
};

inline int64_t greater(int64_t a, int64_t b) {
  return a > b ? a : b;
}

inline int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The rows or columns, of `size`, that window `at` has.
struct Span {
  int64_t first, last;
  template <class T>
  Span(const MaxPool<T>& of, int64_t at, int64_t size)
      : first(greater(at * of.stride - of.padding, 0)), last(lesser(at * of.stride - of.padding + of.kernel, size)) {}
};

template <bool kRelu, class T>
inline T act(T x) {
  if constexpr (kRelu) return x < 0 ? T(0) : x;
  return x;
}

// The maxima of a window, and which of y's pixels in it have them. Written in turns to one of two: a select of what is
// in memory already would become a store under a mask, which some CPUs take a hundred times as long for.
template <class T>
struct Maxima {
  T best[2][kBlock];
  typename Index<T>::Type place[2][kBlock];
  int now = 0;
};

// Of a window over up to kBlock channels from c.
template <bool kRelu, bool kPlaces, class T>
inline void window(const MaxPool<T>& of, int64_t image, Span rows, Span columns, int64_t c, int64_t channels,
                   Maxima<T>& found) {
  using Integer = typename Index<T>::Type;
  for (int64_t k = 0; k < channels; ++k) found.best[found.now][k] = -__builtin_inf();
  for (int64_t k = 0; kPlaces && k < channels; ++k) found.place[found.now][k] = 0;
  const T *scale = of.scale + c, *shift = of.shift + c;
  Integer tap = 0;
  for (int64_t i = rows.first; i < rows.last; ++i) {
    for (int64_t j = columns.first; j < columns.last; ++j, ++tap) {
      const T* y = of.y + ((image * of.h + i) * of.w + j) * of.channels + c;
      const auto* best = found.best[found.now];
      const auto* place = found.place[found.now];
      found.now = 1 - found.now;
      auto* next_best = found.best[found.now];
      auto* next_place = found.place[found.now];
#pragma GCC ivdep
      for (int64_t k = 0; k < channels; ++k) {
        const T value = act<kRelu>(y[k] * scale[k] + shift[k]), old = best[k];
        const Integer before = kPlaces ? place[k] : 0;
        // Where the new one is the larger, or NaN. An old NaN is neither larger nor smaller, and stays.
        const Integer larger = -Integer(value != value) | (-Integer(old == old) & ~-Integer(old >= value));
        next_best[k] = larger ? value : old;
        if constexpr (kPlaces) next_place[k] = (before & ~larger) | (tap & larger);
      }
    }
  }
}

template <bool kRelu, class T>
void forward(const MaxPool<T> of, int64_t image, int64_t first, int64_t last) {
  Maxima<T> found;
  for (int64_t i = first; i < last; ++i) {
    const Span rows(of, i, of.h);
    for (int64_t j = 0; j < of.q; ++j) {
      const Span columns(of, j, of.w);
      for (int64_t c = 0; c < of.channels; c += kBlock) {
        const int64_t channels = lesser(of.channels - c, kBlock);
        window<kRelu, false>(of, image, rows, columns, c, channels, found);
        T* out = of.out + ((image * of.p + i) * of.q + j) * of.channels + c;
        for (int64_t k = 0; k < channels; ++k) out[k] = found.best[found.now][k];
      }
    }
  }
}

// Windows that reach over the rows' ends are looked at for both neighbours.
template <bool kRelu, class T>
void backward(const MaxPool<T> of, int64_t image, int64_t first, int64_t last) {
  Maxima<T> found;
  T* whole = of.out + image * of.h * of.w * of.channels;
  for (int64_t at = first * of.w * of.channels; at < last * of.w * of.channels; ++at) whole[at] = 0;
  const int64_t start = first + of.padding - of.kernel + 1;
  const int64_t from = start > 0 ? (start + of.stride - 1) / of.stride : 0;
  const int64_t to = lesser((last - 1 + of.padding) / of.stride + 1, of.p);
  for (int64_t i = from; i < to; ++i) {
    const Span rows(of, i, of.h);
    for (int64_t j = 0; j < of.q; ++j) {
      const Span columns(of, j, of.w);
      for (int64_t c = 0; c < of.channels; c += kBlock) {
        const int64_t channels = lesser(of.channels - c, kBlock);
        window<kRelu, true>(of, image, rows, columns, c, channels, found);
        const T* gradient = of.gradient + ((image * of.p + i) * of.q + j) * of.channels + c;
        const auto* place = found.place[found.now];
        typename Index<T>::Type tap = 0;
        for (int64_t row = rows.first; row < rows.last; ++row) {
          for (int64_t column = columns.first; column < columns.last; ++column, ++tap) {
            if (row < first || row >= last) continue;
            T* out = whole + (row * of.w + column) * of.channels + c;
#pragma GCC ivdep
            for (int64_t k = 0; k < channels; ++k) {
              const T g = gradient[k];
              out[k] += place[k] == tap ? g : T(0);
            }
          }
        }
      }
    }
  }
}

template <class T>
void pool_rows(const MaxPool<T>& of, int64_t image, int64_t first, int64_t last) {
  if (of.gradient) {
    of.relu ? backward<true>(of, image, first, last) : backward<false>(of, image, first, last);
  } else {
    of.relu ? forward<true>(of, image, first, last) : forward<false>(of, image, first, last);
  }
}

}  // namespace

const PoolKernel<float> float_pool = pool_rows<float>;
const PoolKernel<double> double_pool = pool_rows<double>;

}  // namespace fastres::cpu::FASTRES_ISA
