// What the roles of conv_sm90 agree on: parameters, the block's shared memory, which tiles it computes and in which
// order, and where each of them is in the rings.
#pragma once

#include <cstdint>

#include "kernels/moments.h"
#include "ptx/address.h"
#include "ptx/cluster.h"
#include "ptx/mbarrier.h"
#include "ptx/tma.h"
#include "ptx/wgmma.h"

namespace fastres {

// One convolution of the (up to two) that are summed.
struct ConvSm90Operand {
  const float* bias;  // [K]; null where there is none, and where the sum over depth is split
  int32_t steps;      // of 64 channels of a tap
  int32_t channels, filter_width;
  int32_t windowed;  // x by im2col: the filter has taps or strides; else x is a matrix [N * P * Q, C]
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// The kernel's one parameter. Maps come first: they are aligned to 64 bytes.
struct ConvSm90Params {
  ptx::TensorMap x[2];       // boxes of 128 pixels by 64 channels
  ptx::TensorMap weight[2];  // [K, R * S, C]: boxes of the tile's filters (a cluster's share of them) by 64 channels
  ptx::TensorMap residual;   // [N * P * Q, K]: boxes of 64 pixels by 64 channels
  ptx::TensorMap y;          // likewise
  ConvSm90Operand operand[2];
  float* partial;           // [splits, N * P * Q, K] where the sum over depth is split, else null
  Moments* moments;         // [tiles of kMomentRows, K] of y as stored, or null
  int32_t steps;            // of both operands
  int32_t rows, p, q, k;    // rows: N * P * Q
  int32_t tiles_n, splits;  // tiles along K; parts of the depth
  int32_t items;            // for a cluster to compute: tiles (pairs of them along M, for a cluster of two) * splits
  int32_t relu, add_residual;
};

namespace {

constexpr int kTileM = 128, kTileDepth = 64;  // 64 elements of 16 bits: one swizzled row of 128 bytes
constexpr int kConsumers = 2;                 // warpgroups
constexpr int kThreads90 = 128 * (1 + kConsumers);
constexpr int kHalf = 64;                                  // rows of one wgmma
constexpr int kSlabColumns = 64;                           // one swizzled row
constexpr uint32_t kSlabBytes = kHalf * kSlabColumns * 2;  // what the epilogue handles at a time
constexpr int kWarpsOfGroup = 4;

// A block computes tiles of 128 pixels by kN filters. Cooperative: both consumer warpgroups share a tile, 64 rows each.
// Otherwise they take turns: each has a tile of its own, as two products of 64 rows, and one's epilogue runs under the
// other's main loop. kCluster blocks compute neighbouring tiles along M and share the weights that they load.
template <class Element, int kN_, bool kCooperative_, int kCluster_, int kStages_, int kSlabs_>
struct Config90 {
  using T = Element;
  static constexpr int kN = kN_, kCluster = kCluster_, kStages = kStages_, kSlabs = kSlabs_;
  static constexpr bool kCooperative = kCooperative_;
  static constexpr int kProducts = kCooperative ? 1 : 2;                   // of 64 rows, a consumer's part of a tile
  static constexpr int kReaders = kCooperative ? kConsumers : 1;           // consumers that read a stage
  static constexpr int kTileSlabs = kN / kSlabColumns * (kTileM / kHalf);  // ordered by column, then by half
  // A wait for a parity is for a phase only as long as the phase before is known to be over: a consumer must have used
  // the slab itself the time before. (For stages, consumers' turns see to it.)
  static_assert(kCooperative ? kSlabs % kConsumers == 0 : kSlabs >= kConsumers * kTileSlabs);
  static constexpr uint32_t kBytesA = kTileM * kTileDepth * 2, kBytesB = kN * kTileDepth * 2;
  static constexpr uint32_t kShareB = kBytesB / kCluster;  // of the weights, what one block of the cluster loads
};

// Where things are in shared memory. Barriers: a stage is `full` when its copies have come and `empty` when its readers
// are done; a slab is `filled` when the residual has come, `ready` when the consumer has written the result and `free`
// when that has been stored; it is a consumer's `turn` when the other has issued its products.
template <class C>
class Shared90 {
  static constexpr uint32_t kB = C::kStages * C::kBytesA, kSlab = kB + C::kStages * C::kBytesB;
  static constexpr uint32_t kFull = kSlab + C::kSlabs * kSlabBytes, kEmpty = kFull + C::kStages * 8;
  static constexpr uint32_t kFilled = kEmpty + C::kStages * 8, kReady = kFilled + C::kSlabs * 8;
  static constexpr uint32_t kFree = kReady + C::kSlabs * 8, kTurn = kFree + C::kSlabs * 8;

 public:
  static constexpr uint32_t kBytes = kTurn + kConsumers * 8 + ptx::kSwizzleAtom;  // with room to align the start

  __device__ explicit Shared90(const void* memory)
      : base_((ptx::shared_address(memory) + ptx::kSwizzleAtom - 1) & ~(ptx::kSwizzleAtom - 1)) {}

  __device__ uint32_t a(int stage) const { return base_ + stage * C::kBytesA; }
  __device__ uint32_t b(int stage) const { return base_ + kB + stage * C::kBytesB; }
  __device__ uint32_t slab(int i) const { return base_ + kSlab + i * kSlabBytes; }
  __device__ uint32_t full(int stage) const { return base_ + kFull + stage * 8; }
  __device__ uint32_t empty(int stage) const { return base_ + kEmpty + stage * 8; }
  __device__ uint32_t filled(int i) const { return base_ + kFilled + i * 8; }
  __device__ uint32_t ready(int i) const { return base_ + kReady + i * 8; }
  __device__ uint32_t free(int i) const { return base_ + kFree + i * 8; }
  __device__ uint32_t turn(int consumer) const { return base_ + kTurn + consumer * 8; }

  // By one thread, before all others.
  __device__ void init_barriers() const {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(full(i), 1);
      ptx::mbarrier_init(empty(i), kWarpsOfGroup * C::kReaders * C::kCluster);
    }
    for (int i = 0; i < C::kSlabs; ++i) {
      ptx::mbarrier_init(filled(i), 1);
      ptx::mbarrier_init(ready(i), kWarpsOfGroup);
      ptx::mbarrier_init(free(i), 1);
    }
    for (int i = 0; i < kConsumers; ++i) ptx::mbarrier_init(turn(i), kWarpsOfGroup);
    ptx::mbarrier_fence_init();
  }

 private:
  uint32_t base_;
};

// A place in a ring. Every role that uses a ring walks it in the same order.
template <int kSize>
struct Cursor {
  int index = 0;
  uint32_t parity = 0;

  __device__ void advance(int by = 1) {
    index += by;
    parity ^= index / kSize & 1;
    index %= kSize;
  }
};

// What a cluster does at a time: a tile (for a cluster of two, two of them one below the other), or a part of the depth
// of one. Neighbours in number are neighbours along K: they run at the same time and find the same x in L2, where all
// weights are anyway.
struct Item {
  int row, filter;         // the block's tile begins there
  int split, step, steps;  // part of the depth: its number, first step and steps

  template <class C>
  __device__ static Item of(const ConvSm90Params& params, int index) {
    const int tile = index / params.splits, split = index % params.splits;
    const int rank = C::kCluster == 1 ? 0 : ptx::cluster_rank();
    const int row = (tile / params.tiles_n * C::kCluster + rank) * kTileM;
    const int step = static_cast<int>(int64_t{params.steps} * split / params.splits);
    const int end = static_cast<int>(int64_t{params.steps} * (split + 1) / params.splits);
    return {row, tile % params.tiles_n * C::kN, split, step, end - step};
  }
};

// The items of this cluster: for (int i = first_item<C>(); i < params.items; i += item_stride<C>()).
template <class C>
__device__ __forceinline__ int first_item() {
  return blockIdx.x / C::kCluster;
}
template <class C>
__device__ __forceinline__ int item_stride() {
  return gridDim.x / C::kCluster;
}

}  // namespace
}  // namespace fastres
