// The passes of a training step over some rows of an NHWC activation. rows.cpp is compiled once for each instruction
// set; bn_act.cpp splits an activation into rows and picks.
#pragma once

#include <cstdint>

#include "max_pool.h"

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

// Of one image: rows [first, last) of windows, or where `gradient` is given of y.
template <class T>
using PoolKernel = void (*)(const MaxPool<T>&, int64_t image, int64_t first, int64_t last);

namespace baseline {
extern const RowKernels<float> float_kernels;
extern const RowKernels<double> double_kernels;
extern const PoolKernel<float> float_pool;
extern const PoolKernel<double> double_pool;
}  // namespace baseline

#ifndef FASTRES_BASELINE_ONLY
namespace avx2 {
extern const RowKernels<float> float_kernels;
extern const RowKernels<double> double_kernels;
extern const PoolKernel<float> float_pool;
extern const PoolKernel<double> double_pool;
}  // namespace avx2
#endif

// Those of the best instruction set that this machine has.
template <class T>
struct Kernels {
  const RowKernels<T>& rows;
  PoolKernel<T> pool;
};
template <class T>
Kernels<T> best();

}  // namespace fastres::cpu
