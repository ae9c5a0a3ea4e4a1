"""Whole networks through the compiled kernels, in bfloat16, on the emulator: every launch, checked byte by byte.

The kernels one by one are in `emulator/test_fastres_kernels.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tolerance import assert_right, to_oracle
from torch import nn

import fastres
from fastres.emulator.triton import emulated


@pytest.mark.parametrize(
    ("name", "arch", "instruction"), [("ResNet18", 80, "mma.sync"), ("ResNet50", 90, "wgmma.mma_async")]
)
def test_resnet(name: str, arch: int, instruction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model = getattr(fastres, name)(num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as training leaves them, not as they start
            nn.init.uniform_(module.weight, -0.5, 1)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    model, x = model.bfloat16(), torch.randn(1, 3, 64, 64).bfloat16()
    with torch.inference_mode():
        with fastres.use_backend("reference"):
            plain, oracle = copy.deepcopy(model)(x), to_oracle(model)(to_oracle(x))
        with emulated(arch) as reports, fastres.use_backend("triton"):
            result = model(x)
    assert_right(result, plain, oracle)
    convolutions = [layer for layer, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    shortcuts = [layer for layer in convolutions if "downsample" in layer]  # computed with their block's last one
    assert len(reports) == len(convolutions) - len(shortcuts) + 2  # and the head's pooling and product
    assert all(report.findings == () for report in reports)
    multiplied = [any(opcode.startswith(instruction) for opcode in report.instructions) for report in reports]
    assert multiplied.count(False) == 1  # the pooling
