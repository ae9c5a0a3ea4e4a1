"""The CUDA kernels as machine code: nothing in local memory, within each chip's limits, and as the table says."""

from __future__ import annotations

import json

import pytest
import torch
from resources import TABLE, Resources, as_json, measured

from fastres import native, tuning
from fastres.backends import plans
from fastres.block import ConvBN, Geometry

REGISTERS = 65536  # of a multiprocessor
RENEW = "if that is as it should be, renew the table: python tests/native/resources.py"


@pytest.fixture(scope="module")
def built() -> dict[str, dict[str, Resources]]:
    return measured()


def test_every_kernel_is_there_on_every_architecture(built: dict[str, dict[str, Resources]]) -> None:
    info = native.require().build_info()
    assert built.keys() == info["kernels"].keys()
    generic = {f"sm_{arch.removesuffix('-real')}" for arch in info["archs"] if arch.endswith("0-real")}
    for name, of_arch in built.items():
        expected = {"sm_90a"} if "_sm90" in name else generic
        assert of_arch.keys() == expected, name


def test_none_spills_or_uses_local_memory(built: dict[str, dict[str, Resources]]) -> None:
    uses = [(name, arch, r) for name, of_arch in built.items() for arch, r in of_arch.items() if r.stack or r.local]
    assert uses == []


def test_registers_and_instructions_are_as_in_the_table() -> None:
    expected, found = json.loads(TABLE.read_text()), json.loads(json.dumps(as_json()))
    if expected["nvcc"] != found["nvcc"]:
        pytest.skip(f"{TABLE.name} is of nvcc {expected['nvcc']}, this build of {found['nvcc']}")
    before, now = expected["kernels"], found["kernels"]
    columns = ", ".join(expected["columns"])
    changed = [
        f"{name} {arch}: {before.get(name, {}).get(arch)} in the table, {now.get(name, {}).get(arch)} in this build"
        for name in sorted({*before, *now})
        for arch in sorted({*before.get(name, {}), *now.get(name, {})})
        if before.get(name, {}).get(arch) != now.get(name, {}).get(arch)
    ]
    assert not changed, "\n".join([f"({columns}), or counts of the PTX's instructions:", *changed, RENEW])


@pytest.mark.parametrize("tile", [(128, 128), (128, 64), (64, 64), (128, 32)], ids=str)
def test_a_convolution_s_block_fits_every_chip(tile: tuple[int, int], built: dict[str, dict[str, Resources]]) -> None:
    """Registers and shared memory, of which the pipeline's part is asked for at the launch."""
    x = torch.empty(4, 64, 32, 32, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    ones = torch.ones(256)
    layer = ConvBN(x, None, None, None, ones, ones, None, 0.0, Geometry())
    weight = torch.empty(256, 64, 1, 1, dtype=torch.bfloat16)
    (plan,) = plans.convolution([(x, plans.pack(weight, ones, layer.geometry))], True, sms=108, tile=(*tile, 1)).plans
    for arch, used in built[plan.symbol].items():
        assert plan.shared_bytes + used.shared <= tuning.shared_memory(int(arch.removeprefix("sm_")))
        assert used.registers * plan.block[0] <= REGISTERS
