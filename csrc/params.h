// Plain-old-data problem descriptions, and what a launcher makes of them. Knows neither Python nor torch.
//
// A `plan_*` function is pure host code: it checks what would corrupt memory (std::invalid_argument names the field),
// picks a kernel and works out its launch. Sizes are in elements, addresses are those of device memory (or, for
// the emulator, of host memory).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastres {

enum class DType : int32_t { kBf16, kFp16, kTf32 };  // kTf32: float32 in memory, rounded to TF32 for the tensor cores

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// A TMA descriptor (CUtensorMap) that the kernel wants in its parameters. It names the device's memory in a way that
// only the driver knows, so whoever runs the plan encodes it. Dimensions are innermost first; the swizzle is of 128
// bytes, elements are of 16 bits, and what is out of bounds reads as zero.
struct TensorMapSpec {
  uint32_t offset;  // of its 128 bytes in Plan::params
  DType dtype;
  const void* address;
  std::vector<uint64_t> sizes, strides;  // strides: in bytes, of all dimensions but the first
  std::vector<uint32_t> element_strides;
  std::vector<uint32_t> box;      // tiled: elements of each dimension; im2col: channels and pixels
  std::vector<int> lower, upper;  // im2col: corners of the pixels' bounding box, W first; empty if tiled
};

// One kernel launch, worked out on the host before any device is touched. A GPU (launch) and the PTX emulator are given
// the same plan. `params` are the bytes of the kernel's single by-value parameter; the addresses in it are those
// the plan was made with.
struct Plan {
  std::string symbol;          // the kernel's name, in the PTX and in the binary alike
  std::string ptx;             // the stem of the PTX file that has it: fastres/ptx/<ptx>.ptx
  const void* host = nullptr;  // what cudaLaunchKernel wants
  Dim3 grid, block, cluster;
  uint32_t shared_bytes = 0;  // dynamic shared memory
  std::vector<std::byte> params;
  std::vector<TensorMapSpec> maps;
  bool overlap = false;  // may start before the kernels before it end: it waits for them itself (griddepcontrol)
};

// Queues the plan on a CUDA stream (0: the default stream) of the current device. Throws std::runtime_error with the
// kernel's name and CUDA's own words.
void launch(const Plan& plan, uintptr_t stream);

// Every kernel of this build, and the PTX file that has it.
struct KernelName {
  std::string symbol, ptx;
};
void append_conv_sm80_names(std::vector<KernelName>& names);

// --- convolution -----------------------------------------------------------------------------------------------------

// An input and the weights and bias it meets. H, W, C: the input's size; R, S: the filter's.
struct ConvOperand {
  const void* x;       // [N, H, W, C]
  const void* weight;  // [K, weight_pitch]: [K, R, S, C / groups], each filter's row padded with zeros
  const float* bias;   // [K], or null
  int32_t h, w, c, r, s;
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int32_t weight_pitch;  // elements; a multiple of 16 bytes
};

// y = act(conv(operand 0) [+ conv(operand 1)] [+ residual]). The second operand is the projection shortcut.
struct ConvParams {
  ConvOperand operand[2];
  int32_t operands;
  int32_t n, p, q, k, groups;  // y is [N, P, Q, K]
  const void* residual;        // like y, or null; may be y
  void* y;
  const float *input_scale, *input_shift;  // [C]: x stands for relu(x * scale + shift), zeros around it; or null
  void* moments;                           // floats [tiles of rows, K, 3] of y: count, mean, m2; or null
  float* partial;                          // [splits, N * P * Q, K] where the sum over depth is split, else null
  int32_t splits;
  int32_t relu;
};

// How to compute it. Zero lets the plan choose. `cluster`: blocks that share weights, of conv_sm90 alone.
struct ConvTile {
  int32_t m = 0, n = 0, splits = 0, cluster = 0;
};

// Floats that `partial` must hold for this choice of tile: 0 where nothing is split. `sms`: multiprocessors of the GPU.
// Fills `tile` with the choice.
size_t conv_sm80_workspace(DType dtype, const ConvParams& params, int sms, ConvTile& tile);

// One launch, or two where the sum over depth is split. `tile` is what conv_sm80_workspace filled.
std::vector<Plan> plan_conv_sm80(DType dtype, const ConvParams& params, const ConvTile& tile);

// Why conv_sm90 cannot run this problem, or "". Throws for what no kernel can.
std::string conv_sm90_obstacle(DType dtype, const ConvParams& params);

// The same two functions for conv_sm90; std::invalid_argument where there is an obstacle.
size_t conv_sm90_workspace(DType dtype, const ConvParams& params, int sms, ConvTile& tile);
std::vector<Plan> plan_conv_sm90(DType dtype, const ConvParams& params, int sms, const ConvTile& tile);

// Rows of y that an entry of `moments` is about, by the tile that was chosen.
int conv_sm90_moment_rows(DType dtype, const ConvTile& tile);
void append_conv_sm90_names(std::vector<KernelName>& names);

// --- stem ------------------------------------------------------------------------------------------------------------

constexpr int kStemFilters = 64;       // filters come in blocks of so many
constexpr int kStemDepth = 7 * 8 * 4;  // elements of a filter

// y = max_pool(relu(conv(v) + bias)): 7x7/2 convolution with padding 3, 3x3/2 pool with padding 1. v is x, or
// x * scale + shift for 8-bit x.
struct StemParams {
  const void* x;  // [N, H, W, C] with these strides, in elements
  int64_t stride_n, stride_h, stride_w, stride_c;
  const void* weight;  // [K rounded up to 64, 7, 8, 4], zeros where a filter has no tap or channel
  const float* bias;   // [K]
  void* y;             // [N, pooled P, pooled Q, K]
  float scale[4], shift[4];
  int32_t n, h, w, c, k;
  int32_t p, q;                // of the convolution
  int32_t pooled_p, pooled_q;  // of the pool
};

Plan plan_stem(DType dtype, bool uint8_input, const StemParams& params);
void append_stem_names(std::vector<KernelName>& names);

// --- BatchNorm, ReLU, residual --------------------------------------------------------------------------------------

enum class BnActPass : int32_t { kStatistics, kApply, kSums, kBackward };

// The operands of every pass; one that a pass does not name is null. kTf32 stands for float32, used as it is.
struct BnActParams {
  int64_t rows;      // N * H * W
  int32_t channels;  // tensors are [rows, channels]
  int32_t relu;
  const void* x;
  const void* residual;                          // apply: added, or null; sums, backward with ReLU: likewise
  const void* gradient;                          // sums, backward: of the output
  void* y;                                       // apply: the result; backward: the gradient of x, maybe gradient
  void* gradient_residual;                       // backward: written; or null
  const float *scale, *shift, *scale2, *shift2;  // [channels]: apply; sums, backward with ReLU
  const float *mean, *invstd, *gradient_scale;   // [channels]: sums, backward
  int64_t values;                                // backward: what the sums are divided by
  void* partial;                  // floats [slabs + 1, channels, 3] for statistics, [slabs, channels, 2] for sums
  void* result;                   // floats [channels, 3]: count, mean, m2; or [channels, 2]: sum_g, sum_gx
  int32_t slabs, lanes, aligned;  // the plan's own
};

// Slabs of rows that partial results are kept for.
int bn_act_slabs(DType dtype, int64_t rows, int channels);
std::vector<Plan> plan_bn_act(DType dtype, BnActPass pass, const BnActParams& params);

void append_bn_act_names(std::vector<KernelName>& names);

struct BnMergeParams {
  const void* partial;  // floats [slabs, channels, 3] for statistics, [slabs, channels, 2] for sums
  void* result;         // floats [channels, 3] or [channels, 2]
  int32_t slabs, channels;
  int32_t from_origin;  // statistics: means are relative to those in a last row of partial
};

struct BnFinalizeParams {
  const void* statistics;             // floats [channels, 3]
  const float *gamma, *beta;          // [channels], or null for 1 and 0
  float *running_mean, *running_var;  // [channels], updated; or null
  float* vectors;                     // [4, channels]: mean, invstd, scale, shift
  int32_t channels;
  float values, eps, momentum;
};

// Also the second launch of a pass that reduces.
Plan plan_bn_merge(BnActPass pass, const BnMergeParams& params);
Plan plan_bn_finalize(const BnFinalizeParams& params);
void append_bn_merge_names(std::vector<KernelName>& names);

// --- BatchNorm, ReLU, max pool --------------------------------------------------------------------------------------

enum class BnPoolPass : int32_t { kPool, kTaps, kGather };

// The operands of every pass; one that a pass does not name is null. Addresses are multiples of 16 bytes, that of taps
// as many bytes as 16 bytes have elements.
struct BnPoolParams {
  int32_t n, h, w, c, p, q;         // x is [N, H, W, C], pooled [N, P, Q, C]; C a multiple of 16 bytes
  int32_t kernel, stride, padding;  // of the square window; kernel at most 15
  int32_t relu;                     // pool, taps
  const void* x;                    // pool, taps: BatchNorm's input
  const float *scale, *shift;       // [C]: pool, taps
  const void* gradient;             // gather: of what is pooled
  void* taps;                       // bytes, like pooled: taps writes, gather reads
  void* y;                          // pool: the result, pooled; gather: the gradient of the activation, like x
  int32_t lanes;                    // the plan's own
};

Plan plan_bn_pool(DType dtype, BnPoolPass pass, const BnPoolParams& params);
void append_bn_pool_names(std::vector<KernelName>& names);

}  // namespace fastres
