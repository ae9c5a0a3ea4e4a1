"""The backend behind the operators: whole networks, what it refuses, what `explain` says of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from problems import DEVICE, INTERPRETED
from tolerance import assert_right, to_oracle
from torch import nn

import fastres
from fastres.backends import verification


class Network(fastres.ResNet):
    """A ResNet of two narrow stages; batch norms as training leaves them, not as they start."""

    def __init__(self, block: type[nn.Module], width: int = 16, **arguments: Any) -> None:
        super().__init__(block, [1, 1, 1, 1], num_classes=10, **arguments)
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.inplanes = width
        self.layer1 = self._make_layer(block, width, 2)
        self.layer2 = self._make_layer(block, width, 2, stride=2)
        self.layer3 = self.layer4 = type(self.layer1)()
        self.fc = nn.Linear(width * block.expansion, 10)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
        self.eval()


@pytest.mark.parametrize(
    ("block", "arguments"),
    [
        (fastres.BasicBlock, {}),
        (fastres.Bottleneck, {}),
        (fastres.Bottleneck, {"groups": 8, "width_per_group": 16}),
    ],
    ids=["basic", "bottleneck", "grouped"],
)
def test_network(block: type[nn.Module], arguments: dict[str, int]) -> None:
    model, x = Network(block, **arguments), torch.randn(2, 3, 33, 34)
    with torch.inference_mode():
        with fastres.use_backend("reference"):
            plain, oracle = model(x), to_oracle(model)(x.double())
        fused = copy.deepcopy(model).to(DEVICE)
        with fastres.use_backend("triton"):
            assert_right(fused(x.to(DEVICE)), plain, oracle)


def test_8_bit_pixels() -> None:
    model, x = Network(fastres.BasicBlock, input="uint8"), torch.randint(0, 256, (2, 3, 33, 34), dtype=torch.uint8)
    with torch.inference_mode():
        with fastres.use_backend("reference"):
            plain, oracle = model(x), to_oracle(model)(x)
        with fastres.use_backend("triton"):
            assert_right(copy.deepcopy(model).to(DEVICE)(x.to(DEVICE)), plain, oracle)


def test_explain_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "records", frozenset)
    model, x = Network(fastres.BasicBlock).to(DEVICE), torch.randn(1, 3, 32, 32, device=DEVICE)
    with fastres.use_backend("triton"):
        explanation = fastres.explain(model, x)
    assert {layer.backend for layer in explanation.layers} == {"triton"}
    assert "triton: emulated, not yet verified on hardware" in str(explanation)


def test_auto_passes_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing has verified it: on this GPU something may have."""
    monkeypatch.setattr(verification, "records", frozenset)
    assert fastres.backends()["triton"] is None
    model, x = Network(fastres.BasicBlock).to(DEVICE), torch.randn(1, 3, 32, 32, device=DEVICE)
    assert "triton" not in {layer.backend for layer in fastres.explain(model, x).layers}


def test_refuses_what_it_cannot_compute() -> None:
    model = Network(fastres.BasicBlock).double().to(DEVICE)
    x = torch.randn(1, 3, 32, 32, device=DEVICE, dtype=torch.float64)
    with fastres.use_backend("triton"), torch.no_grad():
        with pytest.raises(fastres.BackendError, match=r"does not run torch\.float64"):
            model(x)
        with pytest.raises(fastres.BackendError, match=r"cannot run the classifier: does not run torch\.float64"):
            torch.ops.fastres.head(x, torch.ones(4, 3, device=DEVICE).double(), None, "triton")


@pytest.mark.skipif(not INTERPRETED, reason="a GPU computes in bfloat16")
def test_the_interpreter_s_bfloat16_is_refused() -> None:
    model = Network(fastres.BasicBlock).bfloat16()
    refused = pytest.raises(fastres.BackendError, match="interpreter does not compute in bfloat16")
    with fastres.use_backend("triton"), torch.no_grad(), refused:
        model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
