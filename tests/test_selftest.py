"""The cases that verify a backend catch a wrong one, and `auto` runs our kernels only where a record says they may."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastres
from fastres import selftest, tf32
from fastres.backends import cuda, ranking, registry, training, verification
from fastres.backends.reference import Reference
from fastres.backends.reference_steps import ReferenceSteps
from fastres.cli import main
from fastres.measure import training_parity
from fastres.tuning import conv_tf32

CPU = torch.device("cpu")


class Ours(Reference):
    """Stands for a backend of our own kernels."""

    name = "ours"
    sources = "v1"

    def fingerprint(self) -> str:
        return self.sources


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ours:
    backend = Ours()
    monkeypatch.setitem(registry._registered, "ours", backend)
    monkeypatch.setitem(ranking.ORDER, "cpu", ("ours", *ranking.ORDER["cpu"]))
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    verification.records.cache_clear()
    yield backend
    verification.records.cache_clear()


def chosen() -> tuple[str, str]:
    """What `auto` runs a convolution on, and the reason given."""
    case = next(selftest.cases([torch.float32]))
    x, layer, _ = selftest._problem(case)
    with registry.recording() as choices:
        registry.resolve(x, layer)
    return choices[0].backend, choices[0].reason


@pytest.mark.parametrize("dtype", selftest.FLOATS, ids=str)
def test_every_backend_of_this_machine_passes(backend: str, dtype: torch.dtype) -> None:
    device = torch.get_default_device()  # the GPU for what needs one
    outcomes = [selftest.run(case, backend, device) for case in selftest.cases([dtype], device.type)]
    assert not [f"{o.case}: {o.detail}" for o in outcomes if o.status == selftest.FAILED]
    assert any(o.status == selftest.PASSED for o in outcomes)
    if backend == "reference":
        assert all(o.status == selftest.PASSED for o in outcomes)


class DropsResidual(Ours):
    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        return super().conv(x, prepared, relu)


class LosesNaN(Ours):
    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        return super().conv(x, prepared, relu, residual).nan_to_num(0)


class LeavesACorner(Ours):
    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        y = super().conv(x, prepared, relu, residual)
        y[-1, -1, -1, -1] = torch.empty(1)[0] if y.shape[1] % 8 == 0 else float("nan")
        return y


class Rounds(Ours):
    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        return super().conv(x.bfloat16().to(x.dtype), prepared, relu, residual)


class Breaks(Ours):
    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        raise RuntimeError("CUDA error: misaligned address\nsecond line")


class OverwritesWhatItReads(Ours):
    """Right until the residual may be written over."""

    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        if overwrite and residual is not None:
            residual.zero_()
        return super().conv(x, prepared, relu, residual)


@pytest.mark.parametrize("wrong", [OverwritesWhatItReads, DropsResidual, LosesNaN, LeavesACorner, Rounds, Breaks])
def test_a_wrong_backend_fails(ours: Ours, monkeypatch: pytest.MonkeyPatch, wrong: type[Ours]) -> None:
    monkeypatch.setitem(registry._registered, "ours", wrong())
    monkeypatch.setattr(verification, "architecture", lambda device: "sm_90")
    outcomes = [selftest.run(case, "ours", CPU) for case in selftest.cases([torch.float32])]
    assert any(o.status == selftest.FAILED for o in outcomes)
    works = [record.work for record in selftest.verify("ours", torch.device("cuda"), outcomes)]
    assert verification.INFERENCE not in works


def test_auto_waits_for_a_record(ours: Ours) -> None:
    backend, reason = chosen()
    assert backend == "onednn"
    assert "ours: its kernels are not verified for inference on cpu" in reason
    verification.add(verification.Record("ours", "cpu", "v1"))
    assert chosen()[0] == "ours"
    ours.sources = "v2"
    assert chosen()[0] == "onednn"


def test_float32_on_a_gpu_is_two_arithmetics(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Listens(Ours):
        def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
            seen.append(conv_tf32())
            return super().conv(x, prepared, relu, residual)

    monkeypatch.setitem(registry._registered, "ours", Listens())
    exact, cut = ([c for c in selftest.cases([torch.float32], "cuda") if c.tf32 == tf32] for tf32 in (False, True))
    assert [replace(case, tf32=False) for case in cut] == [case for case in exact if case.operator != "head"]
    assert exact == list(selftest.cases([torch.float32], "cpu"))
    before = conv_tf32()
    assert {selftest.run(case, "ours", CPU).status for case in (exact[0], cut[0], exact[1])} == {selftest.PASSED}
    assert (seen, conv_tf32()) == ([False, True, False], before)
    assert str(cut[0]) == "conv_bn_act tf32 2x64x15x17 1x1 to 256 [relu]"


@pytest.mark.parametrize("allow", [False, True])
def test_cuda_declines_float32_where_tf32_is_forbidden(allow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        device, is_cuda, dtype, shape = torch.device("cuda", 0), True, torch.float32, (1, 8, 11, 11)

        def numel(self) -> int:
            return 8 * 121

    monkeypatch.setattr(cuda, "_properties", lambda index: ((9, 0), 132))
    geometry = selftest.Convolution(1, 8, 11, 11, 8)
    with tf32.allowed(allow):
        why = cuda.Cuda().unsupported(OnGPU(), selftest.layer(geometry, torch.Generator()))  # type: ignore[arg-type]
    assert why == (None if allow else "computes float32 in TF32, which torch.backends.cudnn.allow_tf32 forbids")


def test_auto_trains_by_what_is_verified(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.ORDER, "cpu", ("triton", "ours"))  # as on a GPU

    def trained_by(dtype: torch.dtype) -> set[tuple[str, str]]:
        model = fastres.BasicBlock(16, 16).to(dtype)
        with registry.recording() as choices:
            model(torch.randn(2, 16, 8, 8, dtype=dtype))
        return {(choice.backend, choice.reason.rpartition("; ")[2]) for choice in choices}

    why = "ours: its kernels are not verified for training on cpu: `fastres selftest --backend ours` does it"
    assert trained_by(torch.float32) == {("plain", why)}
    verification.add(verification.Record("ours", "cpu", "v1"))  # of inference
    assert trained_by(torch.float32) == {("plain", why)}
    verification.add(verification.Record("ours", "cpu", "v1", verification.TRAINING))
    missing = f"triton: {registry.backends()['triton']}"
    assert trained_by(torch.float32) == {("ours", missing)}
    monkeypatch.setattr(Ours, "unsupported", lambda self, x, layer: f"does not run {x.dtype}")
    assert trained_by(torch.float64) == {("reference", "ours: does not run torch.float64")}
    with fastres.use_backend("ours"), pytest.raises(fastres.BackendError, match="cannot run this training step: does"):
        trained_by(torch.float64)
    ours.sources = "v2"
    assert trained_by(torch.float32) == {("plain", why)}


class Trains(ReferenceSteps):
    """Wrong in one pass: `wrong` changes its result."""

    def __init__(self, name: str, wrong: Any) -> None:
        right = getattr(super(), name)
        setattr(self, name, lambda *args, **kwargs: wrong(right(*args, **kwargs)))


WRONG_PASSES = {
    "a mask": ("apply", lambda out: out.where(out > out.abs().amax() * 1e-2, 0)),
    "statistics": ("conv", lambda found: (found[0], found[1] * torch.tensor([1, 1, 1.01]))),
    "dx": ("dgrad", lambda dx: dx.roll(1, 3)),
    "a corner of dx": ("dgrad", lambda dx: dx.index_fill(0, torch.tensor([1]), 0)),
    "dw": ("wgrad", lambda dw: dw.flip(2)),
    "sums": ("gradient_sums", lambda sums: sums * torch.tensor([1, 1.001])),
    "NaN": ("bn_backward", lambda found: (found[0].index_fill(1, torch.tensor([5]), float("nan")), found[1])),
}


@pytest.mark.parametrize(("name", "wrong"), WRONG_PASSES.values(), ids=WRONG_PASSES)
def test_a_wrong_pass_fails(ours: Ours, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any) -> None:
    cases = [case for case in selftest.cases([torch.float32, torch.bfloat16]) if case.trains]
    right = [selftest.run(case, "ours", CPU) for case in cases]
    assert {outcome.status for outcome in right} == {selftest.PASSED}
    monkeypatch.setattr(Ours, "steps", lambda self: Trains(name, wrong))
    assert any(selftest.run(case, "ours", CPU).status == selftest.FAILED for case in cases)


def test_a_backend_that_does_not_train_says_so() -> None:
    case = next(case for case in selftest.cases([torch.float32]) if case.trains)
    outcome = selftest.run(case, "onednn", CPU)
    assert (outcome.status, outcome.detail) == (selftest.DECLINED, "backend 'onednn' does not train")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_rounding_turns_a_relu_of_the_trained_blocks_over(dtype: torch.dtype) -> None:
    """Every mask has zeros and ones, and is the oracle's."""
    for case in selftest.cases([dtype]):
        if case.trains:
            given = selftest._trained(case)
            exact = [selftest._to(value, CPU, torch.float64) for value in given]
            masks = [training_parity.plain(*inputs)["output"][0] > 0 for inputs in (given, exact)]
            assert torch.equal(*masks), case
            assert 0.1 < masks[0].double().mean() < 1


def test_a_name_needs_no_record(ours: Ours) -> None:
    case = next(selftest.cases([torch.float32]))
    x, layer, _ = selftest._problem(case)
    assert registry.resolve(x, layer, "ours") is ours


def test_a_cpu_verifies_nothing(ours: Ours) -> None:
    outcomes = [selftest.run(case, "ours", CPU) for case in list(selftest.cases([torch.float32]))[:3]]
    assert selftest.verify("ours", CPU, outcomes) == []


def test_inference_and_training_are_verified_each_for_itself(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "architecture", lambda device: "sm_90")
    every = [selftest.Outcome(case, selftest.PASSED, "") for case in selftest.cases([torch.float32])]

    def verified(outcomes: list[selftest.Outcome]) -> list[str]:
        return [record.work for record in selftest.verify("ours", torch.device("cuda"), outcomes)]

    assert verified(every) == ["inference", "training"]
    for failing, left in ((True, ["inference"]), (False, ["training"])):
        at = next(i for i, outcome in enumerate(every) if outcome.case.trains == failing)
        broken = replace(every[at], status=selftest.FAILED)
        assert verified([*every[:at], broken, *every[at + 1 :]]) == left


def test_records_accumulate(ours: Ours) -> None:
    verification.add(verification.Record("ours", "sm_80", "v1"))
    path = verification.add(verification.Record("ours", "sm_90", "v1"))
    assert path == verification.local_path()
    assert [entry["architecture"] for entry in json.loads(path.read_text())] == ["sm_80", "sm_90"]
    assert {file.name for file in path.parent.iterdir()} == {path.name, ".lock"}


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"backend": "ours"}]', '"text"', "\xff\xfe"])
def test_a_damaged_file_is_empty_with_a_warning(ours: Ours, content: str) -> None:
    path = verification.local_path()
    path.write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match="taken as empty"):
        assert chosen()[0] == "onednn"
    with pytest.warns(UserWarning, match="taken as empty"):
        verification.add(verification.Record("ours", "cpu", "v1"))
    assert chosen()[0] == "ours"


def test_command(ours: Ours, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--backend", "ours", "--dtype", "float32", "--device", "cpu"]) == 0
    assert "ours on cpu: 68 passed" in capsys.readouterr().out


def test_command_of_some_cases_records_nothing(
    ours: Ours, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "verify", lambda *args: pytest.fail("a few cases verify nothing"))
    assert main(["selftest", "--backend", "ours", "--device", "cpu", "--match", "stem_uint8 float32", "1x2048"]) == 0
    assert "ours on cpu: 5 passed" in capsys.readouterr().out
    assert main(["selftest", "--backend", "ours", "--match", "no such case"]) == 2
    assert "argument --match: no case has 'no such case'" in capsys.readouterr().err


def test_command_fails_with_the_cases_named(
    ours: Ours, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry._registered, "ours", Breaks())
    assert main(["selftest", "--backend", "ours", "--dtype", "float32", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "ours: FAILED conv_bn_act float32 2x64x15x17 1x1 to 256 [relu]: CUDA error: misaligned address\n" in out
    assert "second line" not in out


def test_command_rejects_auto(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--backend", "auto"]) == 2
    assert "--backend" in capsys.readouterr().err
