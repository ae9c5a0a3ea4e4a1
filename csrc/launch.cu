// Queues a Plan on the current device.
#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <cstring>
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

// A function of the driver, by its name as of CUDA 12.0. Asked of the runtime, so that nothing links to libcuda.
template <class Function>
Function* driver_function(const char* name, const Plan& plan) {
  constexpr unsigned kVersion = 12000;
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion(name, &address, kVersion, cudaEnableDefault, &found), plan,
        "cudaGetDriverEntryPointByVersion");
  if (found != cudaDriverEntryPointSuccess || address == nullptr)
    throw std::runtime_error("kernel " + plan.symbol + ": the driver has no " + name +
                             "; expected one of CUDA 12 or later");
  return reinterpret_cast<Function*>(address);
}

CUtensorMap encode(const TensorMapSpec& spec, const Plan& plan) {
  static auto* const tiled = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled", plan);
  static auto* const im2col = driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col", plan);
  const auto type = spec.dtype == DType::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto rank = static_cast<cuuint32_t>(spec.sizes.size());
  void* address = const_cast<void*>(spec.address);
  CUtensorMap map;
  const CUresult status =
      spec.lower.empty() ? tiled(&map, type, rank, address, spec.sizes.data(), spec.strides.data(), spec.box.data(),
                                 spec.element_strides.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
                         : im2col(&map, type, rank, address, spec.sizes.data(), spec.strides.data(), spec.lower.data(),
                                  spec.upper.data(), spec.box[0], spec.box[1], spec.element_strides.data(),
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("kernel " + plan.symbol + ": the driver refused the tensor map at byte " +
                             std::to_string(spec.offset) + " of its parameters, error " + std::to_string(status));
  return map;
}

}  // namespace

void launch(const Plan& plan, uintptr_t stream) {
  allow_shared_memory(plan);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.grid.x, plan.grid.y, plan.grid.z);
  config.blockDim = dim3(plan.block.x, plan.block.y, plan.block.z);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  std::array<cudaLaunchAttribute, 2> attributes{};
  config.attrs = attributes.data();
  if (plan.cluster.x * plan.cluster.y * plan.cluster.z > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {plan.cluster.x, plan.cluster.y, plan.cluster.z};
  }
  if (plan.overlap) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  std::vector<std::byte> params = plan.params;
  for (const TensorMapSpec& spec : plan.maps) {
    const CUtensorMap map = encode(spec, plan);
    std::memcpy(params.data() + spec.offset, &map, sizeof map);
  }
  void* arguments[] = {params.data()};
  check(cudaLaunchKernelExC(&config, plan.host, arguments), plan, "launch");
}

}  // namespace fastres
