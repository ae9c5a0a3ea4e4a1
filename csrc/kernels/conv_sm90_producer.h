// conv_sm90's producer warpgroup: three threads, in three warps, that only issue copies.
//
//   loader            global -> stages   x and weights, as many steps ahead as there are stages
//   residual_loader   global -> slabs    where there is a residual, as many ahead as there are slabs
//   storer            slabs -> global    results, as the consumers finish them
#pragma once

#include "kernels/conv_sm90_tile.h"

namespace fastres {
namespace {

// Where the loader is in the depth of the sum: operand, tap, channels. Channels past the last of a tap read as zero.
class Depth {
 public:
  __device__ Depth(const ConvSm90Params& params, int row, int step) : params_(params), row_(row) {
    which_ = step >= params.operand[0].steps;
    start(step - (which_ == 0 ? 0 : params.operand[0].steps));
  }

  __device__ int which() const { return which_; }
  __device__ int channel() const { return channel_; }
  __device__ int tap() const { return r_ * operand_->filter_width + s_; }

  template <class C>
  __device__ void load_x(const Shared90<C>& shared, int stage) const {
    const ptx::TensorMap& map = params_.x[which_];
    if (operand_->windowed) {
      ptx::tma_load_im2col(shared.a(stage), map, shared.full(stage), channel_, w_, h_, n_,
                           static_cast<uint16_t>(s_ * operand_->dilation_w),
                           static_cast<uint16_t>(r_ * operand_->dilation_h));
    } else {
      ptx::tma_load(shared.a(stage), map, shared.full(stage), channel_, row_);
    }
  }

  __device__ void advance() {
    channel_ += kTileDepth;
    if (--left_ == 0) {
      if (which_ == 0 && params_.operand[1].steps > 0) {
        which_ = 1;
        start(0);
      }
    } else if (channel_ >= operand_->channels) {
      channel_ = 0;
      if (++s_ == operand_->filter_width) {
        s_ = 0;
        ++r_;
      }
    }
  }

 private:
  __device__ void start(int step) {
    operand_ = &params_.operand[which_];
    left_ = operand_->steps - step;
    const int steps_of_tap = (operand_->channels + kTileDepth - 1) / kTileDepth, tap = step / steps_of_tap;
    channel_ = step % steps_of_tap * kTileDepth;
    r_ = tap / operand_->filter_width, s_ = tap % operand_->filter_width;
    const int q = row_ % params_.q, p = row_ / params_.q % params_.p;
    n_ = row_ / params_.q / params_.p;
    h_ = p * operand_->stride_h - operand_->pad_h;
    w_ = q * operand_->stride_w - operand_->pad_w;
  }

  const ConvSm90Params& params_;
  const ConvSm90Operand* operand_;
  int row_, which_, left_;
  int channel_, r_, s_;  // of the step
  int n_, h_, w_;        // of the tile's first pixel, where the filter's first tap meets it
};

template <class C>
__device__ void loader(const ConvSm90Params& params, const Shared90<C>& shared) {
  Cursor<C::kStages> at;
  for (int i = first_item<C>(); i < params.items; i += item_stride<C>()) {
    const Item item = Item::of<C>(params, i);
    Depth depth(params, item.row, item.step);
    for (int step = 0; step < item.steps; ++step, at.advance(), depth.advance()) {
      const int stage = at.index;
      ptx::mbarrier_wait(shared.empty(stage), at.parity ^ 1);
      ptx::mbarrier_arrive_expect(shared.full(stage), C::kBytesA + C::kBytesB);
      depth.load_x(shared, stage);
      const ptx::TensorMap& weight = params.weight[depth.which()];
      if constexpr (C::kCluster == 1) {
        ptx::tma_load(shared.b(stage), weight, shared.full(stage), depth.channel(), depth.tap(), item.filter);
      } else {  // this block's share, to all blocks
        const int rank = ptx::cluster_rank(), share = C::kN / C::kCluster;
        ptx::tma_load_multicast(shared.b(stage) + rank * C::kShareB, weight, shared.full(stage), depth.channel(),
                                depth.tap(), item.filter + rank * share, (1 << C::kCluster) - 1);
      }
    }
  }
}

// Row and column of slab i of a tile.
template <class C>
__device__ __forceinline__ int slab_row(const Item& item, int i) {
  return item.row + i % (kTileM / kHalf) * kHalf;
}
template <class C>
__device__ __forceinline__ int slab_column(const Item& item, int i) {
  return item.filter + i / (kTileM / kHalf) * kSlabColumns;
}

template <class C>
__device__ void residual_loader(const ConvSm90Params& params, const Shared90<C>& shared) {
  Cursor<C::kSlabs> at;
  for (int i = first_item<C>(); i < params.items; i += item_stride<C>()) {
    const Item item = Item::of<C>(params, i);
    for (int slab = 0; slab < C::kTileSlabs; ++slab, at.advance()) {
      ptx::mbarrier_wait(shared.free(at.index), at.parity ^ 1);
      ptx::mbarrier_arrive_expect(shared.filled(at.index), kSlabBytes);
      ptx::tma_load(shared.slab(at.index), params.residual, shared.filled(at.index), slab_column<C>(item, slab),
                    slab_row<C>(item, slab));
    }
  }
}

template <class C>
__device__ void storer(const ConvSm90Params& params, const Shared90<C>& shared) {
  Cursor<C::kSlabs> at;
  int last = -1;  // the slab whose store may still be reading it
  for (int i = first_item<C>(); i < params.items; i += item_stride<C>()) {
    const Item item = Item::of<C>(params, i);
    for (int slab = 0; slab < C::kTileSlabs; ++slab, at.advance()) {
      ptx::mbarrier_wait(shared.ready(at.index), at.parity);
      ptx::tma_store(params.y, shared.slab(at.index), slab_column<C>(item, slab), slab_row<C>(item, slab));
      ptx::tma_commit();
      ptx::tma_wait_read<1>();
      if (last >= 0) ptx::mbarrier_arrive(shared.free(last));
      last = at.index;
    }
  }
  ptx::tma_wait_read<0>();
}

}  // namespace
}  // namespace fastres
