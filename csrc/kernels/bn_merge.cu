// What BatchNorm does with [C] values between passes over memory.
//
//   merge     the partial results of all slabs of a channel (of bn_act.cu, or tiles of a convolution) into one
//   finalize  mean, invstd = 1 / sqrt(m2 / values + eps), scale = gamma * invstd, shift = beta - mean * scale, and
//             running = (1 - momentum) * running + momentum * new, of the variance the unbiased one
//
// Work: none to speak of; a launch. Merging reads 12 bytes a channel and slab: of a 56x56x64 layer, batch 256, 4.8 MB,
// 5 % of the layer's output.
//
// Layout: partial results [slabs, C]. A block merges kChannels channels, each by kThreads / kChannels threads that walk
// down the slabs; then those are merged, all in a fixed order: a result is the same on every run.

#include <type_traits>

#include "kernels/merge.h"
#include "params.h"
#include "plan.h"

namespace fastres {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 8;

template <class Value>
__device__ __forceinline__ void merge_slabs(const BnMergeParams& params) {
  __shared__ Value shared[kThreads];
  const Value* partial = static_cast<const Value*>(params.partial);
  const int channel = blockIdx.x * kChannels + threadIdx.x % kChannels;
  Value value;
  if (channel < params.channels) {
#pragma unroll 4
    for (int slab = threadIdx.x / kChannels; slab < params.slabs; slab += kThreads / kChannels)
      value.merge(partial[int64_t{slab} * params.channels + channel]);
  }
  shared[threadIdx.x] = value;
  merge_threads<kThreads>(shared, kChannels, 1);
  if (threadIdx.x >= kChannels || channel >= params.channels) return;
  value = shared[threadIdx.x];
  if constexpr (std::is_same_v<Value, Moments>)
    if (params.from_origin) value.mean += partial[int64_t{params.slabs} * params.channels + channel].mean;
  static_cast<Value*>(params.result)[channel] = value;
}

// A thread a channel.
__device__ __forceinline__ void finalize(const BnFinalizeParams& params) {
  const int channel = blockIdx.x * kThreads + threadIdx.x, channels = params.channels;
  if (channel >= channels) return;
  const Moments moments = static_cast<const Moments*>(params.statistics)[channel];
  const float invstd = 1.f / sqrtf(moments.m2 / params.values + params.eps);
  const float scale = params.gamma != nullptr ? params.gamma[channel] * invstd : invstd;
  const float beta = params.beta != nullptr ? params.beta[channel] : 0.f;
  float* vectors = params.vectors + channel;
  vectors[0] = moments.mean;
  vectors[channels] = invstd;
  vectors[2 * channels] = scale;
  vectors[3 * channels] = fmaf(-moments.mean, scale, beta);
  if (params.running_mean == nullptr) return;
  const float kept = 1.f - params.momentum, var = moments.m2 / (params.values - 1.f);
  params.running_mean[channel] = fmaf(params.momentum, moments.mean, kept * params.running_mean[channel]);
  params.running_var[channel] = fmaf(params.momentum, var, kept * params.running_var[channel]);
}

}  // namespace

#define FASTRES_KERNELS(X)                                    \
  X(bn_merge_statistics, merge_slabs<Moments>, BnMergeParams) \
  X(bn_merge_sums, merge_slabs<GradientSums>, BnMergeParams)  \
  X(bn_finalize, finalize, BnFinalizeParams)

#define FASTRES_DEFINE(name, body, Params)                                                             \
  extern "C" __global__ void __launch_bounds__(kThreads) name(const __grid_constant__ Params params) { \
    body(params);                                                                                      \
  }
FASTRES_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

// --- launcher -------------------------------------------------------------------------------------------------------

Plan plan_bn_merge(BnActPass pass, const BnMergeParams& params) {
  require(pass == BnActPass::kStatistics || pass == BnActPass::kSums, "pass", static_cast<int>(pass),
          "one that reduces, statistics or sums");
  require(params.slabs > 0, "slabs", params.slabs, "a positive number");
  require(params.channels > 0, "channels", params.channels, "a positive number");
  require_address(params.partial, 4, "partial");
  require_address(params.result, 4, "result");
  const Dim3 grid{static_cast<uint32_t>(ceil_div64(params.channels, kChannels))};
  if (pass == BnActPass::kStatistics)
    return make_plan("bn_merge_statistics", "bn_merge", reinterpret_cast<const void*>(bn_merge_statistics), grid,
                     kThreads, 0, params);
  return make_plan("bn_merge_sums", "bn_merge", reinterpret_cast<const void*>(bn_merge_sums), grid, kThreads, 0,
                   params);
}

Plan plan_bn_finalize(const BnFinalizeParams& params) {
  require(params.channels > 0, "channels", params.channels, "a positive number");
  const bool running = params.running_mean != nullptr || params.running_var != nullptr;
  require(params.values >= (running ? 2.f : 1.f), "values", params.values, "at least 1, 2 with running statistics");
  require_address(params.statistics, 4, "statistics");
  require_address(params.vectors, 4, "vectors");
  if (running) require_address(params.running_mean, 4, "running_mean");
  if (running) require_address(params.running_var, 4, "running_var");
  const Dim3 grid{static_cast<uint32_t>(ceil_div64(params.channels, kThreads))};
  return make_plan("bn_finalize", "bn_merge", reinterpret_cast<const void*>(bn_finalize), grid, kThreads, 0, params);
}

void append_bn_merge_names(std::vector<KernelName>& names) {
#define FASTRES_LIST(name, body, Params) names.push_back({#name, "bn_merge"});
  FASTRES_KERNELS(FASTRES_LIST)
#undef FASTRES_LIST
}

}  // namespace fastres
