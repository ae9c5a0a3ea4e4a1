// The network's stem in one kernel: 7x7/2 convolution, bias, ReLU, 3x3/2 max pool; Ampere and later.
//
//   y[n,a,b,k] = max over the pool's window of relu(bias[k] + sum over r,s,c of v[n, 2p+r-3, 2q+s-3, c] * w[k,r,s,c])
//
// with v = x, or for 8-bit images v = x * scale[c] + shift[c] rounded to the element type, and v = 0 outside the image:
// the border is exact, which no shift folded into the bias can be.
//
// Work: 2*N*P*Q*K*147 FLOPs (P, Q: the convolution's output size). Fewest bytes: x, w and y once each. At 224 px in 16
// bits 118 MFLOP are done for 0.7 MB an image: bound by the tensor cores, which do 224/147 (padding of the filter)
// times 240/196 (halo of the pool) as much.
//
// Layout: x by its strides, y NHWC. A block computes 7 x 7 pooled outputs of 64 filters from 15 x 15 convolution
// outputs, a warp three rows of 16. Its patch of the input lies in shared memory with pixels padded to four channels, 8
// bytes, so that the window of output q, two taps at a time, is 16 aligned bytes at pixel 2q: ldmatrix reads A in
// place. Weights are [K][7][8][4], tap 8 and channel 4 being zero; the pixel under tap 8 is masked too, as 0 * NaN
// would not be 0.

#include <climits>

#include "params.h"
#include "plan.h"
#include "ptx/cp_async.h"
#include "ptx/element.h"
#include "ptx/ldmatrix.h"
#include "ptx/math.h"
#include "ptx/mma.h"

namespace fastres {
namespace {

constexpr int kWarps = 5, kThreads = 32 * kWarps;
constexpr int kPooled = 7;                             // pooled outputs of a block along each side
constexpr int kRows = 2 * kPooled + 1, kColumns = 16;  // convolution outputs computed for them
constexpr int kRowsPerWarp = kRows / kWarps;
constexpr int kFilters = kStemFilters;  // filters of a block
constexpr int kPatchRows = 2 * (kRows - 1) + 7, kPatchColumns = 2 * (kColumns - 1) + 8;
constexpr int kPixelBytes = 8;  // four channels of 16 bits
constexpr int kPatchBytes = kPatchRows * kPatchColumns * kPixelBytes;
constexpr int kWeightBytes = kStemDepth * 2;     // of a filter, in global memory
constexpr int kWeightPitch = kWeightBytes + 16;  // in shared memory; + 16 keeps ldmatrix free of bank conflicts
constexpr int kOutputBytes = kRows * kColumns * kFilters * 2;
constexpr int kSharedBytes = kPatchBytes + kFilters * kWeightPitch;
static_assert(kRowsPerWarp * kWarps == kRows && kOutputBytes <= kSharedBytes && kPatchBytes % 16 == 0);

// --- load: the patch of the input and the weights into shared memory --------------------------------------------

template <class T, class Input>
__device__ void load_patch(const StemParams& params, unsigned char* patch, int n, int first_row, int first_column) {
  const Input* image = static_cast<const Input*>(params.x) + n * params.stride_n;
  for (int i = threadIdx.x; i < kPatchRows * kPatchColumns; i += kThreads) {
    const int h = first_row + i / kPatchColumns, w = first_column + i % kPatchColumns;
    const bool inside = static_cast<uint32_t>(h) < params.h && static_cast<uint32_t>(w) < params.w;
    const Input* pixel = image + h * params.stride_h + w * params.stride_w;
    uint32_t value[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool present = inside && c < params.c;
      if constexpr (sizeof(Input) == 1) {
        const float normalised = present ? __ldg(pixel + c * params.stride_c) * params.scale[c] + params.shift[c] : 0.f;
        value[c] = T::narrow(normalised, 0.f);
      } else {
        value[c] = present ? __ldg(pixel + c * params.stride_c) : Input{0};
      }
    }
    reinterpret_cast<uint2*>(patch)[i] = make_uint2(value[0] | value[1] << 16, value[2] | value[3] << 16);
  }
}

__device__ void load_weights(const StemParams& params, uint32_t shared, int first_filter) {
  constexpr int kChunks = kWeightBytes / 16;
  const auto* weight = static_cast<const unsigned char*>(params.weight) + int64_t{first_filter} * kWeightBytes;
  for (int i = threadIdx.x; i < kFilters * kChunks; i += kThreads) {
    const int filter = i / kChunks, chunk = i % kChunks;
    ptx::cp_async<16>(shared + filter * kWeightPitch + chunk * 16, weight + i * 16, true);
  }
  ptx::cp_async_commit();
}

// --- convolve: three rows of 16 outputs by 64 filters a warp --------------------------------------------------------

using Sums = float[kRowsPerWarp][kFilters / 8][4];

template <class T>
__device__ void convolve(uint32_t patch, uint32_t weights, Sums& sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t a = patch + (2 * warp * kRowsPerWarp * kPatchColumns + 2 * (lane % 16) + lane / 16 * 2) * kPixelBytes;
  const uint32_t b = weights + (lane % 8 + lane / 16 * 8) * kWeightPitch + lane / 8 % 2 * 16;
#pragma unroll 1
  for (int r = 0; r < 7; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // four taps of four channels
      uint32_t fragment_a[kRowsPerWarp][4], fragment_b[kFilters / 16][4];
#pragma unroll
      for (int i = 0; i < kRowsPerWarp; ++i) {
        ptx::ldmatrix_x4(fragment_a[i], a + ((2 * i + r) * kPatchColumns + half * 4) * kPixelBytes);
        if (half == 1 && lane % 4 >= 2) fragment_a[i][2] = fragment_a[i][3] = 0;  // tap 8
      }
#pragma unroll
      for (int j = 0; j < kFilters / 16; ++j)
        ptx::ldmatrix_x4(fragment_b[j], b + j * 16 * kWeightPitch + (2 * r + half) * 32);
#pragma unroll
      for (int i = 0; i < kRowsPerWarp; ++i)
#pragma unroll
        for (int j = 0; j < kFilters / 8; ++j)
          ptx::mma<T>(sums[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2], fragment_b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

// --- epilogue: bias and ReLU into shared memory, then the pool ----------------------------------------------------

// Where the eight filters `chunk` of an output lie: rotated by its column, so that a quad's rows meet different banks.
__device__ __forceinline__ int output_offset(int row, int column, int chunk) {
  return ((row * kColumns + column) * (kFilters / 8) + (chunk ^ (column % 8))) * 16;
}

template <class T>
__device__ void stage_outputs(const StemParams& params, unsigned char* outputs, const Sums& sums, int first_filter,
                              int first_row, int first_column) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kFilters / 8; ++j) {
    const int filter = first_filter + j * 8 + lane % 4 * 2;
    const float bias0 = filter < params.k ? __ldg(params.bias + filter) : 0.f;
    const float bias1 = filter < params.k ? __ldg(params.bias + filter + 1) : 0.f;
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * kRowsPerWarp + i, column = lane / 4 + half * 8;
        const bool exists = static_cast<uint32_t>(first_row + row) < params.p &&
                            static_cast<uint32_t>(first_column + column) < params.q;
        // Outside the convolution's output the pool must see nothing; after a ReLU, 0 is nothing.
        const uint32_t pair =
            T::narrow(ptx::relu(sums[i][j][half * 2] + bias0), ptx::relu(sums[i][j][half * 2 + 1] + bias1));
        *reinterpret_cast<uint32_t*>(outputs + output_offset(row, column, j) + lane % 4 * 4) = exists ? pair : 0;
      }
    }
  }
}

template <class T>
__device__ void pool(const StemParams& params, const unsigned char* outputs, int n, int first_filter, int first_row,
                     int first_column) {
  for (int i = threadIdx.x; i < kPooled * kPooled * (kFilters / 8); i += kThreads) {
    const int chunk = i % (kFilters / 8), column = i / (kFilters / 8) % kPooled, row = i / (kFilters / 8) / kPooled;
    const int filter = first_filter + chunk * 8;
    if (first_row + row >= params.pooled_p || first_column + column >= params.pooled_q || filter >= params.k) continue;
    Chunk<T> most;
    most.vector = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int window = 0; window < 9; ++window) {
      Chunk<T> value;
      value.vector = *reinterpret_cast<const uint4*>(
          outputs + output_offset(2 * row + window / 3, 2 * column + window % 3, chunk));
#pragma unroll
      for (int k = 0; k < 4; ++k) most.word[k] = T::max(most.word[k], value.word[k]);
    }
    const int64_t at =
        ((int64_t{n} * params.pooled_p + first_row + row) * params.pooled_q + first_column + column) * params.k;
    most.store(static_cast<typename T::Bits*>(params.y) + at + filter, 8, true);
  }
}

// --- kernel ---------------------------------------------------------------------------------------------------------

// Grid: x tiles of 7 x 7 pooled outputs, along rows, columns, then images; y blocks of 64 filters.
template <class T, class Input>
__device__ __forceinline__ void stem(const StemParams& params) {
  __shared__ __align__(128) unsigned char shared[kSharedBytes];
  const int tiles_q = (params.pooled_q + kPooled - 1) / kPooled, tiles_p = (params.pooled_p + kPooled - 1) / kPooled;
  const int tile_q = blockIdx.x % tiles_q, tile_p = blockIdx.x / tiles_q % tiles_p, n = blockIdx.x / tiles_q / tiles_p;
  const int pooled_row = tile_p * kPooled, pooled_column = tile_q * kPooled;
  const int row = 2 * pooled_row - 1, column = 2 * pooled_column - 1;  // of the convolution's output
  const int first_filter = blockIdx.y * kFilters;

  const uint32_t patch = ptx::shared_address(shared);
  load_weights(params, patch + kPatchBytes, first_filter);
  load_patch<T, Input>(params, shared, n, 2 * row - 3, 2 * column - 3);
  ptx::cp_async_wait<0>();
  __syncthreads();

  Sums sums = {};
  convolve<T>(patch, patch + kPatchBytes, sums);
  __syncthreads();  // all have read the patch and the weights: the outputs take their place
  stage_outputs<T>(params, shared, sums, first_filter, row, column);
  __syncthreads();
  pool<T>(params, shared, n, first_filter, pooled_row, pooled_column);
}

#define FASTRES_STEM_KERNELS(X)     \
  X(stem_bf16, Bf16, uint16_t)      \
  X(stem_bf16_uint8, Bf16, uint8_t) \
  X(stem_fp16, Fp16, uint16_t)      \
  X(stem_fp16_uint8, Fp16, uint8_t)

}  // namespace

#define FASTRES_DEFINE(name, Element, Input)                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads, 2) name(const __grid_constant__ StemParams params) { \
    stem<Element, Input>(params);                                                                             \
  }
FASTRES_STEM_KERNELS(FASTRES_DEFINE)
#undef FASTRES_DEFINE

// --- launcher -------------------------------------------------------------------------------------------------------

namespace {

struct Instance {
  const char* symbol;
  const void* host;
  DType dtype;
  bool uint8;
};

#define FASTRES_LIST(name, Element, Input) \
  {#name, reinterpret_cast<const void*>(name), DType::k##Element, sizeof(Input) == 1},
const Instance kInstances[] = {FASTRES_STEM_KERNELS(FASTRES_LIST)};
#undef FASTRES_LIST

}  // namespace

Plan plan_stem(DType dtype, bool uint8_input, const StemParams& params) {
  for (const auto& [value, name] : {std::pair{params.n, "n"}, {params.h, "h"}, {params.w, "w"}, {params.k, "k"}})
    require(value > 0, name, value, "a positive number");
  require(params.c >= 1 && params.c <= 4, "c", params.c, "1 to 4 channels");
  require(params.k % 8 == 0, "k", params.k, "a multiple of 8");
  require(params.h < (1 << 28) && params.w < (1 << 28), "h, w", std::max(params.h, params.w), "less than 2^28");
  require(params.p == (params.h - 1) / 2 + 1, "p", params.p, "the height of a 7x7/2 convolution's output");
  require(params.q == (params.w - 1) / 2 + 1, "q", params.q, "the width of a 7x7/2 convolution's output");
  require(params.pooled_p == (params.p - 1) / 2 + 1, "pooled_p", params.pooled_p,
          "the height of a 3x3/2 pool's output");
  require(params.pooled_q == (params.q - 1) / 2 + 1, "pooled_q", params.pooled_q, "the width of a 3x3/2 pool's output");
  require_address(params.x, uint8_input ? 1 : 2, "x");
  require_address(params.weight, 16, "weight");
  require_address(params.bias, 4, "bias");
  require_address(params.y, 16, "y");
  const int64_t tiles = ceil_div64(params.pooled_p, kPooled) * ceil_div64(params.pooled_q, kPooled) * params.n;
  require(tiles <= INT_MAX, "tiles", tiles, "at most 2^31 - 1");
  const int64_t filters = ceil_div64(params.k, kFilters);
  require(filters <= 65535, "k", params.k, "at most 65535 * 64");
  for (const Instance& instance : kInstances)
    if (instance.dtype == dtype && instance.uint8 == uint8_input)
      return make_plan(instance.symbol, "stem", instance.host,
                       Dim3{static_cast<uint32_t>(tiles), static_cast<uint32_t>(filters)}, kThreads, 0, params);
  throw std::invalid_argument("dtype: the stem runs in bf16 or fp16");
}

void append_stem_names(std::vector<KernelName>& names) {
  for (const Instance& instance : kInstances) names.push_back({instance.symbol, "stem"});
}

}  // namespace fastres
