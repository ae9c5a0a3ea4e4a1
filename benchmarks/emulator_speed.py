"""How fast the PTX emulator multiplies, on one core: fastres' Triton GEMM as compiled for sm_80 and sm_90.

    python benchmarks/emulator_speed.py [rounds]

Every check is on. The result is held to the tolerance rule before a figure is printed: multiply-adds per second of CPU
time, median of the rounds with quartiles.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
import triton

from fastres.emulator.triton import emulated
from fastres.kernels.gemm import gemm
from fastres.measure.parity import check
from fastres.tuning import Tile, arithmetic

SIZE = 512
TILE = Tile(128, 128, 32, 4, 3)


def main(rounds: int = 15) -> None:
    torch.set_num_threads(1)
    print(
        f"{SIZE} x {SIZE} x {SIZE}, tile {TILE.m} x {TILE.n} x {TILE.k}, {rounds} rounds, Triton {triton.__version__}"
    )
    for target in (80, 90):
        for dtype in (torch.float16, torch.bfloat16):
            x, w = torch.randn(2, SIZE, SIZE).to(dtype)
            y = torch.empty(SIZE, SIZE, dtype=dtype)
            rates = []
            for seed in range(rounds + 1):  # the first compiles
                with emulated(target, seed=seed) as reports:
                    start = time.process_time()
                    gemm(x, w, None, None, y, SIZE, TILE, False, arithmetic(dtype, tf32=False))
                    seconds = time.process_time() - start
                check(y, x.double() @ w.double().T, x @ w.T)
                rates.append(reports[0].macs / seconds / 1e6)
            low, middle, high = np.quantile(rates[1:], (0.25, 0.5, 0.75))
            name = f"sm_{target} {str(dtype).removeprefix('torch.')}"
            print(f"{name:14} {middle:5.0f} ({low:.0f} to {high:.0f}) million MAC/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
