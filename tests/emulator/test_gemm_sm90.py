"""A warp-specialised TMA + mbarrier + wgmma GEMM, and what the emulator says of its broken variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nvrtc import compile_ptx

from fastres import emulator

SOURCE = (Path(__file__).parent / "gemm_sm90.cu").read_text()
TILE_M, TILE_N, TILE_K, STAGES = 128, 64, 64, 3
SHARED = 1024 + STAGES * (TILE_M + TILE_N) * TILE_K * 2 + TILE_M * TILE_N * 2 + 2 * STAGES * 8
SEEDS = range(10)

Maps = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], list[emulator.TensorMap]]


def default_maps(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, swizzle: int = 128) -> list[emulator.TensorMap]:
    return [
        emulator.TensorMap.tiled(a, (TILE_M, TILE_K), swizzle=swizzle),
        emulator.TensorMap.tiled(b, (TILE_N, TILE_K), swizzle=swizzle),
        emulator.TensorMap.tiled(c, (64, TILE_N), swizzle=128),
    ]


def module(*changes: tuple[str, str], element: str = "f16") -> emulator.Module:
    """The kernel with each (old, new) change made to its source, which must have `old` once."""
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
        source = source.replace(old, new)
    return emulator.load(compile_ptx(source, "gemm_sm90.cu", defines=(f'ELEMENT="{element}"',)))


def run(
    kernel: emulator.Module,
    seed: int,
    *,
    m: int = 256,
    n: int = 128,
    k: int = 256,
    blocks: int = 2,
    dtype: torch.dtype = torch.float16,
    maps: Maps = default_maps,
) -> tuple[torch.Tensor, torch.Tensor, emulator.Report]:
    """The kernel's C, the exact one, and the report. Integers, so that float accumulation is exact."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-4, 5, (m, k), generator=generator).to(dtype)
    b = torch.randint(-4, 5, (n, k), generator=generator).to(dtype)
    c = torch.full((m, n), torch.nan, dtype=dtype)
    grid_m, grid_n = -(-m // TILE_M), -(-n // TILE_N)
    args = [*maps(a, b, c), grid_m, grid_n, -(-k // TILE_K)]
    report = kernel.launch("gemm", (blocks,), (384,), args, shared=SHARED, seed=seed)
    return c, (a.double() @ b.double().T).to(dtype), report


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_right_under_every_seed(seed: int) -> None:
    c, expected, report = run(module(), seed)
    assert torch.equal(c, expected)
    assert report.findings == ()
    assert report.macs == 256 * 128 * 256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "n", "k", "blocks"),
    [(128, 64, 64, 1), (256, 128, 448, 1), (200, 72, 104, 3), (64, 192, 200, 2), (8, 8, 8, 1)],
)
def test_shapes(dtype: torch.dtype, m: int, n: int, k: int, blocks: int) -> None:
    """Sizes that are no multiples of the tile: TMA fills with zeros and clips."""
    kernel = module(element="f16" if dtype == torch.float16 else "bf16")
    c, expected, report = run(kernel, 1, m=m, n=n, k=k, blocks=blocks, dtype=dtype)
    assert torch.equal(c, expected)
    assert report.findings == ()


WAIT_FULL = "mbarrier_wait(full + 8 * stage, parity);"
WAIT_EMPTY = "mbarrier_wait(empty + 8 * stage, parity ^ 1);"
EXPECT = "mbarrier_expect(full + 8 * stage, kBytesA + kBytesB);"
WGMMA_FENCE = 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");'
WGMMA_WAIT = 'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");'
RELEASE = "if (thread == 0) mbarrier_arrive(empty + 8 * stage);"
PROXY_FENCE = 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");'
BAR = '    asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");\n'
COMMIT = 'asm volatile("cp.async.bulk.commit_group;" ::: "memory");'
READ_WAIT = 'if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");'
LAST_WAIT = 'if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");'
INC = "setmaxnreg.inc.sync.aligned.u32 240;"
DEC = "setmaxnreg.dec.sync.aligned.u32 24;"
INIT_FENCE = 'asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");'

EARLY = {"race", "uninitialized"}  # what was read had been written out of order, or not at all

# name: (kinds of finding that may come first, changes)
MUTANTS: dict[str, tuple[set[str], list[tuple[str, str]]]] = {
    "no wait for the full barrier": (EARLY, [(WAIT_FULL, "")]),
    "only one warp waits for the full barrier": (EARLY, [(WAIT_FULL, f"if (warp == 0) {WAIT_FULL}")]),
    "wrong parity at the full barrier": (EARLY, [(WAIT_FULL, WAIT_FULL.replace("parity", "parity ^ 1"))]),
    "parity never flips at the full barrier": ({"race", "deadlock"}, [(WAIT_FULL, WAIT_FULL.replace("parity", "0"))]),
    "wait for another stage": (
        {"race"},
        [(WAIT_FULL, "mbarrier_wait(full + 8 * (k % 2 ? 0 : stage), k % 2 ? 0 : parity);")],
    ),
    "no retry of try_wait": (EARLY | {"mbarrier"}, [('"bra.uni again;\\n"', '"bra.uni over;\\n"')]),
    "no wait for the empty barrier": ({"race", "mbarrier"}, [(WAIT_EMPTY, "")]),
    "wrong parity at the empty barrier": ({"deadlock"}, [(WAIT_EMPTY, WAIT_EMPTY.replace(" ^ 1", ""))]),
    "released before the wgmma is done": (
        {"race"},
        [(f"{WGMMA_WAIT}\n      {RELEASE}", f"{RELEASE}\n      {WGMMA_WAIT}")],
    ),
    "released by one consumer for both": (
        {"race", "mbarrier"},
        [("mbarrier_init(empty + 8 * i, kConsumers);", "mbarrier_init(empty + 8 * i, 1);")],
    ),
    "released by one consumer of two": (
        {"deadlock"},
        [(RELEASE, "if (threadIdx.x == 128) mbarrier_arrive(empty + 8 * stage);")],
    ),
    "released twice": ({"race", "mbarrier"}, [(RELEASE, RELEASE.replace("thread == 0", "thread < 2"))]),
    "too few bytes": (EARLY | {"mbarrier"}, [(EXPECT, EXPECT.replace(" + kBytesB", ""))]),
    "too many bytes": ({"deadlock"}, [(EXPECT, EXPECT.replace(" + kBytesB", " + 2 * kBytesB"))]),
    "one tile of K too many": ({"deadlock"}, [("k < steps; ++k) {", "k <= steps; ++k) {")]),
    "no fence after mbarrier.init": ({"mbarrier-fence"}, [(INIT_FENCE, "")]),
    "no barrier after mbarrier.init": ({"race", "mbarrier"}, [("  __syncthreads();\n", "")]),
    "no wgmma.fence": ({"wgmma-fence"}, [(WGMMA_FENCE, "")]),
    "wgmma.fence on the first tile only": ({"wgmma-fence"}, [(WGMMA_FENCE, f"if (tile == blockIdx.x) {WGMMA_FENCE}")]),
    "no wait for the wgmma": ({"wgmma-wait", "race"}, [(WGMMA_WAIT, "")]),
    "wait for all but one wgmma group": ({"wgmma-wait", "race"}, [(WGMMA_WAIT, WGMMA_WAIT.replace(" 0;", " 1;"))]),
    "no proxy fence": ({"proxy-fence"}, [(PROXY_FENCE, "")]),
    "no barrier before the store": (
        EARLY,
        [(f"{PROXY_FENCE}\n{BAR}", f"{PROXY_FENCE}\n")],
    ),
    "no wait before the staging tile is written again": ({"race"}, [(READ_WAIT, "")]),
    "no barrier after that wait": ({"race"}, [(f"{READ_WAIT}\n{BAR}", f"{READ_WAIT}\n")]),
    "store not committed": ({"race", "lifetime"}, [(COMMIT, "")]),
    "no wait for the last store": ({"lifetime"}, [(LAST_WAIT, "")]),
    "stage of the ring too far": (
        EARLY,
        [
            (
                "const u64 from_b = descriptor(b + kBytesB * stage);",
                "const u64 from_b = descriptor(b + kBytesB * ((stage + 1) % kStages));",
            )
        ],
    ),
    "register pool exhausted": ({"deadlock"}, [(INC, INC.replace("240", "248"))]),
    "producer keeps its registers": ({"deadlock"}, [(f'asm volatile("{DEC}");', "")]),
    "one warp alone gives registers back": (
        {"deadlock"},
        [(f'asm volatile("{DEC}");', f'if (thread < 32) asm volatile("{DEC}");')],
    ),
    "a destination that is not aligned": (
        {"misaligned"},
        [("load_tile(map_a, a + kBytesA * stage,", "load_tile(map_a, a + kBytesA * stage + 64,")],
    ),
    "a ring longer than shared memory": ({"out-of-bounds", "race", "mbarrier"}, [("kStages = 3", "kStages = 4")]),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_broken_kernels_are_caught_under_every_seed(name: str) -> None:
    kinds, changes = MUTANTS[name]
    kernel = module(*changes)
    for seed in SEEDS:
        with pytest.raises(emulator.Fault) as caught:
            run(kernel, seed)
        finding = caught.value.finding
        assert finding.kind in kinds, f"seed {seed}: {finding}"
        assert finding.expected
        if finding.kind not in ("deadlock", "lifetime"):
            assert "gemm_sm90.cu:" in finding.source


WRONG_RESULTS: dict[str, tuple[list[tuple[str, str]], Maps]] = {
    "no swizzle in the maps": ([], lambda a, b, c: default_maps(a, b, c, swizzle=0)),
    "another swizzle in the descriptor": ([("64ull << 32 | 1ull << 62", "64ull << 32 | 2ull << 62")], default_maps),
    "no swizzle of the staging tile": ([(" ^ (row % 8);", ";")], default_maps),
    "wrong stride in the descriptor": ([("64ull << 32", "32ull << 32")], default_maps),
    "the same K for every step": (
        [("full + 8 * stage, k * kTileK, row);", "full + 8 * stage, 0, row);")],
        default_maps,
    ),
    "accumulators not cleared": ([("k + i != 0", "1")], default_maps),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_wrong_layouts_give_wrong_results(name: str) -> None:
    changes, maps = WRONG_RESULTS[name]
    kernel = module(*changes)
    for seed in SEEDS:
        c, expected, _ = run(kernel, seed, maps=maps)
        assert not torch.equal(c, expected)


def test_a_deadlock_says_who_waits_for_what() -> None:
    with pytest.raises(emulator.Fault) as caught:
        run(module((EXPECT, EXPECT.replace(" + kBytesB", " + 2 * kBytesB"))), 0)
    text = str(caught.value.finding)
    assert "waits at line" in text
    assert "for parity 0, which is in phase 0, 0 of 1 arrivals pending, 8192 bytes to come" in text
    with pytest.raises(emulator.Fault) as caught:
        run(module((INC, INC.replace("240", "248"))), 0)
    assert "registers, the block's pool has" in str(caught.value.finding)
