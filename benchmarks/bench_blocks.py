"""ResNet-50's residual blocks: of each stage the projection block, which begins it, and an identity block."""

from __future__ import annotations

import pytest
import torch
from conftest import Replay
from problems import block_problem, contenders
from races import problem_race
from settings import BATCHES, DEVICE, DTYPES

BLOCKS = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
CPU_BLOCKS = ["layer2.0", "layer3.1"]


@pytest.mark.parametrize("contender", contenders(DEVICE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("block", BLOCKS if DEVICE.type != "cpu" else CPU_BLOCKS)
def test_block(block: str, batch: int, dtype: torch.dtype, contender: str, replay: Replay) -> None:
    replay(problem_race(block_problem, "resnet50", block, batch, name=block, dtype=dtype), contender)
