// conv_sm90's kernel: who does what.
//
//   warpgroup 0   producer: gives its registers away; three of its warps have one thread at work each
//   warpgroups 1, 2   consumers: products and epilogue
#pragma once

#include "kernels/conv_sm90_consumer.h"
#include "kernels/conv_sm90_producer.h"
#include "kernels/conv_sm90_tile.h"

namespace fastres {
namespace {

constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // 40 + 2 * 232 = 504: three times the 168 at entry

template <class C>
__device__ __forceinline__ void conv_sm90(const ConvSm90Params& params) {
  extern __shared__ char memory[];
  const Shared90<C> shared(memory);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    ptx::tma_prefetch(params.x[0]);
    ptx::tma_prefetch(params.weight[0]);
  }
  if constexpr (C::kCluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }
  ptx::grid_wait();  // all until here runs under the kernel before; weights and bias may be what it wrote
  ptx::grid_launch_dependents();

  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // the same in a warp, which ptxas can't see otherwise
  if (group == 0) {
    ptx::release_registers<kProducerRegisters>();
    if (threadIdx.x == 0) loader<C>(params, shared);
    if (threadIdx.x == 32 && params.add_residual && params.partial == nullptr) residual_loader<C>(params, shared);
    if (threadIdx.x == 64 && params.partial == nullptr) storer<C>(params, shared);
  } else {
    ptx::acquire_registers<kConsumerRegisters>();
    Consumer<C>(params, shared, group - 1).run();
  }
  if constexpr (C::kCluster > 1) {  // none ends while another still writes to it
    __syncwarp();
    ptx::cluster_sync();
  }
}

}  // namespace
}  // namespace fastres
