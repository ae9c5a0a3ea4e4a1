// BatchNorm with ReLU and residual, forward and backward, each in one pass over memory.
//
//   statistics  mean[c], m2[c] = sum over rows of (x - mean)^2, by Chan's merge of partial (count, mean, m2)
//   apply       y = act(x * scale[c] + shift[c] + residual [* scale2[c] + shift2[c]])
//   sums        with g = dy where that argument of the ReLU is positive (or no ReLU), else 0:
//               sum_g[c], sum_gx[c] = sum of g * (x - mean[c])
//   backward    dx = gscale[c] * (g - sum_g[c] / values - (x - mean[c]) * invstd[c]^2 * sum_gx[c] / values),
//               dresidual = g
//
// Backward works out the ReLU's argument again, so that nothing but x and the residual needs to be kept. `values` is
// rows, or the count over all devices where BatchNorm is synchronised.
//
// Work: 2 to 10 FLOPs an element: bound by memory. Fewest bytes: each tensor named once. A 56x56x256 layer, batch 256,
// in 16 bits is 411 MB a tensor: 0.1 ms at 4 TB/s for the statistics, 0.3 ms for apply with a residual.
//
// Layout: [rows, C], rows = N*H*W of NHWC tensors. A thread has one chunk of 16 bytes of channels and walks down the
// rows of its block's slab, so that what belongs to a channel is read once. Threads, then slabs (by bn_merge.cu), are
// merged in a fixed order: a sum is the same on every run.

#include <algorithm>
#include <tuple>

#include "kernels/merge.h"
#include "params.h"
#include "plan.h"
#include "ptx/element.h"
#include "ptx/math.h"

namespace fastres {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 8;  // a slab's length, at least
constexpr int kMaxSlabs = 2048;

// What a pass reads of a row. What it has no use for is zero.
template <class T>
struct Row {
  Chunk<T> x, gradient, residual;
};

// What this thread works on: a chunk of channels, and every `stride`-th row from `row` on.
template <class T>
struct Share {
  static constexpr int kVector = Chunk<T>::kElements;
  int column, count;
  int64_t row, end, stride;
  bool aligned;

  __device__ explicit Share(const BnActParams& params) {
    const int lane = threadIdx.x % params.lanes;
    column = (blockIdx.y * params.lanes + lane) * kVector;
    count = min(kVector, params.channels - column);  // not positive: past the last channel
    stride = kThreads / params.lanes;
    row = params.rows * blockIdx.x / gridDim.x + threadIdx.x / params.lanes;
    end = params.rows * (blockIdx.x + 1) / gridDim.x;
    aligned = params.aligned;
    if (count <= 0) row = end;
  }

  __device__ Chunk<T> load(const void* tensor, int64_t at) const {
    return Chunk<T>::load(static_cast<const typename T::Bits*>(tensor) + at, tensor == nullptr ? 0 : count, aligned);
  }
  // Calls use(at, row) for each row, in order. So many rows are loaded before the first of them is used: a thread needs
  // several loads under way to fill the memory's pipe. A branch between them would have each wait for the one before.
  template <int kAtOnce, class Use>
  __device__ void for_rows(const BnActParams& params, bool gradient, Use use) const {
    if (aligned) {
      walk<kAtOnce, true>(params, gradient, use);
    } else {
      walk<1, false>(params, gradient, use);
    }
  }
  template <int kAtOnce, bool kAligned, class Use>
  __device__ void walk(const BnActParams& params, bool gradient, Use use) const {
    const auto load_chunk = [&](const void* tensor, int64_t at) {
      return Chunk<T>::load(static_cast<const typename T::Bits*>(tensor) + at, tensor == nullptr ? 0 : count, kAligned);
    };
    const auto load_row = [&](int64_t at) {
      return Row<T>{load_chunk(params.x, at), load_chunk(gradient ? params.gradient : nullptr, at),
                    load_chunk(params.residual, at)};
    };
    const int64_t step = stride * params.channels, last = end * params.channels;
    int64_t at = row * params.channels + column;
    for (; at + (kAtOnce - 1) * step < last; at += kAtOnce * step) {
      Row<T> rows[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) rows[i] = load_row(at + i * step);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) use(at + i * step, rows[i]);
    }
    for (; at < last; at += step) use(at, load_row(at));
  }
  __device__ void store(void* tensor, int64_t at, const float (&value)[kVector]) const {
    Chunk<T>::narrow(value).store(static_cast<typename T::Bits*>(tensor) + at, count, aligned);
  }
  __device__ void load_channels(const float* values, float (&to)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = values != nullptr && i < count ? __ldg(values + column + i) : 0.f;
  }
};

// Merges the threads that share channels; the first of them writes params.partial[slab][channel].
template <class T, class Value>
__device__ void merge_block(const BnActParams& params, const Share<T>& share, const Value (&mine)[Share<T>::kVector]) {
  __shared__ Value shared[Share<T>::kVector * kThreads];
#pragma unroll
  for (int i = 0; i < Share<T>::kVector; ++i) shared[i * kThreads + threadIdx.x] = mine[i];
  merge_threads<kThreads>(shared, params.lanes, Share<T>::kVector);
  if (threadIdx.x < params.lanes) {
    Value* partial = static_cast<Value*>(params.partial) + int64_t{blockIdx.x} * params.channels + share.column;
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i)
      if (i < share.count) partial[i] = shared[i * kThreads + threadIdx.x];
  }
}

template <class T>
__device__ void statistics(const BnActParams& params) {
  const Share<T> share(params);
  // Sums of deviations from this thread's first value, near enough to the mean that nothing cancels. Means are kept
  // relative to the first row of all, which matters where they are far from zero when threads and slabs are merged.
  const Chunk<T> first =
      share.load(share.row < share.end ? params.x : nullptr, share.row * params.channels + share.column);
  float sum[share.kVector] = {}, square[share.kVector] = {};
  int rows = 0;
  for (int64_t row = share.row; row < share.end; row += share.stride, ++rows) {
    const Chunk<T> x = share.load(params.x, row * params.channels + share.column);
#pragma unroll
    for (int i = 0; i < share.kVector; ++i) {
      const float deviation = x[i] - first[i];
      sum[i] += deviation;
      square[i] += deviation * deviation;
    }
  }
  const Chunk<T> origin = share.load(params.x, share.column);
  Moments moments[share.kVector];
  const float one_of_rows = __fdividef(1.f, rows);
#pragma unroll
  for (int i = 0; i < share.kVector; ++i) {
    if (rows == 0) continue;
    const float mean = sum[i] * one_of_rows;
    moments[i].count = rows;
    moments[i].mean = first[i] - origin[i] + mean;
    moments[i].m2 = square[i] - sum[i] * mean;
  }
  merge_block<T>(params, share, moments);
  if (blockIdx.x > 0 || threadIdx.x >= params.lanes) return;
  Moments* last = static_cast<Moments*>(params.partial) + int64_t{params.slabs} * params.channels + share.column;
#pragma unroll
  for (int i = 0; i < share.kVector; ++i)
    if (i < share.count) last[i] = Moments{0.f, origin[i], 0.f};
}

// The ReLU's argument, in forward and backward the same bits.
template <class T>
struct Argument {
  static constexpr int kVector = Share<T>::kVector;
  float scale[kVector], shift[kVector], scale2[kVector];

  __device__ Argument(const BnActParams& params, const Share<T>& share) {
    float shift2[kVector];
    share.load_channels(params.scale, scale);
    share.load_channels(params.shift, shift);
    share.load_channels(params.scale2, scale2);
    share.load_channels(params.shift2, shift2);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      shift[i] += shift2[i];
      if (params.scale2 == nullptr) scale2[i] = params.residual != nullptr ? 1.f : 0.f;
    }
  }
  __device__ float operator()(int i, float x, float residual) const {
    return fmaf(residual, scale2[i], fmaf(x, scale[i], shift[i]));
  }
};

template <class T>
__device__ void apply(const BnActParams& params) {
  const Share<T> share(params);
  const Argument<T> argument(params, share);
  share.template for_rows<4>(params, false, [&](int64_t at, const Row<T>& row) {
    float y[Share<T>::kVector];
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i) {
      y[i] = argument(i, row.x[i], row.residual[i]);
      if (params.relu) y[i] = ptx::relu(y[i]);
    }
    share.store(params.y, at, y);
  });
}

// The gradient behind the ReLU: PyTorch's rule, which lets a NaN's gradient pass.
__device__ __forceinline__ float behind_relu(const BnActParams& params, float gradient, float argument) {
  return params.relu && argument <= 0.f ? 0.f : gradient;
}

template <class T>
__device__ void gradient_sums(const BnActParams& params) {
  const Share<T> share(params);
  const Argument<T> argument(params, share);
  float mean[share.kVector];
  share.load_channels(params.mean, mean);
  GradientSums sums[share.kVector];
  share.template for_rows<4>(params, true, [&](int64_t, const Row<T>& row) {
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i) {
      const float g = behind_relu(params, row.gradient[i], argument(i, row.x[i], row.residual[i]));
      sums[i].g += g;
      sums[i].gx += g * (row.x[i] - mean[i]);
    }
  });
  merge_block<T>(params, share, sums);
}

template <class T>
__device__ void backward(const BnActParams& params) {
  const Share<T> share(params);
  const Argument<T> argument(params, share);
  float mean[share.kVector], scale[share.kVector], of_x[share.kVector], mean_g[share.kVector];
  share.load_channels(params.mean, mean);
  share.load_channels(params.gradient_scale, scale);
  share.load_channels(params.invstd, of_x);
#pragma unroll
  for (int i = 0; i < share.kVector; ++i) {  // dx = scale * ((g - mean_g) - of_x * (x - mean))
    const GradientSums sums =
        i < share.count ? static_cast<const GradientSums*>(params.result)[share.column + i] : GradientSums{};
    const float one_of_values = 1.f / static_cast<float>(params.values);
    of_x[i] *= of_x[i] * sums.gx * one_of_values;
    mean_g[i] = sums.g * one_of_values;
  }
  share.template for_rows<2>(params, true, [&](int64_t at, const Row<T>& row) {
    float g[Share<T>::kVector], dx[Share<T>::kVector];
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i) {
      g[i] = behind_relu(params, row.gradient[i], argument(i, row.x[i], row.residual[i]));
      dx[i] = scale[i] * fmaf(-of_x[i], row.x[i] - mean[i], g[i] - mean_g[i]);
    }
    share.store(params.y, at, dx);
    if (params.gradient_residual != nullptr) share.store(params.gradient_residual, at, g);
  });
}

// Every instantiation: X(name, body, pass, element, blocks of a multiprocessor). Backward passes keep up to seven
// vectors.
#define FASTRES_BN_OF(X, type, Element)                                 \
  X(bn_statistics_##type, statistics<Element>, kStatistics, Element, 3) \
  X(bn_apply_##type, apply<Element>, kApply, Element, 2)                \
  X(bn_sums_##type, gradient_sums<Element>, kSums, Element, 2)          \
  X(bn_backward_##type, backward<Element>, kBackward, Element, 2)
#define FASTRES_BN_KERNELS(X)  \
  FASTRES_BN_OF(X, bf16, Bf16) \
  FASTRES_BN_OF(X, fp16, Fp16) \
  FASTRES_BN_OF(X, fp32, Tf32)
}  // namespace

#define FASTRES_DEFINE(name, body, pass, Element, blocks)                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks) name(const __grid_constant__ BnActParams params) { \
    body(params);                                                                                                   \
  }
FASTRES_BN_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

// --- launcher -------------------------------------------------------------------------------------------------------

namespace {

struct Instance {
  const char* symbol;
  const void* host;
  BnActPass pass;
  DType dtype;
};

#define FASTRES_LIST(name, body, pass, Element, blocks) \
  {#name, reinterpret_cast<const void*>(name), BnActPass::pass, DType::k##Element},
const Instance kInstances[] = {FASTRES_BN_KERNELS(FASTRES_LIST)};
#undef FASTRES_LIST

int vector_of(DType dtype) {
  return dtype == DType::kTf32 ? 4 : 8;
}

// Threads next to each other along the channels: a power of two, at most a warp.
int lanes_of(DType dtype, int channels) {
  int lanes = 1;
  while (lanes < 32 && lanes * vector_of(dtype) < channels) lanes *= 2;
  return lanes;
}

}  // namespace

int bn_act_slabs(DType dtype, int64_t rows, int channels) {
  require(rows > 0, "rows", rows, "a positive number");
  require(channels > 0, "channels", channels, "a positive number");
  const int64_t rows_at_once = kThreads / lanes_of(dtype, channels);
  return static_cast<int>(std::clamp<int64_t>(rows / (rows_at_once * kRowsPerThread), 1, kMaxSlabs));
}

std::vector<Plan> plan_bn_act(DType dtype, BnActPass pass, const BnActParams& given) {
  BnActParams params = given;
  params.slabs = bn_act_slabs(dtype, params.rows, params.channels);
  params.lanes = lanes_of(dtype, params.channels);
  const bool reads_gradient = pass == BnActPass::kSums || pass == BnActPass::kBackward;
  const bool writes = pass == BnActPass::kApply || pass == BnActPass::kBackward;
  const bool argument = pass == BnActPass::kApply || (reads_gradient && params.relu);
  uintptr_t addresses = static_cast<uintptr_t>(params.channels) * (16 / vector_of(dtype));
  for (const auto& [pointer, name, needed] : {std::tuple<const void*, const char*, bool>{params.x, "x", true},
                                              {params.residual, "residual", argument && params.scale2 != nullptr},
                                              {params.gradient, "gradient", reads_gradient},
                                              {params.y, "y", writes},
                                              {params.gradient_residual, "gradient_residual", false}}) {
    if (needed || pointer != nullptr) require_address(pointer, 16 / vector_of(dtype), name);
    addresses |= reinterpret_cast<uintptr_t>(pointer);
  }
  params.aligned = addresses % 16 == 0;
  for (const auto& [pointer, name, needed] :
       {std::tuple<const void*, const char*, bool>{params.scale, "scale", argument},
        {params.shift, "shift", argument},
        {params.shift2, "shift2", argument && params.scale2 != nullptr},
        {params.mean, "mean", reads_gradient},
        {params.invstd, "invstd", pass == BnActPass::kBackward},
        {params.gradient_scale, "gradient_scale", pass == BnActPass::kBackward},
        {params.partial, "partial", !writes},
        {params.result, "result", pass != BnActPass::kApply}})
    if (needed) require_address(pointer, 4, name);
  require(pass != BnActPass::kBackward || params.values > 0, "values", params.values, "a positive number");

  const int64_t blocks_y = ceil_div64(params.channels, params.lanes * vector_of(dtype));
  require(blocks_y <= 65535, "channels", params.channels, "at most 65535 blocks of them");
  const Dim3 grid{static_cast<uint32_t>(params.slabs), static_cast<uint32_t>(blocks_y)};
  std::vector<Plan> plans;
  for (const Instance& instance : kInstances)
    if (instance.dtype == dtype && instance.pass == pass)
      plans.push_back(make_plan(instance.symbol, "bn_act", instance.host, grid, kThreads, 0, params));
  if (!writes) {
    const bool from_origin = pass == BnActPass::kStatistics;
    plans.push_back(plan_bn_merge(pass, {params.partial, params.result, params.slabs, params.channels, from_origin}));
  }
  return plans;
}

void append_bn_act_names(std::vector<KernelName>& names) {
  for (const Instance& instance : kInstances) names.push_back({instance.symbol, "bn_act"});
}

}  // namespace fastres
