// BatchNorm, shortcut and ReLU of a training step on the CPU. Bytes are the least that each pass moves, in elements of
// an activation; arithmetic is 1 to 6 FLOPs an element, so memory's speed is the bound.
//
//   apply       out = act(y * scale + shift [+ shortcut [* scale2 + shift2]])         reads 1 or 2, writes 1
//   statistics  [channels, 3]: count, mean, m2                                         reads 1
//   sums        [channels, 2]: of g and g * (y - mean), g masked by the ReLU           reads 2 or 3 [writes 1: masked]
//   backward    out = scale * (g - sum_g / n - (y - mean) * invstd^2 * sum_gy / n)     reads 2 or 3, writes 1
#pragma once

#include <cstdint>

namespace fastres::cpu {

enum class Pass { kApply, kStatistics, kSums, kBackward };

// Activations are [rows, channels], dense; vectors [channels]; all of type T. What a pass has no use for is null.
template <class T>
struct BnAct {
  int64_t rows = 0, channels = 0;
  int threads = 1;
  bool relu = false;
  const T *y = nullptr, *shortcut = nullptr, *gradient = nullptr;
  T *out = nullptr, *masked = nullptr;  // either may be `gradient`
  const T *scale = nullptr, *shift = nullptr, *scale2 = nullptr, *shift2 = nullptr;
  const T *mean = nullptr, *invstd = nullptr, *gradient_scale = nullptr;
  const T* sums = nullptr;  // what `backward` takes: [channels, 2], over `values` values a channel
  double values = 1;
  T* result = nullptr;  // what `statistics` and `sums` give
};

// The results' bits do not depend on `threads`: sums are over slabs whose number depends on the size alone, merged in
// their order in double. Throws std::bad_alloc, before anything is written.
template <class T>
void bn_act(Pass pass, const BnAct<T>& of);

// vectors [4, channels]: mean, invstd, scale and shift, of statistics [channels, 3] over `values` values each; gamma
// and beta may be null, for 1 and 0.
template <class T>
void bn_vectors(int64_t channels, const T* statistics, double values, const T* gamma, const T* beta, double eps,
                T* vectors);

// mean and var, [channels], moved towards those of `statistics` by `weight` of the way.
template <class T>
void bn_track(int64_t channels, const T* statistics, double weight, T* mean, T* var);

}  // namespace fastres::cpu
