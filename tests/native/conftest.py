"""Where the tests of the CUDA kernels run them: in the emulator, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastres.backends.cuda import Cuda
from fastres.backends.emulator import emulate
from fastres.backends.plans import Work

Run = Callable[[Work], Tensor]


def _emulated(work: Work) -> Tensor:
    emulate(work)
    return work.result


@pytest.fixture(params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> tuple[torch.device, Run]:
    """The device that a kernel's tensors are on, and what runs its launches there."""
    if request.param == "cuda":
        return torch.device("cuda"), Cuda().run
    return torch.device("cpu"), _emulated
