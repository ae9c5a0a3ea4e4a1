// The statistics of a tile of y, from the accumulators of conv_sm80.cu: what the next BatchNorm needs.
//
// A warp has whole columns of its rows, so its mean is exact before deviations from it are squared: nothing cancels.
// Then the block's warps are merged in their order; the tiles are merged by bn_act.cu.
#pragma once

#include "kernels/conv_sm80_mainloop.h"
#include "kernels/moments.h"

namespace fastres {
namespace {

// Adds up what the lanes hold whose numbers are equal modulo 4: those of one column of accumulators.
__device__ __forceinline__ float sum_of_column(float value) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// Rounds two neighbouring values of y to what is stored.
template <class T>
__device__ __forceinline__ void round_as_stored(float& low, float& high) {
  if constexpr (sizeof(typename T::Bits) == 2) {
    const uint32_t pair = T::narrow(low, high);
    low = T::widen(static_cast<typename T::Bits>(pair));
    high = T::widen(static_cast<typename T::Bits>(pair >> 16));
  }
}

// Writes params.moments[tile][filter], and rounds the accumulators, so that no register is taken for what is rounded.
// `of_warps` is shared memory, [C::kM / C::kWarpM][C::kN]; all threads take part.
template <class C>
__device__ void write_moments(const ConvParams& params, Accumulators<C>& sums, Moments* of_warps, int tile_m,
                              int tile_n, int warp_m, int warp_n) {
  const int lane = threadIdx.x % 32;
  const int rows = min(params.n * params.p * params.q - tile_m - warp_m, C::kWarpM);  // not positive: past the last
  const float count = static_cast<float>(max(rows, 0)), one_of_rows = __fdividef(1.f, fmaxf(count, 1.f));
  Moments* column = of_warps + warp_m / C::kWarpM * C::kN + warp_n + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < Accumulators<C>::kColumns; ++j) {
    float low = 0.f, high = 0.f;
#pragma unroll
    for (int i = 0; i < Accumulators<C>::kRows * 2; ++i) {
      float (&d)[4] = sums.value[i / 2][j];
      round_as_stored<typename C::T>(d[i % 2 * 2], d[i % 2 * 2 + 1]);
      if (i * 8 + lane / 4 < rows) low += d[i % 2 * 2], high += d[i % 2 * 2 + 1];
    }
    const float2 mean = make_float2(sum_of_column(low) * one_of_rows, sum_of_column(high) * one_of_rows);
    low = 0.f, high = 0.f;
#pragma unroll
    for (int i = 0; i < Accumulators<C>::kRows * 2; ++i) {
      const float (&d)[4] = sums.value[i / 2][j];
      const float2 deviation = make_float2(d[i % 2 * 2] - mean.x, d[i % 2 * 2 + 1] - mean.y);
      if (i * 8 + lane / 4 < rows) low += deviation.x * deviation.x, high += deviation.y * deviation.y;
    }
    low = sum_of_column(low), high = sum_of_column(high);
    if (lane < 4) {
      column[j * 8] = Moments{count, mean.x, low};
      column[j * 8 + 1] = Moments{count, mean.y, high};
    }
  }
  __syncthreads();
  static_assert(C::kN <= kThreads);
  const int filters = params.k / params.groups, filter = tile_n + threadIdx.x;
  if (threadIdx.x >= C::kN || filter >= filters) return;
  Moments merged = of_warps[threadIdx.x];
#pragma unroll
  for (int warp = 1; warp < C::kM / C::kWarpM; ++warp) merged.merge(of_warps[warp * C::kN + threadIdx.x]);
  static_cast<Moments*>(params.moments)[int64_t{tile_m / C::kM} * params.k + blockIdx.y * filters + filter] = merged;
}

}  // namespace
}  // namespace fastres
