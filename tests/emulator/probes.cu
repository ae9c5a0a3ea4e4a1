// Small kernels whose compiled form has what a CUDA compiler leaves in PTX beyond arithmetic: structures by value, spaces,
// local arrays indexed at run time, loops that diverge, inlined functions, asserts, 64-bit division.
struct Scale {
  const float* x;
  float* y;
  int n;
  float by;
};

__constant__ float table[4] = {1, 2, 3, 4};
__device__ int launches = 0;

extern "C" __global__ void scale(Scale s) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < s.n) s.y[i] = s.x[i] * s.by + table[i & 3];
  if (i == 0) launches++;
}

__device__ float warp_sum(float value) {
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

// One number a block: the sum of its share of x, through static and dynamic shared memory.
extern "C" __global__ void block_sums(const float* x, float* sums, int n) {
  __shared__ float partial[32];
  extern __shared__ float staged[];
  float value = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) value += x[i];
  staged[threadIdx.x] = value;
  __syncthreads();
  value = warp_sum(staged[blockDim.x - 1 - threadIdx.x]);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
#ifndef NO_BARRIER
  __syncthreads();
#endif
  if (threadIdx.x < 32) {
    value = warp_sum(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) sums[blockIdx.x] = value;
  }
}

// The steps that n / 2 or 3 n + 1 takes to reach 1: every lane its own number of turns.
extern "C" __global__ void collatz(const int* start, int* steps, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  long long value = start[i];
  int count = 0;
  while (value != 1) {
    value = value % 2 ? 3 * value + 1 : value / 2;
    count++;
  }
  steps[i] = count;
}

// A local array indexed at run time: the digits of a number, in reverse.
extern "C" __global__ void reverse_digits(const unsigned* x, unsigned* y) {
  unsigned digits[10];
  unsigned value = x[threadIdx.x];
  int count = 0;
  for (; value; value /= 10) digits[count++] = value % 10;
  unsigned result = 0;
  for (int i = 0; i < count; i++) result = result * 10 + digits[i];
  y[threadIdx.x] = result;
}

// The last block to finish adds up what the others wrote.
extern "C" __global__ void total(const float* x, float* partial, unsigned* done, float* result, int n) {
  __shared__ float sums[32];
  __shared__ bool last;
  float value = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) value += x[i];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < blockDim.x / 32; w++) sum += sums[w];
    partial[blockIdx.x] = sum;
#ifndef NO_FENCE
    __threadfence();
#endif
    last = atomicAdd(done, 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (int b = 0; b < gridDim.x; b++) sum += partial[b];
    *result = sum;
  }
}
