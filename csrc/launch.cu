// Queues a Plan on the current device.
#include <cuda_runtime.h>

#include <set>
#include <utility>

#include "params.h"

namespace fastres {
namespace {

void check(cudaError_t status, const Plan& plan, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not to be reported again by a later call
  throw std::runtime_error("kernel " + plan.symbol + ": " + call + " failed: " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

// A kernel must be told once a device that it may use more than 48 KiB of dynamic shared memory.
void allow_shared_memory(const Plan& plan) {
  constexpr uint32_t kAlwaysAllowed = 48 * 1024;
  if (plan.shared_bytes <= kAlwaysAllowed) return;
  int device = 0;
  check(cudaGetDevice(&device), plan, "cudaGetDevice");
  thread_local std::set<std::pair<int, const void*>> allowed;
  if (allowed.count({device, plan.host}) != 0) return;
  check(
      cudaFuncSetAttribute(plan.host, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes)),
      plan, "cudaFuncSetAttribute");
  allowed.insert({device, plan.host});
}

}  // namespace

void launch(const Plan& plan, uintptr_t stream) {
  allow_shared_memory(plan);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.grid.x, plan.grid.y, plan.grid.z);
  config.blockDim = dim3(plan.block.x, plan.block.y, plan.block.z);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  cudaLaunchAttribute cluster{};
  if (plan.cluster.x * plan.cluster.y * plan.cluster.z > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {plan.cluster.x, plan.cluster.y, plan.cluster.z};
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  void* arguments[] = {const_cast<std::byte*>(plan.params.data())};
  check(cudaLaunchKernelExC(&config, plan.host, arguments), plan, "launch");
}

}  // namespace fastres
