"""conv_sm90's choice of tiles against what every tile took on an H100: benchmarks/conv_sm90_tiles.py left the times."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path
from typing import Any

from fastres import native
from fastres.measure.roofline import Layer, layers

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
(TIMES,) = RESULTS.glob("nvidia-h100-80gb-hbm3/*-tiles.jsonl")
MULTIPROCESSORS = 132


def choice(parts: list[Layer]) -> str:
    """Columns and cluster of the tile that the plan chooses, as the file has them."""
    module: Any = native.require()
    operands = []
    for layer in parts:
        _, c, h, w = layer.x
        r = layer.weight[2]
        window = (r, r), (layer.stride,) * 2, (layer.padding,) * 2, (1, 1)
        operands.append(module.ConvOperand(1024, 1024, 0, (h, w, c), *window, c * r * r))
    n, k, p, q = parts[0].out
    problem = module.ConvProblem(operands, (n, p, q, k), 1, 0, 1024, True)
    (_, columns, _, cluster), _ = module.conv_sm90_tile(module.DType.bf16, problem, MULTIPROCESSORS, (0, 0, 0, 0))
    return f"{columns}/{cluster}"


def test_the_choice_is_near_the_fastest() -> None:
    over = {}
    for line in TIMES.read_text().splitlines():
        batch, name, _, _, _, times, _ = json.loads(line)
        of_model = {layer.name: layer for layer in layers("resnet50", batch, 224)}
        conv3, plus, _ = name.partition(" + downsample")
        parts = [of_model[conv3]] + ([of_model[conv3.replace("conv3", "downsample.0")]] if plus else [])
        over[batch, name] = times[choice(parts)] / min(times.values())
    assert len(over) == 69
    assert max(over.values()) < 1.11
    assert exp(sum(map(log, over.values())) / len(over)) < 1.01
