"""What conv_sm90 asks of memory and of the issue slots, for each convolution of ResNet-50, as the emulator counts it.

    python benchmarks/conv_sm90_counts.py [batch]      writes counts/conv_sm90.json

Tiles are those that an H100 would be given at batch 256, so that what is counted at a small batch is what a large one
asks for by image, but for the weights, of which it has fewer tiles to read for. No GPU is needed, and no figure here is
a time.
"""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastres import native
from fastres.backends import plans
from fastres.backends.emulator import emulate
from fastres.block import Geometry
from fastres.measure.parity import check
from fastres.measure.roofline import Layer, layers

OUT = Path(__file__).parent / "counts" / "conv_sm90.json"
MULTIPROCESSORS = 132  # of an H100 and an H200
LARGE = 256  # images, for which tiles are chosen
DTYPE = torch.bfloat16


def problems(batch: int) -> dict[str, list[Layer]]:
    """ResNet-50's distinct convolutions after the stem by name, a projection's two together."""
    found: dict[str, list[Layer]] = {}
    for layer in layers("resnet50", batch, 224)[1:-1]:
        if layer.name.endswith("downsample.0"):
            conv3, (last,) = found.popitem()
            found[f"{conv3} + downsample"] = [last, layer]
        else:
            found[layer.name] = [layer]
    distinct: dict[Any, str] = {}
    for name, parts in found.items():
        distinct.setdefault(tuple(layer.problem() for layer in parts), name)
    return {name: found[name] for name in distinct.values()}


def fewest_bytes(parts: list[Layer]) -> int:
    """Every pixel that a tap meets, weights, bias, residual and output, once each."""
    elements = prod(parts[0].out) * (1 + (parts[0].residual and len(parts) == 1))
    for layer in parts:
        met = prod(layer.x) if layer.weight[2] > 1 else layer.x[1] * prod(layer.out) // layer.out[1]
        elements += met + prod(layer.weight)
    return elements * DTYPE.itemsize + len(parts) * 4 * parts[0].out[1]


def tile(parts: list[Layer]) -> tuple[int, int, int, int]:
    """What the plan chooses for this problem at batch `LARGE`."""
    module = native.require()
    operands = []
    for layer in parts:
        k, c, r, s = layer.weight
        both = (layer.stride,) * 2, (layer.padding,) * 2, (1, 1)
        operands.append(module.ConvOperand(1024, 1024, 1024, (*layer.x[2:], c), (r, s), *both, c * r * s))
    _, k, p, q = parts[0].out
    problem = module.ConvProblem(operands, (LARGE, p, q, k), 1, 0, 1024, True)
    chosen, _ = module.conv_sm90_tile(module.DType.bf16, problem, MULTIPROCESSORS)
    return chosen


def count(parts: list[Layer]) -> dict[str, Any]:
    """One problem, run, checked and counted."""
    torch.manual_seed(0)
    operands: list[tuple[Tensor, plans.Prepared]] = []
    exact = torch.zeros(())
    for layer in parts:
        x = torch.randn(layer.x).to(DTYPE).contiguous(memory_format=torch.channels_last)
        weight = (torch.randn(layer.weight) / prod(layer.weight[1:]) ** 0.5).to(DTYPE)
        geometry = Geometry((layer.stride,) * 2, (layer.padding,) * 2)
        operands.append((x, plans.pack(weight, torch.randn(layer.out[1]), geometry)))
        bias = operands[-1][1].bias
        exact = exact + torch.nn.functional.conv2d(x.float(), weight.float(), bias, layer.stride, layer.padding)
    residual = None
    if parts[0].residual and len(parts) == 1:
        residual = torch.randn(parts[0].out).to(DTYPE).contiguous(memory_format=torch.channels_last)
        exact = exact + residual.float()
    shape = tile(parts)
    work = plans.convolution(operands, True, residual, sms=MULTIPROCESSORS, kernel="conv_sm90", tile=shape)
    (report,) = emulate(work)
    exact = exact.relu()
    check(work.result, exact.double(), exact.to(DTYPE))  # float32 sums are exact beside what rounding takes
    memory, fewest = report.traffic["global"], fewest_bytes(parts)
    macs = sum(prod(layer.out) * prod(layer.weight[1:]) for layer in parts)
    unique, requested = memory.read_unique + memory.write_unique, memory.read_requested + memory.write_requested
    return {
        "kernel": report.kernel,
        "flops": 2 * macs,
        "fewest_bytes": fewest,
        "unique_bytes": unique,
        "requested_bytes": requested,
        "unique_ratio": unique / fewest,
        "requested_ratio": requested / fewest,
        "multiplied_ratio": report.macs / macs,
        "warp_instructions_per_1000_macs": 1000 * report.warp_instructions / macs,
    }


def main(batch: int = 2) -> None:
    rows = {}
    for name, parts in problems(batch).items():
        rows[name] = count(parts)
        row = rows[name]
        print(
            f"{name:28} {row['kernel'].removeprefix('conv_sm90_bf16_'):17} unique {row['unique_ratio']:.3f}  "
            f"requested {row['requested_ratio']:6.2f}  multiplied {row['multiplied_ratio']:.2f}  "
            f"{row['warp_instructions_per_1000_macs']:.2f} instructions per 1000 multiply-adds",
            flush=True,
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    what = {"model": "resnet50", "batch": batch, "size": 224, "dtype": "bfloat16", "multiprocessors": MULTIPROCESSORS}
    OUT.write_text(json.dumps({**what, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
