"""ResNet-50's convolutions with BatchNorm, residual and ReLU, one of each problem; on a CPU, one of each kind."""

from __future__ import annotations

import pytest
import torch
from conftest import Replay
from problems import contenders, distinct_layers, layer_problem
from races import problem_race
from settings import BATCHES, DEVICE, DTYPES

from fastres.measure.roofline import Layer

CPU_LAYERS = ("layer1.1.conv1", "layer2.1.conv2", "layer3.0.conv3", "layer4.0.conv2")
LAYERS = [
    layer
    for batch in BATCHES
    for layer in distinct_layers("resnet50", batch)
    if DEVICE.type != "cpu" or layer.name in CPU_LAYERS
]


@pytest.mark.parametrize("contender", contenders(DEVICE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.x[0]}x{layer.name}")
def test_conv(layer: Layer, dtype: torch.dtype, contender: str, replay: Replay) -> None:
    replay(problem_race(layer_problem, layer, name=layer.name, dtype=dtype), contender)
