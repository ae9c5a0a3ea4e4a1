// Convolution forward as an implicit GEMM on tensor cores: Ampere and later.
//
//   y[n,p,q,k] = act(bias[k] + residual[n,p,q,k]
//                    + sum over r,s,c of x[n, p*stride + r*dilation - pad, q*stride + s*dilation - pad, c] *
//                    w[k,r,s,c])
//
// In training, x may be a raw convolution output whose BatchNorm is due, and y is another: a prologue makes
// relu(x * scale[c] + shift[c]) of x, with zeros outside the image after it, and an epilogue leaves each tile's
// statistics of y.
//
// As a GEMM: M = N*P*Q output pixels, N = K filters, depth = R*S*C, c fastest. A group of a grouped convolution is a
// GEMM of its own. With a second operand its depth follows the first's, into the same accumulators (the projection
// shortcut).
//
// Work: 2*N*P*Q*K*R*S*C/groups FLOPs. Fewest bytes: x, w, residual and y once each. ResNet-50's 1x1 64->256 at 56x56
// has 51 FLOPs a byte in 16 bits: bound by memory; its 3x3 512->512 at 7x7, batch 256, 1,970: bound by the tensor
// cores. The statistics take 12 bytes a filter and tile of rows, 5 % of y where tiles have 128 rows.
//
// Layout: x, y and residual NHWC, weights KRSC. A stage in shared memory is kM rows of A, then kN rows of B, each 64
// bytes of depth: four chunks of 16 bytes. Chunk j of row i lies at chunk j ^ (i / 2 % 4), so that the eight rows that
// an ldmatrix reads fall on different banks. Accumulators are float32 in registers. The prologue is applied in shared
// memory by the thread that asked for the copy, which knows the chunk's channels and whether it is padding; a tile's
// input is transformed once a tap and column of tiles.

#include <algorithm>
#include <climits>

#include "kernels/conv_sm80_mainloop.h"
#include "kernels/conv_sm80_statistics.h"
#include "params.h"
#include "plan.h"
#include "ptx/element.h"
#include "ptx/math.h"

namespace fastres {
namespace {

// --- epilogue --------------------------------------------------------------------------------------------------------

// act(sum + bias + residual) for one chunk of y, of which `count` channels exist.
template <class T>
__device__ __forceinline__ void finish(const ConvParams& params, int64_t at, float (&sum)[Chunk<T>::kElements],
                                       const Chunk<T>& residual, int count, bool aligned) {
#pragma unroll
  for (int i = 0; i < Chunk<T>::kElements; ++i) {
    if (params.residual != nullptr) sum[i] += residual[i];
    if (params.relu) sum[i] = ptx::relu(sum[i]);
  }
  Chunk<T>::narrow(sum).store(static_cast<typename T::Bits*>(params.y) + at, count, aligned);
}

// The bias of `count` filters from `filter` on, both operands' together.
template <int kCount>
__device__ __forceinline__ void load_bias(const ConvParams& params, int filter, float (&bias)[kCount], int count) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    bias[i] = i < count && params.operand[0].bias != nullptr ? __ldg(params.operand[0].bias + filter + i) : 0.f;
    if (i < count && params.operand[1].bias != nullptr) bias[i] += __ldg(params.operand[1].bias + filter + i);
  }
}

// Writes a warp's outputs. The accumulators go through shared memory, 16 rows at a time and in float32, so that a lane
// gets a chunk of neighbouring channels and memory is accessed in whole sectors.
template <class C>
__device__ void epilogue(const ConvParams& params, const Accumulators<C>& sums, float* staging, int m, int filter) {
  using Chunk = fastres::Chunk<typename C::T>;
  constexpr int kLanes = C::kWarpN / C::kVector, kRows = 32 / kLanes, kPasses = 16 / kRows;
  const int lane = threadIdx.x % 32;
  const int rows = params.n * params.p * params.q, filters = params.k / params.groups;
  const int column = lane % kLanes * C::kVector;
  const int count = min(C::kVector, filters - filter - column);  // not positive: past the last filter
  const int first = blockIdx.y * filters + filter + column;
  const bool aligned = filters % C::kVector == 0;
  float bias[C::kVector];
  load_bias(params, first, bias, params.partial == nullptr ? count : 0);

#pragma unroll
  for (int slice = 0; slice < Accumulators<C>::kRows; ++slice) {
    Chunk residual[kPasses];  // asked for before the accumulators are staged, to hide the wait
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = m + slice * 16 + pass * kRows + lane / kLanes;
      const bool present = params.residual != nullptr && params.partial == nullptr && row < rows;
      residual[pass] =
          Chunk::load(static_cast<const typename C::Bits*>(params.residual) + int64_t{row} * params.k + first,
                      present ? count : 0, aligned);
    }
    __syncwarp();
    float* quad = staging + lane / 4 * C::kStagingPitch + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < Accumulators<C>::kColumns; ++j) {
      const float (&d)[4] = sums.value[slice][j];
      *reinterpret_cast<float2*>(quad + j * 8) = make_float2(d[0], d[1]);
      *reinterpret_cast<float2*>(quad + 8 * C::kStagingPitch + j * 8) = make_float2(d[2], d[3]);
    }
    __syncwarp();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int local = pass * kRows + lane / kLanes, row = m + slice * 16 + local;
      float sum[C::kVector];
#pragma unroll
      for (int i = 0; i < C::kVector; i += 4) {
        const float4 v = *reinterpret_cast<const float4*>(staging + local * C::kStagingPitch + column + i);
        sum[i] = v.x + bias[i], sum[i + 1] = v.y + bias[i + 1];
        sum[i + 2] = v.z + bias[i + 2], sum[i + 3] = v.w + bias[i + 3];
      }
      if (row >= rows) continue;
      const int64_t at = int64_t{row} * params.k + first;
      if (params.partial == nullptr) {
        finish<typename C::T>(params, at, sum, residual[pass], count, aligned);
      } else {
        float* partial = params.partial + int64_t{blockIdx.z} * rows * params.k + at;
#pragma unroll
        for (int i = 0; i < C::kVector; ++i)
          if (i < count) partial[i] = sum[i];
      }
    }
  }
}

// --- kernels --------------------------------------------------------------------------------------------------------

// Grid: x tiles, those of one row of tiles next to each other so that they share A in L2; y groups; z splits of depth.
template <class C>
__device__ __forceinline__ void conv_fprop(const ConvParams& params) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int tiles_n = ceil_div(params.k / params.groups, C::kN);
  const int tile_m = blockIdx.x / tiles_n * C::kM, tile_n = blockIdx.x % tiles_n * C::kN;
  const int warp = threadIdx.x / 32;
  const int warp_m = warp % (C::kM / C::kWarpM) * C::kWarpM, warp_n = warp / (C::kM / C::kWarpM) * C::kWarpN;

  int steps = 0;
  for (int i = 0; i < params.operands; ++i) steps += ceil_div(depth_of(params.operand[i], params.groups), C::kDepth);
  const int first = static_cast<int>(int64_t{steps} * blockIdx.z / gridDim.z);
  steps = static_cast<int>(int64_t{steps} * (blockIdx.z + 1) / gridDim.z) - first;

  const uint32_t stages = ptx::shared_address(shared);
  Loader<C> loader(params, stages, tile_m, tile_n, first);
  Accumulators<C> sums;
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) loader.next(stage);
    ptx::cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    if constexpr (C::kCopy == 16)
      if (params.input_scale != nullptr) loader.apply_prologue(step % kStages);
    __syncthreads();  // this step's stage has come for all, and all have done with the stage to be filled next
    if (step + kStages - 1 < steps) loader.next((step + kStages - 1) % kStages);
    ptx::cp_async_commit();
    sums.multiply(stages + step % kStages * C::kStageBytes, warp_m, warp_n);
  }
  __syncthreads();  // the stages become staging space
  if (params.moments != nullptr)
    write_moments<C>(params, sums, reinterpret_cast<Moments*>(shared + C::kStagingBytes), tile_m, tile_n, warp_m,
                     warp_n);
  float* staging = reinterpret_cast<float*>(shared) + warp * 16 * C::kStagingPitch;
  epilogue<C>(params, sums, staging, tile_m + warp_m, tile_n + warp_n);
}

// The end of a split convolution: adds the splits in their order, so that a sum is the same on every run.
template <class T>
__device__ __forceinline__ void reduce_splits(const ConvParams& params) {
  constexpr int kVector = Chunk<T>::kElements;
  const int chunks = ceil_div(params.k, kVector);
  const int64_t rows = int64_t{params.n} * params.p * params.q;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rows * chunks) return;
  const int column = static_cast<int>(index % chunks) * kVector;
  const int64_t at = index / chunks * params.k + column;
  const int count = min(kVector, params.k - column);
  const bool aligned = params.k % kVector == 0;
  float sum[kVector];
  load_bias(params, column, sum, count);
  for (int split = 0; split < params.splits; ++split) {
    const float* partial = params.partial + split * rows * params.k + at;
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (i < count) sum[i] += __ldg(partial + i);
  }
  const auto residual = Chunk<T>::load(static_cast<const typename T::Bits*>(params.residual) + at,
                                       params.residual != nullptr ? count : 0, aligned);
  finish<T>(params, at, sum, residual, count, aligned);
}

// Every instantiation: X(type, element, rows, columns, warps along the rows, bytes contiguous in x). Input whose
// channels or address allow no 16-byte copies (a stem, narrow groups, a misaligned view) takes one small tile.
#define FASTRES_CONV_OF(X, type, Element) \
  X(type, Element, 128, 128, 2, 16)       \
  X(type, Element, 128, 64, 2, 16)        \
  X(type, Element, 64, 64, 2, 16)         \
  X(type, Element, 128, 32, 4, 16)        \
  X(type, Element, 128, 32, 4, 8)         \
  X(type, Element, 128, 32, 4, 4)
#define FASTRES_CONV_KERNELS(X)  \
  FASTRES_CONV_OF(X, bf16, Bf16) \
  X(bf16, Bf16, 128, 32, 4, 2)   \
  FASTRES_CONV_OF(X, fp16, Fp16) \
  X(fp16, Fp16, 128, 32, 4, 2)   \
  FASTRES_CONV_OF(X, tf32, Tf32)
#define FASTRES_REDUCE_KERNELS(X) X(bf16, Bf16) X(fp16, Fp16) X(tf32, Tf32)

#define FASTRES_NAME(type, m, n, copy) conv_sm80_##type##_##m##x##n##_copy##copy

}  // namespace

#define FASTRES_DEFINE(type, Element, m, n, warps_m, copy)                        \
  extern "C" __global__ void __launch_bounds__(kThreads, m* n > 128 * 64 ? 2 : 3) \
      FASTRES_NAME(type, m, n, copy)(const __grid_constant__ ConvParams params) { \
    conv_fprop<Config<Element, m, n, warps_m, copy>>(params);                     \
  }
FASTRES_CONV_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

#define FASTRES_DEFINE(type, Element)                                        \
  extern "C" __global__ void __launch_bounds__(kThreads)                     \
      conv_sm80_##type##_reduce(const __grid_constant__ ConvParams params) { \
    reduce_splits<Element>(params);                                          \
  }
FASTRES_REDUCE_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

// --- launcher -------------------------------------------------------------------------------------------------------

namespace {

struct Instance {
  const char* symbol;
  const void* host;
  DType dtype;
  int m, n, copy;
  uint32_t shared_bytes;
};

#define FASTRES_TEXT2(name) #name
#define FASTRES_TEXT(name) FASTRES_TEXT2(name)
#define FASTRES_LIST(type, Element, m, n, warps_m, copy)          \
  {FASTRES_TEXT(FASTRES_NAME(type, m, n, copy)),                  \
   reinterpret_cast<const void*>(FASTRES_NAME(type, m, n, copy)), \
   DType::k##Element,                                             \
   m,                                                             \
   n,                                                             \
   copy,                                                          \
   Config<Element, m, n, warps_m, copy>::kSharedBytes},
const Instance kInstances[] = {FASTRES_CONV_KERNELS(FASTRES_LIST)};
#undef FASTRES_LIST

#define FASTRES_LIST(type, Element)                          \
  {"conv_sm80_" #type "_reduce",                             \
   reinterpret_cast<const void*>(conv_sm80_##type##_reduce), \
   DType::k##Element,                                        \
   0,                                                        \
   0,                                                        \
   0,                                                        \
   0},
const Instance kReductions[] = {FASTRES_REDUCE_KERNELS(FASTRES_LIST)};
#undef FASTRES_LIST

int element_bytes(DType dtype) {
  return dtype == DType::kTf32 ? 4 : 2;
}

// Steps of depth of the main loop.
int steps_of(DType dtype, const ConvParams& params) {
  int steps = 0;
  for (int i = 0; i < params.operands; ++i)
    steps += ceil_div(depth_of(params.operand[i], params.groups), kRowBytes / element_bytes(dtype));
  return steps;
}

// The widest copy that every run of channels and every address of x allows.
int copy_bytes(DType dtype, const ConvParams& params) {
  uintptr_t both = 16;
  for (int i = 0; i < params.operands; ++i)
    both |= reinterpret_cast<uintptr_t>(params.operand[i].x) |
            static_cast<uintptr_t>(params.operand[i].c / params.groups * element_bytes(dtype));
  return static_cast<int>(both & -both);
}

const Instance& find(DType dtype, int m, int n, int copy) {
  for (const Instance& instance : kInstances)
    if (instance.dtype == dtype && instance.m == m && instance.n == n && instance.copy == copy) return instance;
  throw std::invalid_argument("tile: no kernel computes " + std::to_string(m) + " x " + std::to_string(n) +
                              " tiles of " + std::to_string(copy) +
                              "-byte copies; expected 128 x 128, 128 x 64, 64 x 64 or 128 x 32 " +
                              "with 16, 128 x 32 with less");
}

int64_t blocks_of(const ConvParams& params, int m, int n) {
  return ceil_div64(rows_of(params), m) * ceil_div(params.k / params.groups, n) * params.groups;
}

}  // namespace

void check_conv(DType dtype, const ConvParams& params) {
  const size_t element = element_bytes(dtype);
  require(params.operands == 1 || params.operands == 2, "operands", params.operands, "1 or 2");
  for (const auto& [value, name] : {std::pair{params.n, "n"}, {params.p, "p"}, {params.q, "q"}, {params.k, "k"}})
    require(value > 0, name, value, "a positive number");
  require(rows_of(params) <= INT_MAX - 128, "n * p * q", rows_of(params), "less than 2^31 - 128 pixels");
  require(params.groups > 0 && params.groups <= 65535 && params.k % params.groups == 0, "groups", params.groups,
          "a divisor of k, at most 65535");
  require(params.operands == 1 || params.groups == 1, "groups", params.groups, "1 with two operands");
  for (int i = 0; i < params.operands; ++i) {
    const ConvOperand& o = params.operand[i];
    for (const auto& [value, name] : {std::pair{o.h, "h"},
                                      {o.w, "w"},
                                      {o.c, "c"},
                                      {o.r, "r"},
                                      {o.s, "s"},
                                      {o.stride_h, "stride_h"},
                                      {o.stride_w, "stride_w"},
                                      {o.dilation_h, "dilation_h"},
                                      {o.dilation_w, "dilation_w"}})
      require(value > 0 && value < (1 << 20), name, value, "a number from 1 to 2^20 - 1");
    require(o.pad_h >= 0 && o.pad_h < (1 << 20), "pad_h", o.pad_h, "a number from 0 to 2^20 - 1");
    require(o.pad_w >= 0 && o.pad_w < (1 << 20), "pad_w", o.pad_w, "a number from 0 to 2^20 - 1");
    require(o.c % params.groups == 0, "c", o.c, "a multiple of groups");
    const int64_t reach_h = int64_t{o.dilation_h} * (o.r - 1) + 1, reach_w = int64_t{o.dilation_w} * (o.s - 1) + 1;
    require((o.h + 2 * o.pad_h - reach_h) / o.stride_h + 1 == params.p, "p", params.p,
            "the height that the input gives");
    require((o.w + 2 * o.pad_w - reach_w) / o.stride_w + 1 == params.q, "q", params.q,
            "the width that the input gives");
    const int64_t depth = int64_t{o.r} * o.s * (o.c / params.groups);
    require(depth < (1 << 30), "r * s * c / groups", depth, "less than 2^30");
    require(o.weight_pitch >= depth && o.weight_pitch < (1 << 30) && o.weight_pitch * element % 16 == 0, "weight_pitch",
            o.weight_pitch, "at least r * s * c / groups, a multiple of 16 bytes");
    require_address(o.x, element, "x");
    require_address(o.weight, 16, "weight");
    if (o.bias != nullptr) require_address(o.bias, 4, "bias");
  }
  require_address(params.y, 16, "y");
  if (params.residual != nullptr) require_address(params.residual, 16, "residual");
  if (params.input_scale != nullptr || params.input_shift != nullptr) {
    require_address(params.input_scale, 16, "input_scale");
    require_address(params.input_shift, 16, "input_shift");
    require(params.operands == 1, "operands", params.operands, "1 with a prologue");
    require(copy_bytes(dtype, params) == 16, "input_scale", copy_bytes(dtype, params),
            "an x whose address and groups of channels are multiples of 16 bytes");
  }
  if (params.moments != nullptr) {
    require_address(params.moments, 4, "moments");
    require(params.operands == 1 && params.operand[0].bias == nullptr && params.residual == nullptr && !params.relu,
            "moments", params.operands, "1 operand, no bias, residual or ReLU");
  }
}

size_t conv_sm80_workspace(DType dtype, const ConvParams& params, int sms, ConvTile& tile) {
  check_conv(dtype, params);
  require(sms > 0, "sms", sms, "a positive number");
  const int copy = copy_bytes(dtype, params), filters = params.k / params.groups;
  if (tile.m == 0) {  // the largest tile that keeps all multiprocessors busy
    if (copy < 16 || filters <= 32) {
      tile.m = 128, tile.n = 32;
    } else if (filters > 64 && blocks_of(params, 128, 128) >= sms) {
      tile.m = 128, tile.n = 128;
    } else {
      tile.m = blocks_of(params, 128, 64) >= sms ? 128 : 64, tile.n = 64;
    }
  }
  find(dtype, tile.m, tile.n, copy);
  const int steps = steps_of(dtype, params);
  if (tile.splits == 0) {  // fill idle multiprocessors, while a split has at least eight steps to do
    const int64_t blocks = blocks_of(params, tile.m, tile.n);
    tile.splits = static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(sms / blocks, steps / 8), 1, 16));
  }
  require(tile.splits >= 1 && tile.splits <= std::min(steps, 65535), "splits", tile.splits,
          "at least 1, at most the steps of the main loop");
  return tile.splits == 1 ? 0 : static_cast<size_t>(tile.splits) * rows_of(params) * params.k;
}

Plan plan_conv_reduce(DType dtype, const ConvParams& params) {
  const int64_t chunks = rows_of(params) * ceil_div(params.k, 16 / element_bytes(dtype));
  const int64_t blocks = ceil_div64(chunks, kThreads);
  require(blocks <= INT_MAX, "blocks", blocks, "at most 2^31 - 1");
  const Instance& reduction = kReductions[static_cast<int>(dtype)];
  return make_plan(reduction.symbol, "conv_sm80", reduction.host, Dim3{static_cast<uint32_t>(blocks)}, kThreads, 0,
                   params);
}

std::vector<Plan> plan_conv_sm80(DType dtype, const ConvParams& given, const ConvTile& tile) {
  ConvParams params = given;
  ConvTile chosen = tile;
  conv_sm80_workspace(dtype, params, 1, chosen);
  params.splits = chosen.splits;
  if (params.splits == 1) params.partial = nullptr;
  if (params.splits > 1) require_address(params.partial, 16, "partial");
  require(params.splits == 1 || params.moments == nullptr, "splits", params.splits, "1 with moments");
  const Instance& instance = find(dtype, chosen.m, chosen.n, copy_bytes(dtype, params));
  const int64_t tiles = blocks_of(params, chosen.m, chosen.n) / params.groups;
  require(tiles <= INT_MAX, "tiles", tiles, "at most 2^31 - 1");
  const Dim3 grid{static_cast<uint32_t>(tiles), static_cast<uint32_t>(params.groups),
                  static_cast<uint32_t>(params.splits)};
  std::vector<Plan> plans{
      make_plan(instance.symbol, "conv_sm80", instance.host, grid, kThreads, instance.shared_bytes, params)};
  if (params.splits > 1) plans.push_back(plan_conv_reduce(dtype, params));
  return plans;
}

void append_conv_sm80_names(std::vector<KernelName>& names) {
  for (const Instance& instance : kInstances) names.push_back({instance.symbol, "conv_sm80"});
  for (const Instance& instance : kReductions) names.push_back({instance.symbol, "conv_sm80"});
}

}  // namespace fastres
