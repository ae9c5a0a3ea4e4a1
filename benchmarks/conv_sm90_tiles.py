"""How long each of conv_sm90's tiles takes for each convolution of ResNet-50: what its choice is held against.

    python benchmarks/conv_sm90_tiles.py FILE      writes FILE; needs a GPU of compute capability 9.0

Lines are [batch, problem, steps of the main loop, rows, filters, microseconds by "columns/cluster", the choice]. A
tile's result is held against the choice's before it is timed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from conv_sm90_counts import DTYPE, problems
from settings import BATCHES, DEVICE, ROUNDS
from torch import Tensor

from fastres.backends import plans, registry
from fastres.block import Geometry
from fastres.measure.roofline import Layer
from fastres.measure.timing import alternate, timer_for, warm_up

TILES = [(columns, cluster) for columns in (64, 128, 256) for cluster in (1, 2)]


def pose(parts: list[Layer]) -> tuple[list[tuple[Tensor, plans.Prepared]], Tensor | None]:
    """Random operands of a problem, and its residual if it has one."""
    torch.manual_seed(0)
    operands = []
    for layer in parts:
        x = torch.randn(layer.x, device=DEVICE, dtype=DTYPE).relu_().contiguous(memory_format=torch.channels_last)
        depth = layer.weight[1] * layer.weight[2] ** 2
        weight = torch.randn(layer.weight, device=DEVICE, dtype=DTYPE) / depth**0.5
        geometry = Geometry((layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1)
        operands.append((x, plans.pack(weight, torch.randn(layer.weight[0], device=DEVICE), geometry)))
    if not parts[0].residual or len(parts) > 1:
        return operands, None
    residual = torch.randn(parts[0].out, device=DEVICE, dtype=DTYPE)
    return operands, residual.contiguous(memory_format=torch.channels_last)


def measure(parts: list[Layer]) -> tuple[dict[str, float], str]:
    """Microseconds by tile, and which the plan chooses."""
    backend: Any = registry.get("cuda")
    sms = backend.multiprocessors(DEVICE)
    operands, residual = pose(parts)
    relu = parts[0].relu or len(parts) > 1

    def work(*tile: int) -> plans.Work:
        return plans.convolution(operands, relu, residual, sms=sms, kernel="conv_sm90", tile=tile)

    chosen = work()
    symbol = chosen.plans[0].symbol
    expected = backend.run(chosen).float()
    timer = timer_for(DEVICE)
    samplers = {}
    for columns, cluster in TILES:
        candidate = work(0, columns, 0, cluster)
        error = (backend.run(candidate).float() - expected).abs().max()
        assert error <= 2e-2 * expected.abs().max(), (parts[0].name, columns, cluster, float(error))
        calls = warm_up(lambda work=candidate: backend.run(work), timer, DEVICE, 0.004)
        samplers[f"{columns}/{cluster}"] = lambda work=candidate, calls=calls: timer(lambda: backend.run(work), calls)
    samples = alternate(samplers, ROUNDS)
    times = {name: median(values) * 1e6 for name, values in samples.items()}
    return times, symbol.split("128x")[1].replace("_cluster", "/")


def main() -> None:
    rows = []
    for batch in BATCHES:
        for name, parts in problems(batch).items():
            times, chosen = measure(parts)
            steps = sum(-(-layer.weight[1] // 64) * layer.weight[2] ** 2 for layer in parts)
            n, k, p, q = parts[0].out
            rows.append([batch, name, steps, n * p * q, k, times, chosen])
            fastest = min(times, key=times.__getitem__)
            listing = "  ".join(f"{name} {t:7.1f}" for name, t in times.items())
            print(f"{batch:4} {name:28} {listing}  chosen {chosen} {times[chosen] / times[fastest]:.2f}", flush=True)
            Path(sys.argv[1]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
