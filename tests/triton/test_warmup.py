"""`warmup`: later forwards neither compile nor fold; the backend's standing where nothing can run it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from offline import target

import fastres
from fastres.backends import registry, verification


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def test_nothing_is_compiled_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fastres.ResNet18(num_classes=10, backend="triton").eval().half()
    x = torch.empty(2, 3, 64, 64, dtype=torch.float16)
    compilations: list[str] = []
    monkeypatch.setattr("triton.knobs.runtime.jit_post_compile_hook", lambda **kw: compilations.append(kw["repr"]))
    with target(80):
        fastres.warmup(model, x)
        warmed = len(compilations)
        assert warmed >= 5
        model.requires_grad_(False)(torch.empty(2, 3, 64, 64, dtype=torch.float16))
    assert len(compilations) == warmed


def test_refuses_what_it_would_change() -> None:
    model, x = fastres.ResNet18(), torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="expected one in evaluation mode"):
        fastres.warmup(model, x)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        fastres.warmup("resnet18", x)
    assert model.bn1.num_batches_tracked == 0


@pytest.mark.skipif(torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="it can run here")
def test_without_a_gpu_it_is_unavailable_and_says_why() -> None:
    assert fastres.backends()["triton"] == "no CUDA device, and TRITON_INTERPRET=1 is not set"
    with pytest.raises(fastres.BackendError, match="no CUDA device, and TRITON_INTERPRET=1 is not set"):
        fastres.ResNet18(backend="triton").eval().requires_grad_(False)(torch.randn(1, 3, 32, 32))


def test_what_a_user_should_know(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = registry._registered["triton"].fingerprint()
    assert fingerprint is not None
    assert len(fingerprint) == 16
    record = verification.Record("triton", "sm_90", fingerprint)
    monkeypatch.setattr(verification, "records", lambda: frozenset({record}))
    assert registry.notes()["triton"] == "verified on sm_90 (inference)"
    other = record._replace(fingerprint="0" * 16)
    monkeypatch.setattr(verification, "records", lambda: frozenset({other}))
    assert registry.notes()["triton"] == "emulated, not yet verified on hardware"


def test_old_gpus_are_refused() -> None:
    x = torch.empty(1, 3, 32, 32)
    model = fastres.ResNet18(backend="triton").eval().requires_grad_(False)
    with target(75), pytest.raises(fastres.BackendError, match=r"needs compute capability 8\.0 or later, cpu has 7\.5"):
        model(x)
