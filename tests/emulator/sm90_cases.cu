// One small kernel for each of Hopper's instructions that the GEMM beside this file doesn't use. No header, for NVRTC.
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(64) TensorMap {
  char opaque[128];
};

__device__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
__device__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ u32 map_to_rank(u32 address, u32 rank) {
  u32 mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ void init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(barrier), "r"(count)
               : "memory");
}
__device__ void expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n\t.reg .pred done;\nagain:\n\tmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ void commit_and_wait() {
  asm volatile("cp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group 0;" ::: "memory");
}

// out[lane] = (elected leader, is it me) for the lanes below `count`.
extern "C" __global__ void elect(u32* out, u32 count) {
  if (threadIdx.x >= count) return;
  u32 leader, chosen;
  asm volatile(
      "{\n\t.reg .pred p;\n\telect.sync %0|p, %2;\n\tselp.u32 %1, 1, 0, p;\n\t}"
      : "=r"(leader), "=r"(chosen)
      : "r"(count == 32 ? 0xffffffffu : (1u << count) - 1));
  out[2 * threadIdx.x] = leader;
  out[2 * threadIdx.x + 1] = chosen;
}

// Each block of a cluster writes its rank into its right neighbour's shared memory, and reports what it finds in its own.
extern "C" __global__ void neighbours(u32* out, u32 size) {
  __shared__ u32 cell[32];
  cell[threadIdx.x] = 1000;
#ifndef NO_FIRST_BARRIER
  cluster_sync();
#endif
  const u32 rank = cluster_rank(), remote = map_to_rank(shared_address(&cell[threadIdx.x]), (rank + 1) % size);
  u32 owner;
  asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(owner) : "r"(remote));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(100 * rank + 10 * owner) : "memory");
#ifndef NO_SECOND_BARRIER
  cluster_sync();
#endif
  out[blockIdx.x * 32 + threadIdx.x] = cell[threadIdx.x];
#ifdef READ_AFTER_END
  if (rank != 0) return;
  for (int i = 0; i < 1000; ++i) asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(owner) : "r"(remote) : "memory");
#endif
}

// Block 0 loads one tile of 8 x 32 floats into every block of the cluster.
extern "C" __global__ void multicast(const __grid_constant__ TensorMap map, float* out, u32 mask) {
  __shared__ alignas(128) float tile[8 * 32];
  __shared__ u64 full;
  const u32 barrier = shared_address(&full);
  if (threadIdx.x == 0) {
    init(barrier, 1);
    expect(barrier, sizeof tile);
  }
  cluster_sync();
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
        "%4}], [%2], %5;" ::"r"(shared_address(tile)),
        "l"(&map), "r"(barrier), "r"(0), "r"(8), "h"(static_cast<u16>(mask))
        : "memory");
  }
  wait(barrier, 0);
  for (u32 i = threadIdx.x; i < 8 * 32; i += 32) out[blockIdx.x * 8 * 32 + i] = tile[i];
  cluster_sync();
}

// Every block arrives at the barrier of block 0, which waits for all.
extern "C" __global__ void remote_arrive(u32* out, u32 size) {
  __shared__ u64 gate;
  const u32 barrier = shared_address(&gate);
  if (threadIdx.x == 0 && cluster_rank() == 0) init(barrier, size * 32);
  cluster_sync();
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(map_to_rank(barrier, 0)) : "memory");
  if (cluster_rank() == 0) wait(barrier, 0);
  if (cluster_rank() == 0) out[threadIdx.x] = 1;
  cluster_sync();
}

// Plain bulk copies: `bytes` in, doubled, and out again; then added to `sum`.
extern "C" __global__ void bulk(const float* in, float* out, float* sum, u32 bytes) {
  extern __shared__ __align__(128) float data[];
  __shared__ u64 full;
  const u32 barrier = shared_address(&full), at = shared_address(data);
  if (threadIdx.x == 0) {
    init(barrier, 1);
    expect(barrier, bytes);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(at), "l"(in),
                 "r"(bytes), "r"(barrier)
                 : "memory");
  }
  __syncthreads();
  wait(barrier, 0);
  for (u32 i = threadIdx.x; i < bytes / 4; i += 32) data[i] *= 2;
  proxy_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(out), "r"(at), "r"(bytes) : "memory");
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(sum), "r"(at), "r"(bytes)
                 : "memory");
    commit_and_wait();
  }
}

// Adds tile (8 x 16 of 16 bits, all `value`) to the tensor at (row, column); parts outside are left alone.
extern "C" __global__ void tensor_add(const __grid_constant__ TensorMap map, u32 value, int column, int row) {
  __shared__ alignas(128) u16 tile[8 * 16];
  for (u32 i = threadIdx.x; i < 8 * 16; i += 32) tile[i] = static_cast<u16>(value);
  proxy_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(shared_address(tile)), "r"(column), "r"(row)
                 : "memory");
    commit_and_wait();
  }
}

// One im2col load of 16 pixels x 32 channels of f16, unswizzled.
extern "C" __global__ void im2col(const __grid_constant__ TensorMap map, u16* out, int w, int h, int n, u32 s, u32 r) {
  __shared__ alignas(128) u16 tile[16 * 32];
  __shared__ u64 full;
  const u32 barrier = shared_address(&full);
  if (threadIdx.x == 0) {
    init(barrier, 1);
    expect(barrier, sizeof tile);
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], "
        "{%7, %8};" ::"r"(shared_address(tile)),
        "l"(&map), "r"(barrier), "r"(0), "r"(w), "r"(h), "r"(n), "h"(static_cast<u16>(s)), "h"(static_cast<u16>(r))
        : "memory");
  }
  __syncthreads();
  wait(barrier, 0);
  for (u32 i = threadIdx.x; i < 16 * 32; i += 32) out[i] = tile[i];
}

// One tiled load of a 4 x 8 box of floats from a two-dimensional tensor.
extern "C" __global__ void tiled(const __grid_constant__ TensorMap map, float* out, int column, int row, u32 bytes) {
  __shared__ alignas(128) float tile[4 * 8];
  __shared__ u64 full;
  const u32 barrier = shared_address(&full);
  if (threadIdx.x == 0) {
    init(barrier, 1);
    expect(barrier, bytes);
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map));
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(tile)),
        "l"(&map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
  }
  __syncthreads();
  wait(barrier, 0);
  if (threadIdx.x < bytes / 4) out[threadIdx.x] = tile[threadIdx.x];
}

// mbarrier by token: 32 arrivals a phase, the last with a count; out gets phases seen and pending counts.
extern "C" __global__ void tokens(u32* out) {
  __shared__ u64 gate;
  const u32 barrier = shared_address(&gate);
  if (threadIdx.x == 0) init(barrier, 34);
  __syncwarp();
  u64 token;
  if (threadIdx.x < 31) {
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(token) : "r"(barrier) : "memory");
  } else {
    asm volatile("mbarrier.arrive.noComplete.release.cta.shared::cta.b64 %0, [%1], 2;" : "=l"(token) : "r"(barrier) : "memory");
  }
  __syncwarp();
  if (threadIdx.x == 0) {  // the 34th, leaving for good: later phases expect 33
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
  }
  u32 done = 0, pending;
  while (!done) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.test_wait.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(barrier), "l"(token)
        : "memory");
  }
  asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(pending) : "l"(token));
  out[threadIdx.x] = pending;
  __syncwarp();
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 33;" : "=l"(token) : "r"(barrier) : "memory");
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
    asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
  }
}
