// conv_sm90's consumer warpgroups: products of what the loader brings, then the epilogue.
#pragma once

#include "kernels/conv_sm90_statistics.h"
#include "kernels/conv_sm90_tile.h"
#include "ptx/element.h"
#include "ptx/ldmatrix.h"
#include "ptx/math.h"
#include "ptx/stmatrix.h"

namespace fastres {
namespace {

template <class C>
class Consumer {
 public:
  __device__ Consumer(const ConvSm90Params& params, const Shared90<C>& shared, int group)
      : params_(params),
        shared_(shared),
        group_(group),
        warp_(threadIdx.x / 32 % kWarpsOfGroup),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    if constexpr (C::kCooperative) slab_.advance(group_);
    for (int i = first_item<C>(), number = 0; i < params_.items; i += item_stride<C>(), ++number) {
      const Item item = Item::of<C>(params_, i);
      if (!C::kCooperative && number % kConsumers != group_) {  // the other's
        stage_.advance(item.steps);
        slab_.advance(C::kTileSlabs);
        continue;
      }
      start_sums(item);
      if constexpr (!C::kCooperative) {
        // Turns keep the tensor cores with one tile at a time, and a stage's phases apart: the other consumer has seen
        // all its steps come before this one waits for the next time around. The first tile's turn comes by itself.
        ptx::mbarrier_wait(shared_.turn(group_), turn_ ^ (group_ == 0));
        turn_ ^= 1;
      }
      main_loop(item.steps);
      if (params_.partial != nullptr) {
        store_partial(item);
      } else {
        epilogue(item);
      }
    }
  }

 private:
  // --- main loop -----------------------------------------------------------------------------------------------------

  // The bias is what the sums begin with: it is loaded while the other consumer has the tensor cores. Columns past the
  // last filter get its bias: they are not stored.
  __device__ void start_sums(const Item& item) {
    constexpr int kPairs = C::kN / 8;
    float2 bias[kPairs] = {};
    for (const ConvSm90Operand& operand : params_.operand) {
      if (operand.bias == nullptr) continue;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int column = min(item.filter + 8 * j + 2 * (lane_ % 4), params_.k - 2);
        const float2 more = __ldg(reinterpret_cast<const float2*>(operand.bias + column));
        bias[j].x += more.x, bias[j].y += more.y;
      }
    }
#pragma unroll
    for (int product = 0; product < C::kProducts; ++product)
#pragma unroll
      for (int v = 0; v < C::kN / 2; ++v) sum_[product][v] = ptx::copied(v % 2 ? bias[v / 4].y : bias[v / 4].x);
  }

  // Adds the products of `steps` stages. One step's are always under way; its stage is released a step later. The first
  // step stands apart: ptxas lets products overlap only in a loop that they alone bring sums into.
  __device__ void main_loop(int steps) {
    int before = multiply();
    for (int step = 1; step < steps; ++step) {
      const int stage = multiply();
      ptx::wgmma_wait<1>();
      release(before);
      before = stage;
    }
    if constexpr (!C::kCooperative) {
      if (lane_ == 0) ptx::mbarrier_arrive(shared_.turn(1 - group_));
    }
    ptx::wgmma_wait<0>();
    release(before);
  }

  // Starts adding the products of the next stage, once that has come, and gives its place.
  __device__ int multiply() {
    const int stage = stage_.index, half = C::kCooperative ? group_ : 0;
    ptx::mbarrier_wait(shared_.full(stage), stage_.parity);
    stage_.advance();
    const uint64_t a = ptx::wgmma_descriptor(shared_.a(stage) + half * kHalf * ptx::kSwizzleBytes);
    const uint64_t b = ptx::wgmma_descriptor(shared_.b(stage));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileDepth / 16; ++k)
#pragma unroll
      for (int product = 0; product < C::kProducts; ++product)
        ptx::wgmma<typename C::T, C::kN>(sum_[product], a + 2 * k + product * (kHalf * ptx::kSwizzleBytes >> 4),
                                         b + 2 * k);
    ptx::wgmma_commit();
    return stage;
  }

  // This warp has read the stage: tells all who write to it.
  __device__ void release(int stage) const {
    if constexpr (C::kCluster == 1) {
      if (lane_ == 0) ptx::mbarrier_arrive(shared_.empty(stage));
    } else {
      if (lane_ < C::kCluster) ptx::mbarrier_arrive(shared_.empty(stage), lane_);
    }
  }

  // --- epilogue ------------------------------------------------------------------------------------------------------

  // y = act(sum + residual), slab by slab, in the place of the residual.
  __device__ void epilogue(const Item& item) {
#pragma unroll
    for (int column = 0; column < C::kN / kSlabColumns; ++column) {
      if (params_.moments != nullptr) {
        ptx::mbarrier_wait(shared_.free(slab_.index), slab_.parity ^ 1);
        write_moments<C>(params_, sum_, item, column * kSlabColumns, group_, shared_.slab(slab_.index));
      }
#pragma unroll
      for (int product = 0; product < C::kProducts; ++product) {
        const int slab = slab_.index;
        if (params_.add_residual) {
          ptx::mbarrier_wait(shared_.filled(slab), slab_.parity);
        } else {
          ptx::mbarrier_wait(shared_.free(slab), slab_.parity ^ 1);
        }
        const float* sum = sum_[product] + column * kSlabColumns / 2;
        if (params_.add_residual) {
          finish<true>(sum, shared_.slab(slab));
        } else {
          finish<false>(sum, shared_.slab(slab));
        }
        ptx::fence_proxy_async();
        __syncwarp();
        if (lane_ == 0) ptx::mbarrier_arrive(shared_.ready(slab));
        slab_.advance(C::kCooperative ? kConsumers : 1);
      }
    }
  }

  // Writes this warp's 16 rows of a slab, 16 columns at a time. Chunk c of row r, 16 bytes, lies at c ^ (r % 8).
  template <bool kResidual>
  __device__ void finish(const float* sum, uint32_t slab) const {
    const float least = params_.relu ? 0.f : -ptx::infinity();
    const int row = 16 * warp_ + lane_ % 16;
#pragma unroll
    for (int i = 0; i < kSlabColumns / 16; ++i, sum += 8) {
      const uint32_t address = slab + row * ptx::kSwizzleBytes + ((2 * i + lane_ / 16) ^ (row % 8)) * 16;
      uint32_t pairs[4] = {};
      if constexpr (kResidual) ptx::ldmatrix_x4(pairs, address);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float low = sum[2 * j], high = sum[2 * j + 1];
        if constexpr (kResidual) {
          low += C::T::widen(static_cast<uint16_t>(pairs[j]));
          high += C::T::widen(static_cast<uint16_t>(pairs[j] >> 16));
        }
        pairs[j] = C::T::narrow(ptx::at_least(low, least), ptx::at_least(high, least));
      }
      ptx::stmatrix_x4(address, pairs);
    }
  }

  // The sums of a part of the depth, as they are.
  __device__ void store_partial(const Item& item) const {
    float* partial = params_.partial + int64_t{item.split} * params_.rows * params_.k;
#pragma unroll
    for (int product = 0; product < C::kProducts; ++product) {
      const int half = C::kCooperative ? group_ : product;
      const int row = item.row + half * kHalf + 16 * warp_ + lane_ / 4;
#pragma unroll
      for (int j = 0; j < C::kN / 8; ++j) {
        const int column = item.filter + 8 * j + 2 * (lane_ % 4);
        if (column >= params_.k) continue;
#pragma unroll
        for (int below = 0; below < 2; ++below)
          if (row + 8 * below < params_.rows)
            *reinterpret_cast<float2*>(partial + int64_t{row + 8 * below} * params_.k + column) =
                make_float2(sum_[product][4 * j + 2 * below], sum_[product][4 * j + 2 * below + 1]);
      }
    }
  }

  const ConvSm90Params& params_;
  const Shared90<C>& shared_;
  const int group_, warp_, lane_;
  Cursor<C::kStages> stage_;
  Cursor<C::kSlabs> slab_;
  uint32_t turn_ = 0;
  float sum_[C::kProducts][C::kN / 2];
};

}  // namespace
}  // namespace fastres
