"""csrc/kernels/conv_sm90*.h with one thing wrong at a time: the emulator must say so under every seed.

The headers are compiled by NVRTC as they stand, but for the change, with rings so short that they turn over in a small
problem. What only costs time is left out: prefetching, overlapping kernels. So is `__syncwarp` before a warp's arrival:
in the emulator lanes run in step and can't miss it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from convolutions import Conv, operand, plain
from nvrtc import compile_ptx
from tolerance import assert_right
from torch import Tensor

from fastres import emulator
from fastres.backends import plans
from fastres.backends.emulator import emulate

CSRC = Path(__file__).parents[2] / "csrc"
SEEDS = range(10)
CSTDINT = """#pragma once
using int32_t = int; using int64_t = long long;
using uint16_t = unsigned short; using uint32_t = unsigned; using uint64_t = unsigned long long;
"""
KERNEL = """#include "kernels/conv_sm90_kernel.h"
using namespace fastres;
extern "C" __global__ void __launch_bounds__(kThreads90, 1) {symbol}(const __grid_constant__ ConvSm90Params params) {{
  conv_sm90<Config90<Bf16, {n}, {cooperative}, {cluster}, 3, {slabs}>>(params);
}}
"""


class Variant(NamedTuple):
    """An instantiation, and the problem that it runs: a tail of rows, and every ring turns over."""

    n: int = 64
    cooperative: str = "false"
    cluster: int = 1
    slabs: int = 4
    splits: int = 1
    conv: Conv = Conv(2, 200, 12, 13, 72)
    residual: bool = True
    moments: bool = False

    def work(self) -> tuple[plans.Work, Tensor, Tensor]:
        """What to run, PyTorch's result and the exact one."""
        torch.manual_seed(0)
        x, weight, bias, layer = operand(self.conv, torch.bfloat16)
        residual = torch.randn(layer.out_size(x)).bfloat16().contiguous(memory_format=torch.channels_last)
        residual = residual if self.residual else None
        tile, relu = (128, self.n, self.splits, self.cluster), not self.moments
        work = plans.convolution(
            [(x, plans.pack(weight, None if self.moments else bias, layer.geometry))],
            relu,
            residual,
            moments=self.moments,
            sms=self.cluster,
            kernel="conv_sm90",
            tile=tile,
        )
        work.result.fill_(float("nan"))
        bias = bias.zero_() if self.moments else bias
        exact = [None if t is None else t.double() for t in (x, weight, bias, residual)]
        return work, plain(x, weight, bias, layer, residual, relu), plain(*exact[:3], layer, exact[3], relu)

    def module(self, folder: Path, changes: list[tuple[str, str]]) -> dict[str, emulator.Module]:
        """The kernel with each (old, new) change made to the one place in its headers that has `old`."""
        (folder / "kernels").mkdir()
        shutil.copytree(CSRC / "ptx", folder / "ptx")
        for path in (*CSRC.glob("kernels/conv_sm90_*.h"), CSRC / "kernels" / "moments.h"):
            shutil.copy(path, folder / "kernels")
        (folder / "cstdint").write_text(CSTDINT)
        for old, new in changes:
            found = [(path, text) for path in folder.rglob("*.h") if old in (text := path.read_text())]
            assert sum(text.count(old) for _, text in found) == 1, f"{old!r} is in {[path.name for path, _ in found]}"
            found[0][0].write_text(found[0][1].replace(old, new))
        symbol = f"conv_sm90_bf16_128x{self.n}_cluster{self.cluster}"
        source = KERNEL.format(
            symbol=symbol, n=self.n, cooperative=self.cooperative, cluster=self.cluster, slabs=self.slabs
        )
        return {"conv_sm90": emulator.load(compile_ptx(source, "mutant.cu", include=folder))}


PING_PONG = Variant()
NO_RESIDUAL = Variant(residual=False)
COOPERATIVE = Variant(256, "true", conv=Conv(2, 136, 12, 13, 264))
CLUSTER = Variant(128, cluster=2, slabs=8, conv=Conv(3, 200, 12, 13, 136))
SPLIT = Variant(splits=2, residual=False)
WINDOW = Variant(conv=Conv(2, 72, 23, 25, 72, 3, 2, 1))
MOMENTS = Variant(residual=False, moments=True)
MOMENTS_OF_A_PAIR = Variant(256, "true", conv=Conv(2, 72, 12, 13, 264), residual=False, moments=True)
VARIANTS = {
    "ping-pong": PING_PONG,
    "no residual": NO_RESIDUAL,
    "cooperative": COOPERATIVE,
    "cluster": CLUSTER,
    "split": SPLIT,
    "window": WINDOW,
    "moments": MOMENTS,
    "moments of a pair": MOMENTS_OF_A_PAIR,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_unchanged_it_is_right(name: str, tmp_path: Path) -> None:
    modules = VARIANTS[name].module(tmp_path, [])
    for seed in SEEDS[::3]:
        work, expected, exact = VARIANTS[name].work()
        assert emulate(work, seed, modules)[0].findings == ()
        assert_right(work.result, expected, exact)


EARLY = {"race", "uninitialized"}  # what was read had been written out of order, or not at all
FULL = "ptx::mbarrier_wait(shared_.full(stage), stage_.parity);"
EMPTY = "ptx::mbarrier_wait(shared.empty(stage), at.parity ^ 1);"
MEET = "  ptx::named_barrier_sync<128>(1 + group);"
EXPECT = "ptx::mbarrier_arrive_expect(shared.full(stage), C::kBytesA + C::kBytesB);"
RESIDUAL_FREE = "ptx::mbarrier_wait(shared.free(at.index), at.parity ^ 1);"
FREE = "ptx::mbarrier_wait(shared_.free(slab), slab_.parity ^ 1);"
FILLED = "ptx::mbarrier_wait(shared_.filled(slab), slab_.parity);"
EXPECT_SLAB = "ptx::mbarrier_arrive_expect(shared.filled(at.index), kSlabBytes);"
READY = "ptx::mbarrier_wait(shared.ready(at.index), at.parity);"
ARRIVE_READY = "if (lane_ == 0) ptx::mbarrier_arrive(shared_.ready(slab));"
ARRIVE_FREE = "if (last >= 0) ptx::mbarrier_arrive(shared.free(last));"
RELEASE = "if (lane_ == 0) ptx::mbarrier_arrive(shared_.empty(stage));"
RELEASE_ALL = "if (lane_ < C::kCluster) ptx::mbarrier_arrive(shared_.empty(stage), lane_);"
TURN = "ptx::mbarrier_wait(shared_.turn(group_), turn_ ^ (group_ == 0));"
EMPTY_COUNT = "ptx::mbarrier_init(empty(i), kWarpsOfGroup * C::kReaders * C::kCluster);"
LAST_WAIT = "    ptx::wgmma_wait<0>();\n    release(before);"
LOOP_WAIT = "      ptx::wgmma_wait<1>();\n      release(before);"
STORE = "      ptx::tma_commit();\n      ptx::tma_wait_read<1>();"

# name: (variant, kinds of finding that may come first, changes)
MUTANTS: dict[str, tuple[Variant, set[str], list[tuple[str, str]]]] = {
    # the barriers
    "no retry of try_wait": (
        PING_PONG,
        EARLY | {"mbarrier"},
        [("while (!mbarrier_try_wait(barrier, parity)) {", "if (!mbarrier_try_wait(barrier, parity)) {")],
    ),
    "no fence after mbarrier.init": (PING_PONG, {"mbarrier-fence"}, [("    ptx::mbarrier_fence_init();\n", "")]),
    "no barrier after mbarrier.init": (PING_PONG, {"race", "mbarrier"}, [("    __syncthreads();\n", "")]),
    "full waits for two arrivals": (PING_PONG, {"deadlock"}, [("init(full(i), 1)", "init(full(i), 2)")]),
    "empty after one warp": (
        PING_PONG,
        {"race", "mbarrier", "deadlock"},
        [(EMPTY_COUNT, "ptx::mbarrier_init(empty(i), 1);")],
    ),
    "empty waits for both consumers": (
        PING_PONG,
        {"deadlock"},
        [(EMPTY_COUNT, "ptx::mbarrier_init(empty(i), 2 * kWarpsOfGroup);")],
    ),
    "filled waits for two arrivals": (PING_PONG, {"deadlock"}, [("init(filled(i), 1)", "init(filled(i), 2)")]),
    "ready after one warp": (
        PING_PONG,
        EARLY | {"mbarrier", "proxy-fence"},
        [("init(ready(i), kWarpsOfGroup)", "init(ready(i), 1)")],
    ),
    "free waits for two arrivals": (PING_PONG, {"deadlock"}, [("init(free(i), 1)", "init(free(i), 2)")]),
    "a turn takes two warpgroups": (
        PING_PONG,
        {"deadlock"},
        [("init(turn(i), kWarpsOfGroup)", "init(turn(i), 2 * kWarpsOfGroup)")],
    ),
    "parity never flips": (
        PING_PONG,
        EARLY | {"deadlock", "mbarrier"},
        [("    parity ^= index / kSize & 1;\n", "")],
    ),
    # the loader
    "no wait for an empty stage": (PING_PONG, {"race", "mbarrier"}, [(f"  {EMPTY}\n", "\n")]),
    "wrong parity at an empty stage": (PING_PONG, {"deadlock"}, [(EMPTY, EMPTY.replace(" ^ 1", ""))]),
    "too few bytes": (PING_PONG, EARLY | {"mbarrier"}, [(EXPECT, EXPECT.replace(" + C::kBytesB", ""))]),
    "too many bytes": (PING_PONG, {"deadlock"}, [(EXPECT, EXPECT.replace(" + C", " + 16 + C"))]),
    "weights into x's place": (
        PING_PONG,
        {"race"},
        [("ptx::tma_load(shared.b(stage), weight,", "ptx::tma_load(shared.a(stage), weight,")],
    ),
    "weights on another stage's barrier": (
        PING_PONG,
        EARLY | {"deadlock", "mbarrier"},
        [
            (
                "weight, shared.full(stage), depth.channel(), depth.tap(), item.filter);",
                "weight, shared.full((stage + 1) % C::kStages), depth.channel(), depth.tap(), item.filter);",
            )
        ],
    ),
    "a step too few": (
        PING_PONG,
        {"deadlock"},
        [("for (int step = 0; step < item.steps; ++step, at", "for (int step = 1; step < item.steps; ++step, at")],
    ),
    "tiles where there are windows": (WINDOW, {"tensor-map"}, [("if (operand_->windowed) {", "if (false) {")]),
    # the residual loader
    "no wait for a free slab": (PING_PONG, {"race", "mbarrier"}, [(RESIDUAL_FREE, "")]),
    "wrong parity at a free slab": (PING_PONG, {"deadlock"}, [(RESIDUAL_FREE, RESIDUAL_FREE.replace(" ^ 1", ""))]),
    "too few bytes of residual": (
        PING_PONG,
        EARLY | {"mbarrier"},
        [(EXPECT_SLAB, EXPECT_SLAB.replace("kSlabBytes", "kSlabBytes / 2"))],
    ),
    "too many bytes of residual": (
        PING_PONG,
        {"deadlock"},
        [(EXPECT_SLAB, EXPECT_SLAB.replace("kSlabBytes", "kSlabBytes * 2"))],
    ),
    # the storer
    "no wait for a ready slab": (PING_PONG, EARLY | {"proxy-fence", "mbarrier"}, [(READY, "")]),
    "wrong parity at a ready slab": (
        PING_PONG,
        EARLY | {"proxy-fence", "mbarrier"},
        [(READY, READY.replace("parity", "parity ^ 1"))],
    ),
    "store not committed": (PING_PONG, {"race", "lifetime"}, [(STORE, "      ptx::tma_wait_read<1>();")]),
    "no wait for the store's reads": (PING_PONG, {"race"}, [(STORE, "      ptx::tma_commit();")]),
    "the wait comes a store late": (PING_PONG, {"race"}, [("tma_wait_read<1>", "tma_wait_read<2>")]),
    "no wait for the last store": (PING_PONG, {"lifetime"}, [("  ptx::tma_wait_read<0>();\n", "")]),
    "a slab free while it is stored": (
        PING_PONG,
        {"race", "mbarrier"},
        [(ARRIVE_FREE, "ptx::mbarrier_arrive(shared.free(at.index));")],
    ),
    "no slab becomes free": (PING_PONG, {"deadlock"}, [(ARRIVE_FREE, "")]),
    # the consumer's main loop
    "no wait for a full stage": (PING_PONG, EARLY, [(FULL, "")]),
    "only one warp waits for a full stage": (PING_PONG, EARLY, [(FULL, f"if (warp_ == 0) {FULL}")]),
    "wrong parity at a full stage": (PING_PONG, EARLY | {"deadlock"}, [(FULL, FULL.replace("parity", "parity ^ 1"))]),
    "wait for another stage": (
        PING_PONG,
        EARLY | {"deadlock", "mbarrier"},
        [(FULL, "ptx::mbarrier_wait(shared_.full(0), stage_.parity);")],
    ),
    "the other's steps not passed over": (
        PING_PONG,
        EARLY | {"deadlock", "mbarrier"},
        [("        stage_.advance(item.steps);\n", "")],
    ),
    "no wgmma.fence": (PING_PONG, {"wgmma-fence"}, [("    ptx::wgmma_fence();\n", "")]),
    "products not committed": (PING_PONG, {"race", "wgmma-wait"}, [("    ptx::wgmma_commit();\n", "")]),
    "no wait for the step before": (PING_PONG, {"race"}, [(LOOP_WAIT, "      release(before);")]),
    "the wait comes a step late": (PING_PONG, {"race"}, [("ptx::wgmma_wait<1>", "ptx::wgmma_wait<2>")]),
    "no wait for the last step": (PING_PONG, {"wgmma-wait", "race"}, [(LAST_WAIT, "    release(before);")]),
    "released before the wait": (
        PING_PONG,
        {"race"},
        [(LOOP_WAIT, "      release(before);\n      ptx::wgmma_wait<1>();")],
    ),
    "the last stage not released": (PING_PONG, {"deadlock"}, [(LAST_WAIT, "    ptx::wgmma_wait<0>();")]),
    "released by one warp": (
        PING_PONG,
        {"deadlock"},
        [(RELEASE, RELEASE.replace("lane_ == 0", "threadIdx.x % 128 == 0"))],
    ),
    "released twice": (
        PING_PONG,
        {"race", "mbarrier", "deadlock"},
        [(RELEASE, RELEASE.replace("lane_ == 0", "lane_ < 2"))],
    ),
    "the turn is not handed over": (
        PING_PONG,
        {"deadlock"},
        [("      if (lane_ == 0) ptx::mbarrier_arrive(shared_.turn(1 - group_));\n", "")],
    ),
    "no wait for one's turn": (PING_PONG, EARLY | {"mbarrier", "deadlock"}, [(TURN, "")]),
    "nobody begins": (PING_PONG, {"deadlock"}, [("turn_ ^ (group_ == 0)", "turn_")]),
    # the epilogue
    "no wait for the residual": (PING_PONG, EARLY, [(FILLED, "")]),
    "wrong parity at the residual": (
        PING_PONG,
        EARLY | {"deadlock"},
        [(FILLED, FILLED.replace("parity", "parity ^ 1"))],
    ),
    "no wait for a free slab without residual": (NO_RESIDUAL, {"race", "mbarrier"}, [(FREE, "")]),
    "wrong parity without residual": (NO_RESIDUAL, {"deadlock"}, [(FREE, FREE.replace(" ^ 1", ""))]),
    "no proxy fence": (PING_PONG, {"proxy-fence"}, [("        ptx::fence_proxy_async();\n", "")]),
    "nothing becomes ready": (PING_PONG, {"deadlock"}, [(ARRIVE_READY, "")]),
    "ready before the fence": (
        PING_PONG,
        EARLY | {"proxy-fence"},
        [
            ("        ptx::fence_proxy_async();\n", f"        {ARRIVE_READY}\n        ptx::fence_proxy_async();\n"),
            (f"        __syncwarp();\n        {ARRIVE_READY}", "        __syncwarp();"),
        ],
    ),
    "the other's slabs not passed over": (
        PING_PONG,
        EARLY | {"deadlock", "mbarrier", "proxy-fence"},
        [("        slab_.advance(C::kTileSlabs);\n", "")],
    ),
    # registers
    "register pool exhausted": (PING_PONG, {"deadlock"}, [("kConsumerRegisters = 232", "kConsumerRegisters = 240")]),
    "producer keeps its registers": (
        PING_PONG,
        {"deadlock"},
        [("    ptx::release_registers<kProducerRegisters>();\n", "")],
    ),
    # a cooperative pair
    "released by one consumer for both": (
        COOPERATIVE,
        {"race", "mbarrier", "deadlock"},
        [(EMPTY_COUNT, "ptx::mbarrier_init(empty(i), kWarpsOfGroup);")],
    ),
    "both write to the same slabs": (
        COOPERATIVE,
        {"race", "mbarrier", "deadlock"},
        [("if constexpr (C::kCooperative) slab_.advance(group_);", "")],
    ),
    # clusters
    "released to itself alone": (CLUSTER, {"deadlock"}, [(RELEASE_ALL, RELEASE_ALL.replace("C::kCluster", "1"))]),
    "released to the other alone": (
        CLUSTER,
        {"deadlock"},
        [(RELEASE_ALL, RELEASE_ALL.replace("lane_ < C::kCluster", "lane_ == 1"))],
    ),
    "empty after one block": (
        CLUSTER,
        {"race", "mbarrier"},
        [(EMPTY_COUNT, "ptx::mbarrier_init(empty(i), kWarpsOfGroup);")],
    ),
    "no wait for the cluster's stage": (
        CLUSTER,
        {"race", "mbarrier"},
        [("      ptx::mbarrier_wait(shared.empty(stage), at.parity ^ 1);\n", "")],
    ),
    "weights to itself alone": (CLUSTER, {"deadlock"}, [("(1 << C::kCluster) - 1);", "1 << rank);")]),
    "weights in the other's place": (CLUSTER, {"race"}, [(" + rank * C::kShareB", "")]),
    "no cluster barrier after mbarrier.init": (
        CLUSTER,
        {"race", "mbarrier", "mbarrier-fence"},
        [("    ptx::cluster_sync();\n  } else {", "    __syncthreads();\n  } else {")],
    ),
    "a block ends while the other writes to it": (
        CLUSTER,
        {"lifetime"},
        [("    __syncwarp();\n    ptx::cluster_sync();\n", "")],
    ),
    # statistics
    "no wait for the slab that warps meet in": (
        MOMENTS_OF_A_PAIR,
        {"race"},
        [("        ptx::mbarrier_wait(shared_.free(slab_.index), slab_.parity ^ 1);\n", "")],
    ),
    "merged before all warps have written": (
        MOMENTS,
        {"race", "uninitialized"},
        [(f"{MEET}\n  const int filter", "  const int filter")],
    ),
    "results over what is merged": (
        MOMENTS,
        {"race"},
        [("  ptx::named_barrier_sync<128>(1 + group);  // the slab is free for results\n", "")],
    ),
    "both consumers at one barrier": (
        MOMENTS_OF_A_PAIR,
        {"race", "barrier", "deadlock", "uninitialized"},
        [
            (
                "  ptx::named_barrier_sync<128>(1 + group);\n  const int",
                "  ptx::named_barrier_sync<128>(1);\n  const int",
            )
        ],
    ),
    "moments of rows past the last": (
        MOMENTS_OF_A_PAIR,
        {"out-of-bounds"},
        [(" && first < params.rows) {", ") {")],
    ),
    # parts of the depth
    "rows past the last": (SPLIT, {"out-of-bounds", "race"}, [("if (row + 8 * below < params_.rows)", "")]),
    "filters past the last": (SPLIT, {"out-of-bounds", "race"}, [("if (column >= params_.k) continue;", "")]),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_broken_kernels_are_caught_under_every_seed(name: str, tmp_path: Path) -> None:
    variant, kinds, changes = MUTANTS[name]
    modules = variant.module(tmp_path, changes)
    for seed in SEEDS:
        work, *_ = variant.work()
        with pytest.raises(emulator.Fault) as caught:
            emulate(work, seed, modules)
        assert caught.value.finding.kind in kinds, f"seed {seed}: {caught.value.finding}"


WRONG_RESULTS: dict[str, tuple[Variant, list[tuple[str, str]]]] = {
    "no swizzle of the slabs": (PING_PONG, [(" ^ (row % 8)) * 16", ") * 16")]),
    "sums not cleared": (PING_PONG, [("      start_sums(item);\n", "      if (number < 2) start_sums(item);\n")]),
    "the same channels at every step": (PING_PONG, [("    channel_ += kTileDepth;\n", "")]),
    "the taps in another order": (WINDOW, [("r_ * operand_->filter_width + s_;", "s_ * operand_->filter_width + r_;")]),
    "no stride": (WINDOW, [("h_ = p * operand_->stride_h", "h_ = p")]),
    "no padding": (WINDOW, [(" - operand_->pad_w;", ";")]),
    "residual of another place": (
        PING_PONG,
        [("item.row + i % (kTileM / kHalf) * kHalf", "item.row + i / (kTileM / kHalf) * kHalf")],
    ),
    "the other half's rows": (COOPERATIVE, [("half = C::kCooperative ? group_ : 0", "half = 0")]),
    "parts that overlap": (SPLIT, [("splits);\n    const int end", "splits - (split > 0));\n    const int end")]),
    "the same part twice": (SPLIT, [("int64_t{item.split} * params_.rows", "int64_t{0} * params_.rows")]),
    "the other's weights": (CLUSTER, [("item.filter + rank * share", "item.filter")]),
    "ReLU drops NaN": (PING_PONG, [('max.NaN.f32 %0, %1, %2;" : "=f"', 'max.f32 %0, %1, %2;" : "=f"')]),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_wrong_arithmetic_gives_wrong_results(name: str, tmp_path: Path) -> None:
    variant, changes = WRONG_RESULTS[name]
    modules = variant.module(tmp_path, changes)
    work, expected, exact = variant.work()
    if "NaN" in name:
        work.reads[0][0, 0, 0, 0] = expected[0, :, 0, 0] = exact[0, :, 0, 0] = float("nan")
    if "twice" in name:  # a race, or a part that nobody wrote
        with pytest.raises(emulator.Fault):
            emulate(work, 0, modules)
        return
    emulate(work, 0, modules)
    with pytest.raises(AssertionError):
        assert_right(work.result, expected, exact)
