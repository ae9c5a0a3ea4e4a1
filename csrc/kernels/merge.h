// What bn_act.cu and bn_merge.cu share: partial results of a channel, merged in a fixed order.
#pragma once

#include "kernels/moments.h"

namespace fastres {
namespace {

// Of a gradient g behind a ReLU: the sums of g and of g * (x - mean).
struct GradientSums {
  float g = 0.f, gx = 0.f;

  __device__ void merge(const GradientSums& other) {
    g += other.g;
    gx += other.gx;
  }
};

// Merges what those of a block's kThreads hold that are `period` apart, a power of two, into the first `period` of
// them. `shared` is [values][kThreads].
template <int kThreads, class Value>
__device__ void merge_threads(Value* shared, int period, int values) {
  for (int distance = kThreads / 2; distance >= period; distance /= 2) {
    __syncthreads();
    if (threadIdx.x >= distance) continue;
    for (int i = 0; i < values; ++i) {
      Value* mine = shared + i * kThreads + threadIdx.x;
      mine->merge(mine[distance]);
    }
  }
}

}  // namespace
}  // namespace fastres
