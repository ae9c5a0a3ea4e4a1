"""Training: one layer of each kind, ResNet-50's blocks, and whole steps, which have no optimizer in them."""

from __future__ import annotations

import pytest
import torch
from bench_blocks import BLOCKS, CPU_BLOCKS
from bench_conv import LAYERS
from conftest import Replay
from problems import EAGER
from races import model_race, problem_race
from settings import BATCHES, DEVICE, DTYPES, MODELS
from train_problems import block_problem, contenders, layer_problem

from fastres.measure.roofline import Layer
from fastres.measure.workload import Workload

GPU_ONLY = ("compile", "eager-graph", "fastres-graph")  # each graph keeps a step's memory: no more than two fit
STEP = ("eager", EAGER, *contenders(DEVICE)[1:], *(GPU_ONLY if DEVICE.type != "cpu" else ()))
TRAINED = [batch for batch in BATCHES if batch > 1] or [8]  # a batch of one has no statistics at the end


@pytest.mark.parametrize("contender", contenders(DEVICE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "layer", [layer for layer in LAYERS if layer.relu], ids=lambda layer: f"{layer.x[0]}x{layer.name}"
)
def test_layer(layer: Layer, dtype: torch.dtype, contender: str, replay: Replay) -> None:
    replay(problem_race(layer_problem, layer, name=f"{layer.name} training", dtype=dtype), contender)


@pytest.mark.parametrize("contender", contenders(DEVICE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("block", BLOCKS if DEVICE.type != "cpu" else CPU_BLOCKS)
def test_block(block: str, batch: int, dtype: torch.dtype, contender: str, replay: Replay) -> None:
    replay(problem_race(block_problem, "resnet50", block, batch, name=f"{block} training", dtype=dtype), contender)


@pytest.mark.parametrize("contender", STEP)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", TRAINED)
@pytest.mark.parametrize("model", MODELS)
def test_step(model: str, batch: int, dtype: torch.dtype, contender: str, replay: Replay) -> None:
    replay(model_race(Workload(model, batch, dtype=dtype, device=DEVICE, train=True), STEP), contender)
