"""Whole models against torchvision; on a GPU, against torch.compile and as CUDA graphs too."""

from __future__ import annotations

import pytest
import torch
from conftest import Replay
from problems import contenders
from races import model_race
from settings import AGAINST, BATCHES, DEVICE, DTYPES, MODELS

from fastres.measure.workload import Workload

CONTENDERS = (*AGAINST, *contenders(DEVICE)[1:])


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("model", MODELS)
def test_model(model: str, batch: int, dtype: torch.dtype, contender: str, replay: Replay) -> None:
    replay(model_race(Workload(model, batch, dtype=dtype, device=DEVICE), CONTENDERS), contender)
