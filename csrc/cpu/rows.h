// The passes of a training step over some rows of an NHWC activation. rows.cpp is compiled once for each instruction
// set; bn_act.cpp splits an activation into rows and picks.
#pragma once

#include <cstdint>

namespace fastres::cpu {

constexpr int64_t kSums = 5;

// `rows` dense rows of `width` columns; a vector has one value a column. What a pass has no use for is null.
// A ReLU's argument is y * scale + shift [+ shortcut [* scale2 + shift2]].
template <class T>
struct Rows {
  int64_t rows = 0, width = 0;
  const T *y = nullptr, *shortcut = nullptr, *gradient = nullptr;  // [rows, width]
  T *out = nullptr, *masked = nullptr;                             // [rows, width]; may be `gradient`
  const T *scale = nullptr, *shift = nullptr, *scale2 = nullptr, *shift2 = nullptr;
  const T *factor = nullptr, *mean = nullptr, *slope = nullptr, *offset = nullptr;
  T* sums = nullptr;  // [3 or 2, width] that is written, in room for kSums rows of it
  bool relu = false;
};

template <class T>
struct RowKernels {
  // out = act(argument)
  void (*apply)(const Rows<T>&);
  // sums = some value near the mean, the sum of deviations from it, and of their squares
  void (*moments)(const Rows<T>&);
  // sums = the sums of g and of g * (y - mean), g being `gradient` where the ReLU passes it; masked, if given, = g
  void (*sums)(const Rows<T>&);
  // out = factor * g + slope * (y - mean) + offset
  void (*backward)(const Rows<T>&);
};

namespace baseline {
extern const RowKernels<float> float_kernels;
extern const RowKernels<double> double_kernels;
}  // namespace baseline

namespace avx2 {  // not in every build
extern const RowKernels<float> float_kernels;
extern const RowKernels<double> double_kernels;
}  // namespace avx2

}  // namespace fastres::cpu
