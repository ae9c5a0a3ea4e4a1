// The end of a stem in training: BatchNorm, ReLU and a max pool, forward and backward.
//
//   v = act(x * scale[c] + shift[c]), rounded to the element type, as bn_act.cu's apply stores it
//   pool    y[n,p,q,c] = max of v over the window of (p, q); nothing comes from its padding, NaN from any NaN
//   taps    taps[n,p,q,c] = which tap of the window is the maximum, r * kernel + s: by PyTorch's rule the first in
//           row-major order, or the last NaN
//   gather  dv[n,h,w,c] = sum of gradient[n,p,q,c] over the windows whose tap is (h, w), in row-major order of (p, q)
//
// v is made again in backward, so that nothing but x is kept. A sum is gathered, not scattered: no atomics, the same on
// every run.
//
// Work for 3x3/2: 9 taps of 2 FLOPs a pooled element, 4.5 an element of x: bound by memory. Fewest bytes: each tensor
// named once, taps of one byte. ResNet-50's at batch 256, in 16 bits: x is 411 MB, pooled 103 MB and 51 MB of taps, so
// pool moves 514 MB, taps 462 MB, gather 565 MB: 0.13, 0.12 and 0.14 ms at 4 TB/s.
//
// Layout: NHWC. A block has a row of one image and some channels; a thread has one chunk of 16 bytes of channels and
// walks along the row, so that what belongs to a channel is read once. Windows overlap in the caches. gather's thread
// has a cell, the stride x stride pixels that the same windows reach, each of which it reads once.

#include <climits>
#include <tuple>

#include "params.h"
#include "plan.h"
#include "ptx/element.h"
#include "ptx/math.h"

namespace fastres {
namespace {

constexpr int kThreads = 256;
constexpr int kLargestWindow = 15;  // its taps fit a byte

// What this thread works on: a chunk of channels, and of the block's row every `stride`-th column from `column` on.
template <class T>
struct Share {
  static constexpr int kVector = Chunk<T>::kElements;
  int channel, column, stride;
  bool present;

  __device__ explicit Share(const BnPoolParams& params) {
    channel = (blockIdx.y * params.lanes + threadIdx.x % params.lanes) * kVector;
    column = threadIdx.x / params.lanes;
    stride = kThreads / params.lanes;
    present = channel < params.c;
  }
};

template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const void* tensor, int64_t at) {
  return Chunk<T>::load(static_cast<const typename T::Bits*>(tensor) + at, Chunk<T>::kElements, true);
}

// The larger of each pair; NaN if either is.
template <class T>
__device__ __forceinline__ Chunk<T> larger(const Chunk<T>& a, const Chunk<T>& b) {
  Chunk<T> most;
#pragma unroll
  for (int i = 0; i < 4; ++i) most.word[i] = T::max(a.word[i], b.word[i]);
  return most;
}

template <class T>
__device__ __forceinline__ Chunk<T> filled(float value) {
  float values[Chunk<T>::kElements];
#pragma unroll
  for (float& each : values) each = value;
  return Chunk<T>::narrow(values);
}

// v of a chunk before its ReLU, in the bits that bn_act.cu's apply has.
template <class T>
struct Affine {
  static constexpr int kVector = Chunk<T>::kElements;
  alignas(16) float scale[kVector], shift[kVector];

  __device__ Affine(const BnPoolParams& params, int channel) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      *reinterpret_cast<float4*>(scale + i) = __ldg(reinterpret_cast<const float4*>(params.scale + channel + i));
      *reinterpret_cast<float4*>(shift + i) = __ldg(reinterpret_cast<const float4*>(params.shift + channel + i));
    }
  }
  __device__ Chunk<T> operator()(const Chunk<T>& x) const {
    float value[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) value[i] = fmaf(x[i], scale[i], shift[i]);
    return Chunk<T>::narrow(value);
  }
};

// Calls use(tap, chunk of x) for each tap of the window of (p, q), in row-major order. A tap outside the image is the
// nearest one inside, which is of the window too (padding is at most half of it): that changes no maximum, nor which
// is first or last, and leaves no branch between the loads, so that those of a 3x3 window (kKernel) may all be under
// way before the first is used, as far as there are registers.
template <class T, int kKernel, class Use>
__device__ __forceinline__ void for_taps(const BnPoolParams& params, int64_t image, int p, int q, int channel,
                                         Use use) {
  const int kernel = kKernel != 0 ? kKernel : params.kernel;
  const int top = p * params.stride - params.padding, left = q * params.stride - params.padding;
  const auto row_of = [&](int r) { return min(max(top + r, 0), params.h - 1); };
  const auto column_of = [&](int s) { return min(max(left + s, 0), params.w - 1); };
  const auto load = [&](int r, int s) {
    return load_chunk<T>(params.x, (image + row_of(r)) * params.w * params.c + (column_of(s) * params.c + channel));
  };
  const auto tap_of = [&](int r, int s) { return (row_of(r) - top) * kernel + (column_of(s) - left); };
  if constexpr (kKernel != 0) {
    Chunk<T> x[kKernel * kKernel];
#pragma unroll
    for (int i = 0; i < kKernel * kKernel; ++i) x[i] = load(i / kKernel, i % kKernel);
#pragma unroll
    for (int i = 0; i < kKernel * kKernel; ++i) use(tap_of(i / kKernel, i % kKernel), x[i]);
  } else {
    for (int r = 0; r < kernel; ++r)
      for (int s = 0; s < kernel; ++s) use(tap_of(r, s), load(r, s));
  }
}

template <class T, int kKernel>
__device__ void pool(const BnPoolParams& params) {
  const Share<T> share(params);
  if (!share.present) return;
  const Affine<T> affine(params, share.channel);
  const int n = blockIdx.x / params.p, p = blockIdx.x % params.p;
  const int64_t image = int64_t{n} * params.h;
  const Chunk<T> least = filled<T>(params.relu ? 0.f : -ptx::infinity());  // the ReLU of a maximum is that of all
  for (int q = share.column; q < params.q; q += share.stride) {
    Chunk<T> most = least;
    for_taps<T, kKernel>(params, image, p, q, share.channel,
                         [&](int, const Chunk<T>& x) { most = larger<T>(most, affine(x)); });
    const int64_t at = (int64_t{blockIdx.x} * params.q + q) * params.c + share.channel;
    most.store(static_cast<typename T::Bits*>(params.y) + at, Share<T>::kVector, true);
  }
}

// A byte for each element of a chunk.
template <class T>
union Taps {
  static constexpr int kWords = Chunk<T>::kElements / 4;
  using Vector = std::conditional_t<kWords == 2, uint2, uint32_t>;
  Vector vector;
  uint32_t word[kWords];

  static __device__ __forceinline__ Taps load(const void* taps, int64_t at) {
    Taps loaded;
    loaded.vector = *reinterpret_cast<const Vector*>(static_cast<const uint8_t*>(taps) + at);
    return loaded;
  }
  __device__ __forceinline__ void store(void* taps, int64_t at) const {
    *reinterpret_cast<Vector*>(static_cast<uint8_t*>(taps) + at) = vector;
  }
  __device__ __forceinline__ int operator[](int i) const { return word[i / 4] >> i % 4 * 8 & 0xff; }
};

template <class T, int kKernel>
__device__ void find_taps(const BnPoolParams& params) {
  const Share<T> share(params);
  if (!share.present) return;
  const Affine<T> affine(params, share.channel);
  const int n = blockIdx.x / params.p, p = blockIdx.x % params.p;
  const int64_t image = int64_t{n} * params.h;
  const Chunk<T> least = filled<T>(params.relu ? 0.f : -ptx::infinity());
  for (int q = share.column; q < params.q; q += share.stride) {
    const int first = max(params.padding - p * params.stride, 0) * (kKernel != 0 ? kKernel : params.kernel) +
                      max(params.padding - q * params.stride, 0);
    float most[Share<T>::kVector];
    int tap_of_most[Share<T>::kVector];
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i) most[i] = -ptx::infinity(), tap_of_most[i] = first;
    for_taps<T, kKernel>(params, image, p, q, share.channel, [&](int tap, const Chunk<T>& x) {
      const Chunk<T> value = larger<T>(affine(x), least);
#pragma unroll
      for (int i = 0; i < Share<T>::kVector; ++i) {
        const float candidate = value[i];
        const bool is_most = candidate > most[i] || candidate != candidate;
        if (is_most) most[i] = candidate;
        if (is_most) tap_of_most[i] = tap;
      }
    });
    Taps<T> taps{};
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i) taps.word[i / 4] |= tap_of_most[i] << i % 4 * 8;
    taps.store(params.taps, (int64_t{blockIdx.x} * params.q + q) * params.c + share.channel);
  }
}

// The gradient of a window and the tap that it goes to; of a window that is not there, no tap.
template <class T>
struct Window {
  Chunk<T> gradient;
  Taps<T> taps;

  Window() = default;
  // By the nearest window that is there: no branch between loads.
  __device__ Window(const BnPoolParams& params, int n, int p, int q, int channel) {
    const int row = min(max(p, 0), params.p - 1), column = min(max(q, 0), params.q - 1);
    const int64_t at = ((int64_t{n} * params.p + row) * params.q + column) * params.c + channel;
    gradient = load_chunk<T>(params.gradient, at);
    taps = Taps<T>::load(params.taps, at);
    if (row == p && column == q) return;
#pragma unroll
    for (uint32_t& word : taps.word) word = ~0u;
  }
  // Adds the gradient to the sum of the pixel that is its window's `tap`.
  __device__ __forceinline__ void add_to(float (&sum)[Share<T>::kVector], int tap) const {
#pragma unroll
    for (int i = 0; i < Share<T>::kVector; ++i)
      if (taps[i] == tap) sum[i] += gradient[i];
  }
};

template <class T>
__device__ __forceinline__ void store_gradient(const BnPoolParams& params, int n, int h, int w, int channel,
                                               const float (&sum)[Share<T>::kVector]) {
  const int64_t at = ((int64_t{n} * params.h + h) * params.w + w) * params.c + channel;
  Chunk<T>::narrow(sum).store(static_cast<typename T::Bits*>(params.y) + at, Share<T>::kVector, true);
}

// With rows and columns counted from the padding's first, cell i has those from i * stride on, and windows up to i
// reach them.
template <class T, int kKernel, int kStride>
__device__ void gather_cells(const BnPoolParams& params) {
  constexpr int kReach = (kKernel + kStride - 1) / kStride;  // windows that reach a cell, along each side
  const Share<T> share(params);
  if (!share.present) return;
  const int first = params.padding / kStride, rows = (params.h - 1 + params.padding) / kStride + 1 - first;
  const int last = (params.w - 1 + params.padding) / kStride;
  const int n = blockIdx.x / rows, row = first + blockIdx.x % rows;
  for (int column = first + share.column; column <= last; column += share.stride) {
    Window<T> windows[kReach][kReach];
#pragma unroll
    for (int i = 0; i < kReach; ++i)
#pragma unroll
      for (int j = 0; j < kReach; ++j)
        windows[i][j] = {params, n, row - kReach + 1 + i, column - kReach + 1 + j, share.channel};
#pragma unroll
    for (int y = 0; y < kStride; ++y) {
#pragma unroll
      for (int x = 0; x < kStride; ++x) {
        float sum[Share<T>::kVector] = {};
#pragma unroll
        for (int i = 0; i < kReach; ++i) {
#pragma unroll
          for (int j = 0; j < kReach; ++j) {
            const int r = y + (kReach - 1 - i) * kStride, s = x + (kReach - 1 - j) * kStride;
            if (r < kKernel && s < kKernel) windows[i][j].add_to(sum, r * kKernel + s);
          }
        }
        const int h = row * kStride + y - params.padding, w = column * kStride + x - params.padding;
        if (static_cast<uint32_t>(h) < params.h && static_cast<uint32_t>(w) < params.w)
          store_gradient<T>(params, n, h, w, share.channel, sum);
      }
    }
  }
}

// Any window: a thread has a pixel, and reads the windows that reach it one after the other.
template <class T>
__device__ void gather_pixels(const BnPoolParams& params) {
  const Share<T> share(params);
  if (!share.present) return;
  const int n = blockIdx.x / params.h, h = blockIdx.x % params.h, kernel = params.kernel, stride = params.stride;
  const auto first = [&](int at) { return at < kernel ? 0 : (at - kernel) / stride + 1; };
  const int row = h + params.padding, last_p = min(row / stride, params.p - 1);
  for (int w = share.column; w < params.w; w += share.stride) {
    const int column = w + params.padding, last_q = min(column / stride, params.q - 1);
    float sum[Share<T>::kVector] = {};
    for (int p = first(row); p <= last_p; ++p)
      for (int q = first(column); q <= last_q; ++q)
        Window<T>(params, n, p, q, share.channel).add_to(sum, (row - p * stride) * kernel + column - q * stride);
    store_gradient<T>(params, n, h, w, share.channel, sum);
  }
}

// Every instantiation: X(name, body, pass, element, kernel and stride or zeros for any, blocks of a multiprocessor).
#define FASTRES_POOL_OF(X, type, Element)                                                    \
  X(bn_pool_##type##_3x3s2, (pool<Element, 3>), kPool, Element, 3, 2, 3)                     \
  X(bn_pool_##type, (pool<Element, 0>), kPool, Element, 0, 0, 3)                             \
  X(bn_pool_taps_##type##_3x3s2, (find_taps<Element, 3>), kTaps, Element, 3, 2, 2)           \
  X(bn_pool_taps_##type, (find_taps<Element, 0>), kTaps, Element, 0, 0, 2)                   \
  X(bn_pool_gather_##type##_3x3s2, (gather_cells<Element, 3, 2>), kGather, Element, 3, 2, 3) \
  X(bn_pool_gather_##type, gather_pixels<Element>, kGather, Element, 0, 0, 3)
#define FASTRES_POOL_KERNELS(X)  \
  FASTRES_POOL_OF(X, bf16, Bf16) \
  FASTRES_POOL_OF(X, fp16, Fp16) \
  FASTRES_POOL_OF(X, fp32, Tf32)
}  // namespace

#define FASTRES_DEFINE(name, body, pass, Element, kernel, stride, blocks)                                            \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks) name(const __grid_constant__ BnPoolParams params) { \
    body(params);                                                                                                    \
  }
FASTRES_POOL_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

// --- launcher -------------------------------------------------------------------------------------------------------

namespace {

struct Instance {
  const char* symbol;
  const void* host;
  BnPoolPass pass;
  DType dtype;
  int kernel, stride;
};

#define FASTRES_LIST(name, body, pass, Element, kernel, stride, blocks) \
  {#name, reinterpret_cast<const void*>(name), BnPoolPass::pass, DType::k##Element, kernel, stride},
const Instance kInstances[] = {FASTRES_POOL_KERNELS(FASTRES_LIST)};
#undef FASTRES_LIST

}  // namespace

Plan plan_bn_pool(DType dtype, BnPoolPass pass, const BnPoolParams& given) {
  BnPoolParams params = given;
  const int vector = dtype == DType::kTf32 ? 4 : 8;
  for (const auto& [size, name] : {std::tuple<int, const char*>{params.n, "n"},
                                   {params.h, "h"},
                                   {params.w, "w"},
                                   {params.c, "c"},
                                   {params.p, "p"},
                                   {params.q, "q"},
                                   {params.stride, "stride"}})
    require(size > 0, name, size, "a positive number");
  require(params.c % vector == 0, "c", params.c, vector == 8 ? "a multiple of 8" : "a multiple of 4");
  require(params.kernel > 0 && params.kernel <= kLargestWindow, "kernel", params.kernel, "1 to 15");
  require(params.padding >= 0 && params.padding <= params.kernel / 2, "padding", params.padding,
          "zero to half the kernel");
  // Windows begin inside the image and its padding, and end there.
  const auto spans = [&](int windows, int size) {
    return int64_t{windows - 1} * params.stride + params.kernel <= int64_t{size} + 2 * params.padding;
  };
  require(spans(params.p, params.h), "p", params.p, "no more windows than h has room for");
  require(spans(params.q, params.w), "q", params.q, "no more windows than w has room for");
  require(int64_t{params.w} * params.c <= INT_MAX, "w", params.w, "a row of at most 2^31 - 1 elements");
  for (const auto& [pointer, name, alignment, needed] :
       {std::tuple<const void*, const char*, int, bool>{params.x, "x", 16, pass != BnPoolPass::kGather},
        {params.scale, "scale", 16, pass != BnPoolPass::kGather},
        {params.shift, "shift", 16, pass != BnPoolPass::kGather},
        {params.gradient, "gradient", 16, pass == BnPoolPass::kGather},
        {params.taps, "taps", vector, pass != BnPoolPass::kPool},
        {params.y, "y", 16, pass != BnPoolPass::kTaps}})
    if (needed) require_address(pointer, alignment, name);

  params.lanes = 1;  // threads next to each other along the channels: a power of two, at most a warp
  while (params.lanes < 32 && params.lanes * vector < params.c) params.lanes *= 2;
  for (const Instance& instance : kInstances) {
    const bool fits = instance.kernel == 0 || (instance.kernel == params.kernel && instance.stride == params.stride);
    if (instance.dtype != dtype || instance.pass != pass || !fits) continue;
    int64_t rows = params.p;
    if (pass == BnPoolPass::kGather) {
      const int cell = instance.stride == 0 ? 1 : instance.stride, padding = instance.stride == 0 ? 0 : params.padding;
      rows = (params.h - 1 + padding) / cell + 1 - padding / cell;
    }
    const int64_t blocks_x = params.n * rows, blocks_y = ceil_div64(params.c, params.lanes * vector);
    require(blocks_x <= INT_MAX, "n", params.n, "at most 2^31 - 1 rows in all");
    require(blocks_y <= 65535, "c", params.c, "at most 65535 blocks of them");
    const Dim3 grid{static_cast<uint32_t>(blocks_x), static_cast<uint32_t>(blocks_y)};
    return make_plan(instance.symbol, "bn_pool", instance.host, grid, kThreads, 0, params);
  }
  throw std::invalid_argument("pass: expected one of this build");
}

void append_bn_pool_names(std::vector<KernelName>& names) {
  for (const Instance& instance : kInstances) names.push_back({instance.symbol, "bn_pool"});
}

}  // namespace fastres
