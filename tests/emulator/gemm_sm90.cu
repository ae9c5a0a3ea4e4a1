// A small GEMM with everything that is Hopper's own, for the emulator's tests: C = A * B^T, A (M, K), B (N, K), C (M, N) in
// ELEMENT (f16 or bf16), accumulated in float. No header, so that NVRTC compiles it as it stands.
//
// Layout: tiles of 128 x 64 x 64, rows of 128 bytes under the 128-byte swizzle, a ring of kStages tiles of A and B.
// Kernel: warpgroup 0 produces (one thread issues TMA), warpgroups 1 and 2 multiply 64 rows each and store their part through
// shared memory and TMA. Blocks walk the tiles of C from blockIdx.x in steps of gridDim.x.
#ifndef ELEMENT
#define ELEMENT "f16"
#endif

using u32 = unsigned int;
using u64 = unsigned long long;

constexpr int kTileM = 128, kTileN = 64, kTileK = 64, kStages = 3, kConsumers = 2;
constexpr u32 kBytesA = kTileM * kTileK * 2, kBytesB = kTileN * kTileK * 2, kBytesC = 64 * kTileN * 2;

struct alignas(64) TensorMap {
  char opaque[128];
};

__device__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ void mbarrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ void mbarrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@done bra.uni over;\n\t"
      "bra.uni again;\n"
      "over:\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ void load_tile(const TensorMap& map, u32 to, u32 barrier, int k, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(k), "r"(row)
      : "memory");
}
__device__ void store_tile(const TensorMap& map, u32 from, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from),
               "r"(column), "r"(row)
               : "memory");
}

// K-major, 128-byte swizzle: 8 rows of 128 bytes repeat every 1024.
__device__ u64 descriptor(u32 address) {
  return static_cast<u64>((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ void multiply(float (&d)[32], u64 a, u64 b, int accumulate) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." ELEMENT "." ELEMENT
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n\t}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(accumulate));
}

__device__ u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn." ELEMENT "x2.f32 %0, %2, %1;" : "=r"(both) : "f"(low), "f"(high));
  return both;
}

struct alignas(1024) Shared {
  char a[kStages][kBytesA];
  char b[kStages][kBytesB];
  char c[kConsumers][kBytesC];
  u64 full[kStages], empty[kStages];
};

extern "C" __global__ void __launch_bounds__(384)
    gemm(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_c, int tiles_m, int tiles_n, int steps) {
  extern __shared__ char raw[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<u64>(raw) + 1023) & ~1023ull);
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
  const u32 a = shared_address(shared.a), b = shared_address(shared.b);
  const u32 full = shared_address(shared.full), empty = shared_address(shared.empty);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  int stage = 0;
  u32 parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (thread != 0) return;
    for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
      const int row = tile % tiles_m * kTileM, column = tile / tiles_m * kTileN;
      for (int k = 0; k < steps; ++k, advance()) {
        mbarrier_wait(empty + 8 * stage, parity ^ 1);
        mbarrier_expect(full + 8 * stage, kBytesA + kBytesB);
        load_tile(map_a, a + kBytesA * stage, full + 8 * stage, k * kTileK, row);
        load_tile(map_b, b + kBytesB * stage, full + 8 * stage, k * kTileK, column);
      }
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const u32 c = shared_address(shared.c[group - 1]);
  const int warp = thread / 32, lane = thread % 32;
  for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    float d[32];
    for (int k = 0; k < steps; ++k) {
      mbarrier_wait(full + 8 * stage, parity);
      const u64 from_a = descriptor(a + kBytesA * stage + (group - 1) * kBytesA / 2);
      const u64 from_b = descriptor(b + kBytesB * stage);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
      for (int i = 0; i < kTileK / 16; ++i) multiply(d, from_a + 2 * i, from_b + 2 * i, k + i != 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (thread == 0) mbarrier_arrive(empty + 8 * stage);
      advance();
    }
    if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
    const u32 row = 16 * warp + lane % 16;
    for (int i = 0; i < 4; ++i) {  // 16 columns at a time, chunk c of row r at c ^ (r % 8)
      const u32 chunk = (2 * i + lane / 16) ^ (row % 8);
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(c + row * 128 + chunk * 16),
                   "r"(pack(d[8 * i], d[8 * i + 1])), "r"(pack(d[8 * i + 2], d[8 * i + 3])),
                   "r"(pack(d[8 * i + 4], d[8 * i + 5])), "r"(pack(d[8 * i + 6], d[8 * i + 7]))
                   : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
    if (thread == 0) {
      store_tile(map_c, c, tile / tiles_m * kTileN, tile % tiles_m * kTileM + (group - 1) * 64);
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
  }
  if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
