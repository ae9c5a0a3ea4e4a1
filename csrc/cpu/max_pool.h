// BatchNorm, ReLU and the max pooling behind them on the CPU, the stem of a ResNet, without the activation between.
//
//   forward    out = max over windows of act(y * scale + shift)       reads y once, writes a quarter of it (3x3, stride
//   2) backward   out = the gradient of act(...), from that of windows    reads y and a quarter of it, writes as much
//   as y
//
// As in PyTorch, NaN is the maximum of its window, and of equal values the first has the gradient.
#pragma once

#include <cstdint>

namespace fastres::cpu {

// y is [n, h, w, channels], windows [n, p, q, channels]; scale and shift [channels].
template <class T>
struct MaxPool {
  int64_t n = 0, h = 0, w = 0, channels = 0, p = 0, q = 0;
  int64_t kernel = 1, stride = 1, padding = 0;  // of both dimensions; padding at most half a kernel
  int threads = 1;
  bool relu = false;
  const T *y = nullptr, *scale = nullptr, *shift = nullptr;
  const T* gradient = nullptr;  // of windows
  T* out = nullptr;             // windows, or where `gradient` is given like y
};

template <class T>
void max_pool(const MaxPool<T>& of);

}  // namespace fastres::cpu
