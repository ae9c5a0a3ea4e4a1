// The main loop of conv_sm80.cu: global memory -> shared memory -> registers -> tensor cores.
#pragma once

#include <algorithm>
#include <climits>

#include "kernels/moments.h"
#include "params.h"
#include "ptx/cp_async.h"
#include "ptx/element.h"
#include "ptx/ldmatrix.h"
#include "ptx/math.h"
#include "ptx/mma.h"

namespace fastres {
namespace {

constexpr int kStages = 4;
constexpr int kRowBytes = 64;
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRowsPerPass = kThreads / (kRowBytes / 16);  // rows that the block loads at a time, a chunk a thread

// A block computes kM x kN outputs, a warp kM / kWarpsM x kN / kWarpsN; kCopy: bytes of x that are contiguous and
// aligned.
template <class Element, int kM_, int kN_, int kWarpsM, int kCopy_>
struct Config {
  using T = Element;
  using Bits = typename T::Bits;
  static constexpr int kM = kM_, kN = kN_, kCopy = kCopy_;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / (kWarps / kWarpsM);
  static constexpr int kVector = 16 / sizeof(Bits);
  static constexpr int kDepth = kRowBytes / sizeof(Bits);
  static constexpr int kStageBytes = (kM + kN) * kRowBytes;
  static constexpr int kStagingPitch = kWarpN + 8;  // floats; + 8 spreads the quads' rows over the banks
  static constexpr int kStagingBytes = kWarps * 16 * kStagingPitch * sizeof(float);
  static constexpr int kMomentsBytes = kWarpsM * kN * sizeof(Moments);
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, kStagingBytes + kMomentsBytes);
};

__host__ __device__ constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

__host__ __device__ inline int depth_of(const ConvOperand& operand, int groups) {
  return operand.r * operand.s * (operand.c / groups);
}

// This thread's share of the copies into a stage: one chunk of depth of every kRowsPerPass-th row of A and of B.
template <class C>
class Loader {
  using Bits = typename C::Bits;
  static constexpr int kPassesA = C::kM / kRowsPerPass, kPassesB = C::kN / kRowsPerPass;
  static constexpr int kPieceElements = C::kCopy / sizeof(Bits);

 public:
  __device__ Loader(const ConvParams& params, uint32_t shared, int tile_m, int tile_n, int first_step)
      : params_(params), tile_m_(tile_m), tile_n_(tile_n), step_(first_step), restart_(first_step) {
    const int row = threadIdx.x / 4, chunk = threadIdx.x % 4;
    destination_ = shared + row * kRowBytes + ((chunk ^ (row / 2 % 4)) * 16);
    first_operand_steps_ = ceil_div(depth_of(params.operand[0], params.groups), C::kDepth);
  }

  // Starts the copies of the next step of depth into `stage`.
  __device__ void next(int stage) {
    if (step_ == restart_) start();
    ++step_;
    const uint32_t a = destination_ + stage * C::kStageBytes, b = a + C::kM * kRowBytes;
    Tap tap = tap_;
#pragma unroll
    for (int piece = 0; piece < 16 / C::kCopy; ++piece) {
      const int dh = tap.r * operand_->dilation_h, dw = tap.s * operand_->dilation_w;
      const int64_t offset = (int64_t{dh} * operand_->w + dw) * operand_->c + tap.c;
#pragma unroll
      for (int i = 0; i < kPassesA; ++i) {
        const bool inside = tap.r < operand_->r && static_cast<uint32_t>(h_[i] + dh) < operand_->h &&
                            static_cast<uint32_t>(w_[i] + dw) < operand_->w;
        ptx::cp_async<C::kCopy>(a + i * kRowsPerPass * kRowBytes + piece * C::kCopy, pixel_[i] + offset, inside);
        const uint32_t bit = 1u << (stage * kPassesA + i);
        inside_ = inside ? inside_ | bit : inside_ & ~bit;
      }
      advance(tap, kPieceElements);
    }
#pragma unroll
    for (int i = 0; i < kPassesB; ++i) {
      const bool inside = filters_left_ > i * kRowsPerPass && depth_left_ > 0;
      ptx::cp_async<16>(b + i * kRowsPerPass * kRowBytes, filter_ + i * filter_stride_, inside);
    }
    advance(tap_, C::kDepth);
    filter_ += C::kDepth;
    depth_left_ -= C::kDepth;
  }

  // relu(x * scale + shift) of what this thread copied into `stage`, which must have come. Zeros from outside the image
  // stay: they pad the prologue's result. Stages come in the order in which they were filled; one operand only.
  __device__ void apply_prologue(int stage) {
    static_assert(C::kCopy == 16, "a chunk must be of one tap");
    const int channel = blockIdx.y * channels_ + ready_channel_;
    float scale[C::kVector], shift[C::kVector];
#pragma unroll
    for (int i = 0; i < C::kVector; i += 4) {
      const float4 a = __ldg(reinterpret_cast<const float4*>(params_.input_scale + channel + i));
      const float4 b = __ldg(reinterpret_cast<const float4*>(params_.input_shift + channel + i));
      scale[i] = a.x, scale[i + 1] = a.y, scale[i + 2] = a.z, scale[i + 3] = a.w;
      shift[i] = b.x, shift[i + 1] = b.y, shift[i + 2] = b.z, shift[i + 3] = b.w;
    }
#pragma unroll
    for (int i = 0; i < kPassesA; ++i) {
      if ((inside_ >> (stage * kPassesA + i) & 1) == 0) continue;
      const uint32_t address = destination_ + stage * C::kStageBytes + i * kRowsPerPass * kRowBytes;
      uint4& shared = *static_cast<uint4*>(__cvta_shared_to_generic(address));
      Chunk<typename C::T> chunk;
      chunk.vector = shared;
      float value[C::kVector];
#pragma unroll
      for (int j = 0; j < C::kVector; ++j) value[j] = ptx::relu(fmaf(chunk[j], scale[j], shift[j]));
      shared = Chunk<typename C::T>::narrow(value).vector;
    }
    for (ready_channel_ += C::kDepth; ready_channel_ >= channels_;) ready_channel_ -= channels_;
  }

 private:
  struct Tap {
    int r, s, c;
  };

  __device__ void advance(Tap& tap, int elements) const {
    tap.c += elements;
    while (tap.c >= channels_) {
      tap.c -= channels_;
      if (++tap.s == operand_->s) {
        tap.s = 0;
        ++tap.r;
      }
    }
  }

  // Puts the cursors at `step_`, in the first operand or in the second.
  __device__ void start() {
    const bool second = step_ >= first_operand_steps_;
    operand_ = &params_.operand[second];
    restart_ = first_operand_steps_;
    channels_ = operand_->c / params_.groups;
    const int group = blockIdx.y, filters = params_.k / params_.groups;
    const int row = threadIdx.x / 4;
    const int depth = (step_ - (second ? first_operand_steps_ : 0)) * C::kDepth + threadIdx.x % 4 * C::kVector;
    tap_ = {depth / channels_ / operand_->s, depth / channels_ % operand_->s, depth % channels_};
    ready_channel_ = tap_.c;
#pragma unroll
    for (int i = 0; i < kPassesA; ++i) {
      const int m = tile_m_ + row + i * kRowsPerPass;
      const int q = m % params_.q, p = m / params_.q % params_.p, n = m / params_.q / params_.p;
      h_[i] = n < params_.n ? p * operand_->stride_h - operand_->pad_h : INT_MIN / 2;  // past the batch: outside
      w_[i] = q * operand_->stride_w - operand_->pad_w;
      pixel_[i] =
          static_cast<const Bits*>(operand_->x) + group * channels_ +
          ((int64_t{n} * operand_->h + p * operand_->stride_h - operand_->pad_h) * operand_->w + w_[i]) * operand_->c;
    }
    filter_ = static_cast<const Bits*>(operand_->weight) +
              int64_t{group * filters + tile_n_ + row} * operand_->weight_pitch + depth;
    filter_stride_ = int64_t{kRowsPerPass} * operand_->weight_pitch;
    filters_left_ = filters - tile_n_ - row;
    depth_left_ = operand_->weight_pitch - depth;
  }

  const ConvParams& params_;
  const ConvOperand* operand_ = nullptr;
  int tile_m_, tile_n_, step_, restart_, first_operand_steps_;
  uint32_t destination_;
  int channels_ = 0;
  Tap tap_{};
  int ready_channel_ = 0;  // of the stage that the prologue is applied to next
  uint32_t inside_ = 0;    // for each stage and row of this thread, whether its chunk came from inside the image
  int h_[kPassesA], w_[kPassesA];
  const Bits* pixel_[kPassesA];  // where tap (0, 0, 0) of the row lies, be it inside the image or not
  const Bits* filter_ = nullptr;
  int64_t filter_stride_ = 0;
  int filters_left_ = 0, depth_left_ = 0;
};

// A warp's accumulators: rows of 16 by columns of 8.
template <class C>
struct Accumulators {
  static constexpr int kRows = C::kWarpM / 16, kColumns = C::kWarpN / 8;
  float value[kRows][kColumns][4] = {};

  // Adds the product of the stage at `a` (A, then B).
  __device__ void multiply(uint32_t a, int warp_m, int warp_n) {
    const int lane = threadIdx.x % 32;
    const int row_a = warp_m + lane % 16, chunk_a = lane / 16;
    const int row_b = warp_n + lane % 8 + lane / 16 * 8, chunk_b = lane / 8 % 2;
    const uint32_t b = a + C::kM * kRowBytes + row_b * kRowBytes;
    a += row_a * kRowBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t fragment_a[kRows][4], fragment_b[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        ptx::ldmatrix_x4(fragment_a[i], a + i * 16 * kRowBytes + ((half * 2 + chunk_a) ^ (row_a / 2 % 4)) * 16);
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j)
        ptx::ldmatrix_x4(fragment_b[j], b + j * 16 * kRowBytes + ((half * 2 + chunk_b) ^ (row_b / 2 % 4)) * 16);
      if constexpr (C::T::kRoundOperands) {
        for (auto& fragment : fragment_a)
          for (auto& bits : fragment) C::T::round_operand(bits);
        for (auto& fragment : fragment_b)
          for (auto& bits : fragment) C::T::round_operand(bits);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          ptx::mma<typename C::T>(value[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2],
                                  fragment_b[j / 2][j % 2 * 2 + 1]);
    }
  }
};

}  // namespace
}  // namespace fastres
