"""Hopper's instructions one by one, against what the PTX ISA says of each."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from nvrtc import compile_ptx

from fastres import emulator

SOURCE = (Path(__file__).parent / "sm90_cases.cu").read_text()
SEEDS = range(5)


@lru_cache(maxsize=8)
def module(*defines: str) -> emulator.Module:
    return emulator.load(compile_ptx(SOURCE, "sm90_cases.cu", defines=defines))


def clean(kernel: str, args: list, *, seed: int, blocks: int = 1, cluster: int = 1, shared: int = 0) -> None:
    report = module().launch(kernel, (blocks,), (32,), args, cluster=(cluster,), shared=shared, seed=seed)
    assert report.findings == ()


@pytest.mark.parametrize("count", [1, 7, 32])
def test_elect_sync_chooses_one_of_the_members(count: int) -> None:
    out = torch.zeros(32, 2, dtype=torch.int32)
    clean("elect", [out, count], seed=0)
    leaders = out[:count, 0].unique()
    assert leaders.numel() == 1
    assert out[:, 1].nonzero().flatten().tolist() == [int(leaders[0])]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [2, 4])
def test_blocks_write_to_each_others_shared_memory(size: int, seed: int) -> None:
    out = torch.zeros(2 * size, 32, dtype=torch.int32)
    clean("neighbours", [out, size], seed=seed, blocks=2 * size, cluster=size)
    ranks = torch.arange(2 * size) % size
    expected = 100 * ((ranks - 1) % size) + 10 * ranks
    assert torch.equal(out, expected[:, None].expand(-1, 32).int())


@pytest.mark.parametrize(
    ("missing", "kinds"), [("NO_FIRST_BARRIER", {"race"}), ("NO_SECOND_BARRIER", {"race", "lifetime"})]
)
@pytest.mark.parametrize("seed", range(10))
def test_a_missing_cluster_barrier_is_caught(missing: str, kinds: set[str], seed: int) -> None:
    out = torch.zeros(2, 32, dtype=torch.int32)
    with pytest.raises(emulator.Fault) as caught:
        module(missing).launch("neighbours", (2,), (32,), [out, 2], cluster=(2,), seed=seed)
    assert caught.value.finding.kind in kinds


@pytest.mark.parametrize("seed", range(10))
def test_shared_memory_of_a_block_that_may_have_ended(seed: int) -> None:
    out = torch.zeros(2, 32, dtype=torch.int32)
    with pytest.raises(emulator.Fault) as caught:
        module("READ_AFTER_END").launch("neighbours", (2,), (32,), [out, 2], cluster=(2,), seed=seed)
    assert caught.value.finding.kind == "lifetime"
    assert "ended" in caught.value.finding.message


@pytest.mark.parametrize("seed", SEEDS)
def test_multicast_reaches_every_block_of_the_mask(seed: int) -> None:
    tensor = torch.randn(16, 32)
    out = torch.zeros(4, 8, 32)
    box = emulator.TensorMap.tiled(tensor, (8, 32))
    clean("multicast", [box, out, 0b1111], seed=seed, blocks=4, cluster=4)
    assert torch.equal(out, tensor[8:].expand(4, 8, 32))
    with pytest.raises(emulator.Fault) as caught:  # block 3 waits in vain
        module().launch("multicast", (4,), (32,), [box, out, 0b0111], cluster=(4,), seed=seed)
    assert caught.value.finding.kind == "deadlock"
    with pytest.raises(emulator.Fault, match="multicast to blocks of mask 0x1f"):
        module().launch("multicast", (4,), (32,), [box, out, 0b11111], cluster=(4,), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_arrive_at_each_others_mbarriers(seed: int) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    clean("remote_arrive", [out, 4], seed=seed, blocks=4, cluster=4)
    assert (out == 1).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [4, 256, 1000])
def test_bulk_copies_and_reduction(count: int, seed: int) -> None:
    data, out, total = torch.randn(count), torch.zeros(count), torch.ones(count)
    clean("bulk", [data, out, total, 4 * count], seed=seed, shared=4 * count)
    assert torch.equal(out, 2 * data)
    assert torch.equal(total, 1 + 2 * data)


def test_bulk_copies_are_checked() -> None:
    data, out, total = torch.randn(64), torch.zeros(64), torch.ones(64)
    with pytest.raises(emulator.Fault, match="bulk copy of 100 bytes"):
        module().launch("bulk", (1,), (32,), [data, out, total, 100], shared=256)
    with pytest.raises(emulator.Fault) as caught:
        module().launch("bulk", (1,), (32,), [data[:32].clone(), out, total, 256], shared=256)
    assert caught.value.finding.kind == "out-of-bounds"
    assert caught.value.finding.space == "global"
    with pytest.raises(emulator.Fault) as caught:
        module().launch("bulk", (1,), (32,), [data, out, total, 256], shared=128)
    assert caught.value.finding.kind == "out-of-bounds"
    assert caught.value.finding.space == "shared"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensor_reduction_adds_what_is_inside(dtype: torch.dtype) -> None:
    tensor = torch.randint(-8, 8, (20, 24)).to(dtype)
    expected = tensor.clone()
    value = torch.tensor([3.0]).to(dtype)
    box = emulator.TensorMap.tiled(tensor, (8, 16))
    for column, row in ((0, 0), (16, 16), (-8, 4)):
        bits = int(value.view(torch.int16)) & 0xFFFF
        clean("tensor_add", [box, bits, column, row], seed=0)
        expected[max(row, 0) : row + 8, max(column, 0) : column + 16] += value
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (1, 2, 0, 1), (3, 1, 2, 2)]
)
def test_im2col_loads_what_unfold_gives(kernel: int, stride: int, padding: int, dilation: int) -> None:
    batch, size, channels, tile = 2, 7, 32, 16
    image = torch.randn(batch, size, size, channels).half()
    reach = dilation * (kernel - 1)
    extent = (size + 2 * padding - reach - 1) // stride + 1
    columns = torch.nn.functional.unfold(
        image.permute(0, 3, 1, 2).float(), kernel, dilation=dilation, padding=padding, stride=stride
    )
    columns = columns.reshape(batch, channels, kernel * kernel, extent * extent).permute(2, 0, 3, 1).half()
    columns = columns.reshape(kernel * kernel, -1, channels)  # tap, pixel, channel
    corners = [-padding] * 2, [padding - reach] * 2
    box = emulator.TensorMap.im2col(image, *corners, channels, tile, (1, stride, stride, 1))
    for start in range(0, columns.shape[1], tile):
        n, p, q = start // extent**2, start // extent % extent, start % extent
        for tap in range(kernel * kernel):
            out = torch.full((tile, channels), torch.nan, dtype=torch.float16)
            at = [q * stride - padding, p * stride - padding, n]
            clean("im2col", [box, out, *at, tap % kernel * dilation, tap // kernel * dilation], seed=start + tap)
            expected = torch.zeros(tile, channels, dtype=torch.float16)
            pixels = columns[tap, start : start + tile]
            expected[: len(pixels)] = pixels
            assert torch.equal(out, expected)


def test_tiled_loads_step_fill_and_clip() -> None:
    tensor = torch.arange(10 * 12.0).reshape(10, 12)
    out = torch.zeros(4, 8)
    clean("tiled", [emulator.TensorMap.tiled(tensor, (4, 8)), out, 6, 8, 128], seed=0)
    expected = torch.zeros(4, 8)
    expected[:2, :6] = tensor[8:10, 6:12]
    assert torch.equal(out, expected)
    clean("tiled", [emulator.TensorMap.tiled(tensor, (4, 8), fill_nan=True), out, -2, -1, 128], seed=0)
    expected = torch.full((4, 8), torch.nan)
    expected[1:, 2:] = tensor[:3, :6]
    assert torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1))
    out.zero_()
    clean("tiled", [emulator.TensorMap.tiled(tensor, (8, 8), (3, 1)), out, 0, 1, 96], seed=0)
    assert torch.equal(out[:3], tensor[1::3, :8])


@pytest.mark.parametrize(
    ("kernel", "argument", "message"),
    [
        ("tiled", bytes(128), "there is no tensor map"),
        ("tiled", emulator.TensorMap.tiled(torch.zeros(1, 4, 8), (1, 4, 8)), "has rank 3"),
        ("im2col", emulator.TensorMap.tiled(torch.zeros(1, 4, 4, 8), (1, 4, 4, 8)), "is for tiles"),
    ],
)
def test_tensor_maps_are_checked_when_used(kernel: str, argument: emulator.TensorMap | bytes, message: str) -> None:
    out = torch.zeros(256)
    rest = [0, 0, 128] if kernel == "tiled" else [0] * 5
    with pytest.raises(emulator.Fault) as caught:
        module().launch(kernel, (1,), (32,), [argument, out, *rest])
    assert caught.value.finding.kind == "tensor-map"
    assert message in caught.value.finding.message


def test_a_tensor_map_of_memory_that_the_launch_does_not_know() -> None:
    tensor, out = torch.zeros(10, 12), torch.zeros(4, 8)
    elsewhere = emulator.TensorMap(tensor.clone(), emulator.TensorMap.tiled(tensor, (4, 8)).blob)
    with pytest.raises(emulator.Fault) as caught:
        module().launch("tiled", (1,), (32,), [elsewhere, out, 0, 0, 128])
    assert caught.value.finding.kind == "out-of-bounds"


@pytest.mark.parametrize("seed", SEEDS)
def test_mbarrier_tokens(seed: int) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    clean("tokens", [out], seed=seed)
    lanes = torch.arange(31, dtype=torch.int32)
    first = 34 if out[31] == 3 else 32  # lane 31 arrives for two, after the others or before them
    assert torch.equal(out[:31], first - lanes)
    assert out[31] == (3 if first == 34 else 34)


SETMAXNREG = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry pool() {bounds}
{{
  setmaxnreg.{op}.sync.aligned.u32 {count};
  ret;
}}
"""


@pytest.mark.parametrize(
    ("op", "count", "bounds", "message"),
    [
        ("dec", 20, ".maxntid 128, 1, 1", "register count is 20, expected a multiple of 8 in 24..256"),
        ("inc", 264, ".maxntid 128, 1, 1", "register count is 264"),
        ("dec", 36, ".maxntid 128, 1, 1", "register count is 36"),
        ("dec", 40, "", "ptxas ignores setmaxnreg without"),
    ],
)
def test_setmaxnreg_is_checked(op: str, count: int, bounds: str, message: str) -> None:
    with pytest.raises(emulator.PtxError, match=message.replace(".", r"\.")):
        emulator.load(SETMAXNREG.format(op=op, count=count, bounds=bounds))


def test_setmaxnreg_goes_the_way_it_says() -> None:
    """384 threads start with 168 registers each."""
    bounds = ".maxntid 384, 1, 1"
    emulator.load(SETMAXNREG.format(op="dec", count=168, bounds=bounds)).launch("pool", (1,), (384,), [])
    for op, count in (("inc", 160), ("dec", 176)):
        with pytest.raises(emulator.Fault) as caught:
            emulator.load(SETMAXNREG.format(op=op, count=count, bounds=bounds)).launch("pool", (1,), (384,), [])
        assert f"{op} to {count} registers from 168" in caught.value.finding.message
