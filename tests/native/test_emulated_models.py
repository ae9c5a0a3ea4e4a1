"""Backends `emulator` and `emulator_sm90`: the selftest and whole models, through the CUDA kernels with no GPU."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from steps import step
from torch import nn

import fastres
from fastres import fused, selftest
from fastres.backends import ranking, registry
from fastres.measure import parity

HALVES = (torch.bfloat16, torch.float16)
BACKENDS = {"emulator": "conv_sm80", "emulator_sm90": "conv_sm90"}  # and the kernel of every convolution but the stem


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_case_of_the_selftest(backend: str, dtype: torch.dtype) -> None:
    outcomes = [selftest.run(case, backend, torch.device("cpu")) for case in selftest.cases([dtype])]
    assert {outcome.status for outcome in outcomes} == {selftest.PASSED}, outcomes


def _randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize(
    ("backend", "name", "dtype"),
    [
        ("emulator", "resnet18", torch.bfloat16),
        ("emulator", "resnet50", torch.float16),
        ("emulator_sm90", "resnet50", torch.bfloat16),
    ],
)
def test_a_whole_model(backend: str, name: str, dtype: torch.dtype) -> None:
    model = getattr(fastres, name)(num_classes=10).eval()
    _randomise(model)
    model = model.to(dtype)
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    with torch.inference_mode():
        with fastres.use_backend(backend):
            emulated = model(x)
            report = fastres.explain(model, x)
        with fastres.use_backend("reference"):
            baseline = model(x)
            exact = model.double()(x.double())
    assert {layer.backend for layer in report.layers} == {backend}
    assert [layer.kernel for layer in report.layers] == ["stem"] + [BACKENDS[backend]] * (len(report.layers) - 1)
    assert f"{backend} {BACKENDS[backend]} " in str(report)
    parity.check(emulated, exact, baseline)


@pytest.mark.parametrize(
    ("name", "layer", "dtype"),
    [
        ("resnet18", "layer1", torch.bfloat16),
        ("resnet18", "layer2", torch.float16),
        ("resnet50", "layer2", torch.bfloat16),
        ("resnext50_32x4d", "layer1", torch.bfloat16),
    ],
)
def test_a_training_step_of_a_block(name: str, layer: str, dtype: torch.dtype) -> None:
    """Identity and projection, both kinds of blocks, at strides and in groups.

    The baseline is the same passes in PyTorch's operators: a ReLU whose argument is within rounding of zero passes
    another gradient where it is rounded elsewhere, and with so few pixels one of them shows.
    """
    theirs = getattr(getattr(torchvision.models, name)(), layer)[0]
    _randomise(theirs)
    ours = getattr(getattr(fastres, name)(), layer)[0]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, theirs.conv1.in_channels, 6, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = step(theirs.double(), x.double())
    found = {}
    for backend in ("emulator", "reference"):
        model = copy.deepcopy(ours).to(dtype)
        with fastres.use_backend(backend):
            found[backend] = step(model, x)
            assert {layer.backend for layer in fastres.explain(model, x).layers} == {backend}
    for key, right in exact.items():
        parity.check(found["emulator"][key].to(dtype), right.double(), found["reference"][key].to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_training_step_of_the_stem(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its max pool, forward and backward, in kernels of its own; baseline as above."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
            self.ours = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.ours:
                return fused.stem(x, self.conv, self.bn, self.relu, self.pool)
            return self.pool(self.relu(self.bn(self.conv(x))))

    theirs = Stem()
    _randomise(theirs)
    ours, theirs.ours = copy.deepcopy(theirs), False
    x = torch.randn(2, 3, 19, 22).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = step(theirs.double(), x.double())
    launched: list[str] = []
    emulator = registry.get("emulator")
    run = emulator.run
    monkeypatch.setattr(emulator, "run", lambda work: launched.extend(p.symbol for p in work.plans) or run(work))
    found = {}
    for backend in ("emulator", "reference"):
        with fastres.use_backend(backend):
            found[backend] = step(copy.deepcopy(ours).to(dtype), x)
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    pooling = [symbol for symbol in launched if symbol.startswith("bn_pool")]
    assert pooling == [f"bn_pool_{pass_}{kind}_3x3s2" for pass_ in ("", "taps_", "gather_")]
    assert not any(symbol.startswith("bn_apply") for symbol in launched)
    for key, right in exact.items():
        parity.check(found["emulator"][key].to(dtype), right.double(), found["reference"][key].to(dtype))


def test_a_training_step_in_float32_is_refused() -> None:
    with fastres.use_backend("emulator"), pytest.raises(fastres.BackendError, match="float32 in TF32"):
        fastres.resnet18()(torch.randn(2, 3, 32, 32))


def test_float32_is_refused() -> None:
    model = fastres.resnet18().eval()
    with (
        torch.inference_mode(),
        fastres.use_backend("emulator"),
        pytest.raises(fastres.BackendError, match="float32 in TF32"),
    ):
        model(torch.randn(1, 3, 32, 32))


def test_no_gpu_kernel_is_chosen_unverified() -> None:
    assert not any("emulator" in names for names in ranking.ORDER.values())
    assert registry._registered["cuda"].fingerprint() is not None
