// wgmma: a warpgroup multiplies a 64-row tile A by a kN-column tile B, 16 deep, both in shared memory, and adds to
// float32 in registers, asynchronously (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").
//
// A is [64, depth], B [kN, depth], both with depth fastest, in rows of 128 bytes under the 128-byte swizzle.
// Element v of thread t's sum: row 16 * (t / 32) + t % 32 / 4 + 8 * (v / 2 % 2), column 8 * (v / 4) + 2 * (t % 4) + v
// % 2.
#pragma once

#include <cstdint>

#include "element.h"

namespace fastres::ptx {

constexpr uint32_t kSwizzleBytes = 128, kSwizzleAtom = 8 * kSwizzleBytes;  // eight rows; what a tile is aligned to

// The matrix descriptor of the tile at `address`. To go 16 elements deeper, add 2: addresses are in units of 16 bytes.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address) {
  constexpr uint64_t kIgnored = 1, kSwizzle128 = 1;
  return uint64_t{(address & 0x3ffff) >> 4} | kIgnored << 16 | uint64_t{kSwizzleAtom >> 4} << 32 | kSwizzle128 << 62;
}

// Orders what this thread did to the sums' registers before the wgmmas that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes a group of the wgmmas issued since the last one.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until all but the latest kPending groups are done.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// sum += A * B
template <class T, int kN>
__device__ __forceinline__ void wgmma(float (&sum)[kN / 2], uint64_t a, uint64_t b);

// Operands by eights: %0 to %7, %8 to %15, ..., and the registers that they stand for.
#define FASTRES_32_NAMES                                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, "                                                                                                          \
  "%25, %26, %27, %28, %29, %30, %31"
#define FASTRES_64_NAMES                                                                                        \
  FASTRES_32_NAMES                                                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTRES_128_NAMES                                                                                        \
  FASTRES_64_NAMES                                                                                               \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "  \
  "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, "    \
  "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, " \
  "%123, %124, %125, %126, %127"
#define FASTRES_8(d, i)                                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FASTRES_32(d, i) FASTRES_8(d, i), FASTRES_8(d, i + 8), FASTRES_8(d, i + 16), FASTRES_8(d, i + 24)
#define FASTRES_64(d, i) FASTRES_32(d, i), FASTRES_32(d, i + 32)
#define FASTRES_128(d, i) FASTRES_64(d, i), FASTRES_64(d, i + 64)

// `a`, `b`: the numbers of the operands after the sums, then that of the predicate's source: 1, add to what is there.
#define FASTRES_WGMMA(Element, type, n, registers, a, b, one)                                                     \
  template <>                                                                                                     \
  __device__ __forceinline__ void wgmma<Element, n>(float (&sum)[n / 2], uint64_t a_tile, uint64_t b_tile) {      \
    asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %" #one                                                \
                 ", 0;\n\t"                                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" FASTRES_##registers##_NAMES \
                 "}, %" #a ", %" #b ", add, 1, 1, 0, 0;\n\t}"                                                     \
                 : FASTRES_##registers(sum, 0)                                                                    \
                 : "l"(a_tile), "l"(b_tile), "r"(1));                                                             \
  }
#define FASTRES_WGMMA_OF(Element, type)             \
  FASTRES_WGMMA(Element, type, 64, 32, 32, 33, 34)  \
  FASTRES_WGMMA(Element, type, 128, 64, 64, 65, 66) \
  FASTRES_WGMMA(Element, type, 256, 128, 128, 129, 130)
FASTRES_WGMMA_OF(Bf16, "bf16")
FASTRES_WGMMA_OF(Fp16, "f16")

#undef FASTRES_WGMMA_OF
#undef FASTRES_WGMMA
#undef FASTRES_128
#undef FASTRES_64
#undef FASTRES_32
#undef FASTRES_8
#undef FASTRES_128_NAMES
#undef FASTRES_64_NAMES
#undef FASTRES_32_NAMES

}  // namespace fastres::ptx
