// Convolution forward as an implicit GEMM by TMA and WGMMA: Hopper.
//
//   y[n,p,q,k] = act(bias[k] + residual[n,p,q,k]
//                    + sum over r,s,c of x[n, p*stride + r*dilation - pad, q*stride + s*dilation - pad, c] *
//                    w[k,r,s,c])
//
// As a GEMM: M = N*P*Q output pixels, N = K filters, depth = R*S*C, c fastest, in steps of 64 channels of one tap. With
// a second operand its steps follow the first's, into the same accumulators (the projection shortcut).
//
// Work: 2*N*P*Q*K*R*S*C FLOPs. Fewest bytes: x, w, residual and y once each.
//
// Layout: x, y and residual NHWC, weights KRSC. A stage in shared memory is 128 pixels, then kN filters, of 64 channels
// each: rows of 128 bytes, chunk j of 16 bytes of row i at j ^ (i % 8), which is TMA's and WGMMA's 128-byte swizzle.
// Accumulators are float32 in registers; results go to shared memory in slabs of 64 x 64 and by TMA from there.
//
// docs/kernels.md draws the rings.

#include <algorithm>
#include <climits>
#include <cstddef>

#include "kernels/conv_sm90_kernel.h"
#include "params.h"
#include "plan.h"

namespace fastres {
namespace {

// Every instantiation: X(type, element, filters, cooperative, cluster, stages, slabs). Stages and slabs fill what
// shared memory there is. Two products of 64 x 128, or one of 64 x 256, are as many accumulators as a thread can hold.
#define FASTRES_CONV90_OF(X, type, Element) \
  X(type, Element, 64, false, 1, 6, 8)      \
  X(type, Element, 64, false, 2, 6, 8)      \
  X(type, Element, 128, false, 1, 5, 8)     \
  X(type, Element, 128, false, 2, 5, 8)     \
  X(type, Element, 256, true, 1, 4, 4)      \
  X(type, Element, 256, true, 2, 4, 4)
#define FASTRES_CONV90_KERNELS(X)  \
  FASTRES_CONV90_OF(X, bf16, Bf16) \
  FASTRES_CONV90_OF(X, fp16, Fp16)

#define FASTRES_NAME(type, n, cluster) conv_sm90_##type##_128x##n##_cluster##cluster

}  // namespace

#define FASTRES_DEFINE(type, Element, n, cooperative, cluster, stages, slabs)         \
  extern "C" __global__ void __launch_bounds__(kThreads90, 1)                         \
      FASTRES_NAME(type, n, cluster)(const __grid_constant__ ConvSm90Params params) { \
    conv_sm90<Config90<Element, n, cooperative, cluster, stages, slabs>>(params);     \
  }
FASTRES_CONV90_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

// --- launcher --------------------------------------------------------------------------------------------------------

namespace {

constexpr uint64_t kElementBytes = 2;
constexpr uint32_t kLargestShared = 227 * 1024;

struct Instance90 {
  const char* symbol;
  const void* host;
  DType dtype;
  int n, cluster;
  bool cooperative;
  uint32_t shared_bytes;
};

template <class C>
constexpr uint32_t shared_bytes() {
  static_assert(Shared90<C>::kBytes <= kLargestShared);
  return Shared90<C>::kBytes;
}

#define FASTRES_TEXT2(name) #name
#define FASTRES_TEXT(name) FASTRES_TEXT2(name)
#define FASTRES_LIST(type, Element, n, cooperative, cluster, stages, slabs) \
  {FASTRES_TEXT(FASTRES_NAME(type, n, cluster)),                            \
   reinterpret_cast<const void*>(FASTRES_NAME(type, n, cluster)),           \
   DType::k##Element,                                                       \
   n,                                                                       \
   cluster,                                                                 \
   cooperative,                                                             \
   shared_bytes<Config90<Element, n, cooperative, cluster, stages, slabs>>()},
const Instance90 kInstances90[] = {FASTRES_CONV90_KERNELS(FASTRES_LIST)};
#undef FASTRES_LIST

int steps_of(const ConvOperand& o) {
  return o.r * o.s * static_cast<int>(ceil_div64(o.c, kTileDepth));
}

int steps_of(const ConvParams& params) {
  int steps = 0;
  for (int i = 0; i < params.operands; ++i) steps += steps_of(params.operand[i]);
  return steps;
}

// Whether x must be read by im2col: there is more to the filter than one tap on every pixel.
bool windowed(const ConvOperand& o) {
  return o.r != 1 || o.s != 1 || o.stride_h != 1 || o.stride_w != 1 || o.pad_h != 0 || o.pad_w != 0;
}

// Items of a cluster's work: see Item.
int64_t items_of(const ConvParams& params, const ConvTile& tile) {
  return ceil_div64(rows_of(params), kTileM * tile.cluster) * ceil_div64(params.k, tile.n) * tile.splits;
}

const Instance90& find(DType dtype, const ConvTile& tile) {
  for (const Instance90& instance : kInstances90)
    if (instance.dtype == dtype && tile.m == kTileM && instance.n == tile.n && instance.cluster == tile.cluster)
      return instance;
  throw std::invalid_argument("tile: no conv_sm90 computes " + std::to_string(tile.m) + " x " + std::to_string(tile.n) +
                              " tiles in clusters of " + std::to_string(tile.cluster));
}

// About how many clocks a tile takes, over as many waves as there are: the slower of tensor cores (2048 multiply-adds a
// clock) and of what brings its operands (20 bytes a clock to a multiprocessor); and what a tile takes before and after
// its main loop, which a cooperative pair has nothing to hide under. Where the depth is split, a launch more, and sums
// written and read (600 bytes a clock). Fitted to every tile's times on an H100
// (benchmarks/conv_sm90_tiles.py): over ResNet-50's convolutions at batch 32 and 256 the choice is within 0.4 % of the
// fastest on average, and within 11 %.
double clocks(const ConvParams& params, int sms, const ConvTile& tile, bool cooperative) {
  const double waves = static_cast<double>(ceil_div64(items_of(params, tile), std::max(1, sms / tile.cluster)));
  const double multiply = kTileM * kTileDepth / 2048.0 * tile.n;
  const double load = (kTileM + tile.n / static_cast<double>(tile.cluster)) * kTileDepth * kElementBytes / 20.0;
  const double steps = static_cast<double>(steps_of(params)) / tile.splits;
  const double sums = static_cast<double>(rows_of(params)) * params.k * tile.splits * 2 * sizeof(float);
  return waves * (steps * std::max(multiply, load) + (cooperative ? 4000 : 300)) +
         (tile.splits == 1 ? 0 : 10000 + sums / 600);
}

// Parts of the depth that fill idle multiprocessors, while a part has at least eight steps to do.
int splits_of(const ConvParams& params, int sms, ConvTile tile) {
  tile.splits = 1;
  const int64_t parts = std::min<int64_t>(sms / tile.cluster / items_of(params, tile), steps_of(params) / 8);
  return static_cast<int>(std::clamp<int64_t>(parts, 1, 16));
}

void choose(DType dtype, const ConvParams& params, int sms, ConvTile& tile) {
  if (tile.m == 0) tile.m = kTileM;
  const ConvTile given = tile;
  double fewest = 0;
  for (const Instance90& instance : kInstances90) {
    if (instance.dtype != dtype || (given.n != 0 && given.n != instance.n)) continue;
    // Of themselves blocks stay alone: no layer of ResNet-50 was faster on an H100 where two share their weights.
    if (instance.cluster != std::max(1, given.cluster)) continue;
    const ConvTile whole{given.m, instance.n, 1, instance.cluster};
    for (const int splits : {1, splits_of(params, sms, whole)}) {
      ConvTile candidate = whole;
      candidate.splits = given.splits == 0 ? splits : given.splits;
      const double expected = clocks(params, sms, candidate, instance.cooperative);
      if (fewest == 0 || expected < fewest) fewest = expected, tile = candidate;
    }
  }
}

// --- tensor maps

TensorMapSpec matrix_map(size_t offset, DType dtype, const void* address, int64_t rows, int64_t columns, uint32_t box) {
  const auto width = static_cast<uint64_t>(columns);
  return {static_cast<uint32_t>(offset),
          dtype,
          address,
          {width, static_cast<uint64_t>(rows)},
          {width * kElementBytes},
          {1, 1},
          {kTileDepth, box},
          {},
          {}};
}

TensorMapSpec x_map(size_t offset, DType dtype, const ConvParams& params, const ConvOperand& o) {
  if (!windowed(o)) return matrix_map(offset, dtype, o.x, rows_of(params), o.c, kTileM);
  const auto c = static_cast<uint64_t>(o.c), w = static_cast<uint64_t>(o.w), h = static_cast<uint64_t>(o.h);
  const uint64_t pixel = c * kElementBytes;
  return {static_cast<uint32_t>(offset),
          dtype,
          o.x,
          {c, w, h, static_cast<uint64_t>(params.n)},
          {pixel, w * pixel, h * w * pixel},
          {1, static_cast<uint32_t>(o.stride_w), static_cast<uint32_t>(o.stride_h), 1},
          {kTileDepth, kTileM},
          {-o.pad_w, -o.pad_h},
          {o.pad_w - (o.s - 1) * o.dilation_w, o.pad_h - (o.r - 1) * o.dilation_h}};
}

// [K, R * S, C], so that what is past the channels of one tap is zero, and not the next tap.
TensorMapSpec weight_map(size_t offset, DType dtype, const ConvParams& params, const ConvOperand& o, uint32_t filters) {
  const auto c = static_cast<uint64_t>(o.c);
  return {static_cast<uint32_t>(offset),
          dtype,
          o.weight,
          {c, static_cast<uint64_t>(o.r) * o.s, static_cast<uint64_t>(params.k)},
          {c * kElementBytes, o.weight_pitch * kElementBytes},
          {1, 1, 1},
          {kTileDepth, 1, filters},
          {},
          {}};
}

}  // namespace

std::string conv_sm90_obstacle(DType dtype, const ConvParams& params) {
  check_conv(dtype, params);
  const auto obstacle = [](const char* name, int64_t got, const char* expected) {
    return std::string(name) + ": expected " + expected + ", got " + std::to_string(got);
  };
  if (dtype == DType::kTf32) return "dtype: expected bfloat16 or float16";
  if (params.input_scale != nullptr) return "prologue: expected none";
  if (params.groups != 1) return obstacle("groups", params.groups, "1");
  if (params.k % 8 != 0) return obstacle("k", params.k, "a multiple of 8");
  for (int i = 0; i < params.operands; ++i) {
    const ConvOperand& o = params.operand[i];
    if (o.c % 8 != 0) return obstacle("c", o.c, "a multiple of 8");
    const auto address = reinterpret_cast<uintptr_t>(o.x);
    if (address % 16 != 0) return obstacle("x", static_cast<int64_t>(address), "a multiple of 16 bytes");
    if (reinterpret_cast<uintptr_t>(o.bias) % 8 != 0) return "bias: expected a multiple of 8 bytes";
    if (!windowed(o)) continue;
    if (std::max(o.stride_h, o.stride_w) > 8) return obstacle("stride", std::max(o.stride_h, o.stride_w), "at most 8");
    // The order of an im2col map's corners is documented in two ways: they must be equal.
    const int64_t reach_h = int64_t{o.r - 1} * o.dilation_h, reach_w = int64_t{o.s - 1} * o.dilation_w;
    if (o.pad_h != o.pad_w || reach_h != reach_w) return "padding, kernel: expected the same in height and width";
    if (o.pad_h > 127) return obstacle("pad", o.pad_h, "at most 127");
    if (reach_h - o.pad_h > 128 || o.pad_h - reach_h > 127 || reach_h > 255)
      return obstacle("(kernel - 1) * dilation", reach_h, "at most 255, and at most 128 more than the padding");
    if (int64_t{o.h} * o.w * o.c * 2 >= int64_t{1} << 40) return "x: expected images of less than 2^40 bytes";
  }
  return "";
}

size_t conv_sm90_workspace(DType dtype, const ConvParams& params, int sms, ConvTile& tile) {
  const std::string obstacle = conv_sm90_obstacle(dtype, params);
  if (!obstacle.empty()) throw std::invalid_argument(obstacle);
  require(sms > 0, "sms", sms, "a positive number");
  choose(dtype, params, sms, tile);
  find(dtype, tile);
  require(tile.splits >= 1 && tile.splits <= std::min(steps_of(params), 65535), "splits", tile.splits,
          "at least 1, at most the steps of the main loop");
  require(items_of(params, tile) <= INT_MAX, "tiles * splits", items_of(params, tile), "at most 2^31 - 1");
  return tile.splits == 1 ? 0 : static_cast<size_t>(tile.splits) * rows_of(params) * params.k;
}

std::vector<Plan> plan_conv_sm90(DType dtype, const ConvParams& given, int sms, const ConvTile& tile) {
  ConvParams params = given;
  ConvTile chosen = tile;
  conv_sm90_workspace(dtype, params, sms, chosen);
  params.splits = chosen.splits;
  if (params.splits == 1) params.partial = nullptr;
  if (params.splits > 1) require_address(params.partial, 16, "partial");
  require(params.splits == 1 || params.moments == nullptr, "splits", params.splits, "1 with moments");

  ConvSm90Params kernel{};
  std::vector<TensorMapSpec> maps;
  const auto filters = static_cast<uint32_t>(chosen.n / chosen.cluster);
  for (int i = 0; i < params.operands; ++i) {
    const ConvOperand& o = params.operand[i];
    kernel.operand[i] = {params.splits == 1 ? o.bias : nullptr,
                         steps_of(o),
                         o.c,
                         o.s,
                         windowed(o),
                         o.stride_h,
                         o.stride_w,
                         o.pad_h,
                         o.pad_w,
                         o.dilation_h,
                         o.dilation_w};
    const size_t map = i * sizeof(ptx::TensorMap);
    maps.push_back(x_map(offsetof(ConvSm90Params, x) + map, dtype, params, o));
    maps.push_back(weight_map(offsetof(ConvSm90Params, weight) + map, dtype, params, o, filters));
  }
  maps.push_back(matrix_map(offsetof(ConvSm90Params, y), dtype, params.y, rows_of(params), params.k, kHalf));
  if (params.residual != nullptr && params.splits == 1) {
    maps.push_back(
        matrix_map(offsetof(ConvSm90Params, residual), dtype, params.residual, rows_of(params), params.k, kHalf));
    kernel.add_residual = 1;
  }
  kernel.partial = params.partial;
  kernel.moments = static_cast<Moments*>(params.moments);
  kernel.steps = steps_of(params);
  kernel.rows = static_cast<int32_t>(rows_of(params)), kernel.p = params.p, kernel.q = params.q, kernel.k = params.k;
  kernel.tiles_n = static_cast<int32_t>(ceil_div64(params.k, chosen.n)), kernel.splits = chosen.splits;
  kernel.items = static_cast<int32_t>(items_of(params, chosen));
  kernel.relu = params.relu;

  const Instance90& instance = find(dtype, chosen);
  const int clusters = std::min(kernel.items, std::max(1, sms / chosen.cluster));
  Plan plan =
      make_plan(instance.symbol, "conv_sm90", instance.host, Dim3{static_cast<uint32_t>(clusters * chosen.cluster)},
                kThreads90, instance.shared_bytes, kernel);
  plan.cluster = Dim3{static_cast<uint32_t>(chosen.cluster)};
  plan.maps = std::move(maps);
  plan.overlap = true;
  std::vector<Plan> plans{std::move(plan)};
  if (params.splits > 1) plans.push_back(plan_conv_reduce(dtype, params));
  return plans;
}

int conv_sm90_moment_rows(DType dtype, const ConvTile& tile) {
  return find(dtype, tile).cooperative ? kHalf : kTileM;
}

void append_conv_sm90_names(std::vector<KernelName>& names) {
  for (const Instance90& instance : kInstances90) names.push_back({instance.symbol, "conv_sm90"});
}

}  // namespace fastres
