// Plain-old-data problem descriptions, and what a launcher makes of them. Knows neither Python nor torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastres {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
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
};

// Queues the plan on a CUDA stream (0: the default stream) of the current device. Throws std::runtime_error with the
// kernel's name and CUDA's own words.
void launch(const Plan& plan, uintptr_t stream);

}  // namespace fastres
