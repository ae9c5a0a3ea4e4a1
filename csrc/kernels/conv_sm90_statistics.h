// The statistics of a slab's columns of y, from the accumulators of conv_sm90: what the next BatchNorm needs.
//
// A warp has whole columns of its rows, so its mean is exact before deviations from it are squared: nothing cancels.
// Then the consumer's warps are merged in their order; the tiles are merged by bn_merge.cu.
#pragma once

#include "kernels/conv_sm90_tile.h"
#include "kernels/moments.h"
#include "ptx/named_barrier.h"

namespace fastres {
namespace {

constexpr int kSlabValues = kSlabColumns / 4;  // columns of a slab that a thread has values of
using OfColumns = float[kSlabValues];

// Rows of y that one entry of params.moments is about.
template <class C>
constexpr int kMomentRows = C::kCooperative ? kHalf : kTileM;

// Adds up, over a warp's lanes, the values of columns 8 * (i / 2) + 2 * (lane % 4) + i % 2: columns 2 * lane and
// 2 * lane + 1 are left, in the first two. Half of them change hands with the lane 16 away, then half of the rest with
// that 8 away, and 4.
template <int kHalfOfValues = kSlabValues / 2>
__device__ __forceinline__ void add_up(OfColumns& value) {
  constexpr int kDistance = kHalfOfValues * 2;
  const bool upper = threadIdx.x & kDistance;
#pragma unroll
  for (int i = 0; i < kHalfOfValues; ++i) {
    const float low = value[i], high = value[i + kHalfOfValues];
    value[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, kDistance);
  }
  if constexpr (kHalfOfValues > 2) add_up<kHalfOfValues / 2>(value);
}

// Rows of y among the warp's, in the products of a consumer whose rows begin at `first`.
template <class C>
__device__ __forceinline__ int rows_of_warp(const ConvSm90Params& params, int first, int warp) {
  int rows = 0;
#pragma unroll
  for (int product = 0; product < C::kProducts; ++product)
    rows += min(max(params.rows - (first + product * kHalf + 16 * warp), 0), 16);
  return rows;
}

// Writes params.moments for the 64 columns from `column` of a consumer's tile. `scratch` is a slab of shared memory.
template <class C>
__device__ void write_moments(const ConvSm90Params& params, const float (&sum)[C::kProducts][C::kN / 2],
                              const Item& item, int column, int group, uint32_t scratch) {
  const int warp = threadIdx.x / 32 % kWarpsOfGroup, lane = threadIdx.x % 32, thread = threadIdx.x % 128;
  const int first = item.row + (C::kCooperative ? group * kHalf : 0), row = first + 16 * warp + lane / 4;
  const float one_of_rows = 1.f / static_cast<float>(max(rows_of_warp<C>(params, first, warp), 1));
  OfColumns total, square;
  const auto value = [&](int i, int j) {  // of row i of the thread's, column pair j, as stored
    const float* at = sum[i / 2] + column / 2 + 4 * j + i % 2 * 2;
    const uint32_t stored = C::T::narrow(at[0], at[1]);
    return make_float2(C::T::widen(static_cast<uint16_t>(stored)), C::T::widen(static_cast<uint16_t>(stored >> 16)));
  };
  const auto exists = [&](int i) { return row + i / 2 * kHalf + i % 2 * 8 < params.rows; };
#pragma unroll
  for (int j = 0; j < kSlabValues / 2; ++j) {
    float2 of_rows = {};
#pragma unroll
    for (int i = 0; i < C::kProducts * 2; ++i)
      if (exists(i)) of_rows.x += value(i, j).x, of_rows.y += value(i, j).y;
    total[2 * j] = of_rows.x, total[2 * j + 1] = of_rows.y;
  }
  add_up(total);
  const float2 mean = make_float2(total[0] * one_of_rows, total[1] * one_of_rows);
#pragma unroll
  for (int j = 0; j < kSlabValues / 2; ++j) {
    const int from = 4 * j + lane % 4;  // the lane that is left with these columns
    const float2 center = make_float2(__shfl_sync(~0u, mean.x, from), __shfl_sync(~0u, mean.y, from));
    float2 of_rows = {};
#pragma unroll
    for (int i = 0; i < C::kProducts * 2; ++i) {
      const float2 deviation = make_float2(value(i, j).x - center.x, value(i, j).y - center.y);
      if (exists(i)) of_rows.x += deviation.x * deviation.x, of_rows.y += deviation.y * deviation.y;
    }
    square[2 * j] = of_rows.x, square[2 * j + 1] = of_rows.y;
  }
  add_up(square);
  auto* of_warps = static_cast<float4*>(__cvta_shared_to_generic(scratch));
  of_warps[warp * 32 + lane] = make_float4(mean.x, square[0], mean.y, square[1]);
  ptx::named_barrier_sync<128>(1 + group);
  const int filter = item.filter + column + thread;
  if (thread < kSlabColumns && filter < params.k && first < params.rows) {
    Moments merged;
#pragma unroll
    for (int i = 0; i < kWarpsOfGroup; ++i) {
      const float2 of_column = reinterpret_cast<const float2*>(of_warps)[i * kSlabColumns + thread];
      merged.merge({static_cast<float>(rows_of_warp<C>(params, first, i)), of_column.x, of_column.y});
    }
    params.moments[int64_t{first / kMomentRows<C>} * params.k + filter] = merged;
  }
  ptx::named_barrier_sync<128>(1 + group);  // the slab is free for results
}

}  // namespace
}  // namespace fastres
