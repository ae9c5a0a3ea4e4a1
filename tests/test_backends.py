"""Which backend runs: precedence, names, fallback, and what `explain` says of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import image, small_pair
from test_ops import conv_bn_act, input_of, make_layer, reference
from tolerance import assert_right, assert_same_function, to_oracle
from torch import nn

import fastres
from fastres import tuning
from fastres.backends import ranking, registry, verification
from fastres.backends.reference import Reference

UNAVAILABLE = [name for name, reason in fastres.backends().items() if reason is not None]


def ran(model: nn.Module, x: torch.Tensor | None = None) -> set[str]:
    """Names of the backends that ran the convolutions."""
    return {layer.backend for layer in fastres.explain(model, image() if x is None else x).layers}


def reasons(model: nn.Module, x: torch.Tensor | None = None) -> set[str]:
    return {layer.reason for layer in fastres.explain(model, image() if x is None else x).layers}


def test_backends_lists_every_backend_with_the_reason_why_not() -> None:
    listed = fastres.backends()
    assert list(listed)[:3] == ["reference", "onednn", "cudnn"]
    assert listed["reference"] is None
    assert all(reason is None or reason for reason in listed.values())


def test_auto_takes_the_first_choice() -> None:
    ours, _ = small_pair()
    assert ran(ours) == {"onednn"}
    assert reasons(ours) == {"first choice for cpu", "as one with the convolution that it is added to"}


@pytest.mark.parametrize("name", ["onednn", "reference"])
def test_a_backend_by_name_runs_a_whole_model(name: str) -> None:
    ours, theirs = small_pair()
    with fastres.use_backend(name):
        assert_same_function(ours, theirs, image())
        assert ran(ours) == {name}
        assert reasons(ours) == {"asked for by name"}


# --- precedence


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """use_backend, then the model's, then the environment's, then auto."""
    ours, _ = small_pair()
    monkeypatch.setenv("FASTRES_BACKEND", "reference")
    assert ran(ours) == {"reference"}
    ours.backend = "onednn"
    assert ran(ours) == {"onednn"}
    with fastres.use_backend("reference"):
        assert ran(ours) == {"reference"}
        with fastres.use_backend("auto"):
            assert ran(ours) == {"onednn"}
            with fastres.use_backend("reference"):
                assert ran(ours) == {"reference"}
            assert ran(ours) == {"onednn"}
        assert ran(ours) == {"reference"}
    assert ran(ours) == {"onednn"}
    ours.backend = None
    assert ran(ours) == {"reference"}
    ours.backend = "auto"
    assert ran(ours) == {"onednn"}
    monkeypatch.delenv("FASTRES_BACKEND")
    assert ran(ours) == {"onednn"}


def test_a_backend_changed_between_two_forwards_is_respected() -> None:
    """The cached plan of a stage is one of a backend."""
    ours, theirs = small_pair()
    with torch.no_grad():
        first = ours(image())
        for name in ("reference", "onednn", "reference"):
            with fastres.use_backend(name):
                assert_same_function(ours, theirs, image())
                assert ran(ours) == {name}
    assert first.shape == (2, 1000)


def test_use_backend_is_undone_by_an_exception() -> None:
    ours, _ = small_pair()
    with pytest.raises(KeyError), fastres.use_backend("reference"):
        raise KeyError
    assert ran(ours) == {"onednn"}


def test_a_thread_does_not_inherit_use_backend() -> None:
    ours, _ = small_pair()
    seen: dict[str, set[str]] = {}
    with fastres.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.update(thread=ran(ours)))
        thread.start()
        thread.join()
        seen["here"] = ran(ours)
    assert seen == {"thread": {"onednn"}, "here": {"reference"}}


def test_tasks_do_not_disturb_each_other() -> None:
    ours, _ = small_pair()

    async def task(name: str) -> set[str]:
        with fastres.use_backend(name):
            await asyncio.sleep(0)
            return ran(ours)

    async def both() -> list[set[str]]:
        return await asyncio.gather(task("reference"), task("onednn"))

    assert asyncio.run(both()) == [{"reference"}, {"onednn"}]


def test_the_models_backend_reaches_every_part() -> None:
    ours = fastres.ResNet18(backend="reference").eval()
    assert ours.backend == "reference"
    assert ran(ours, image(1, 3, 32, 32)) == {"reference"}
    assert {m.backend_name for m in ours.modules() if hasattr(m, "backend_name")} == {"reference"}


# --- names that cannot be


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tensorrt', expected one of 'auto', 'plain', 'reference'"):
        fastres.use_backend("tensorrt").__enter__()


def test_unknown_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = small_pair()
    monkeypatch.setenv("FASTRES_BACKEND", "tensorrt")
    with torch.no_grad(), pytest.raises(ValueError, match="FASTRES_BACKEND: unknown backend 'tensorrt'"):
        ours(image())
    monkeypatch.setenv("FASTRES_BACKEND", "")
    assert_same_function(ours, theirs, image())


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_unavailable_backends_raise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"backend '{name}' is not available: "
    with pytest.raises(fastres.BackendError, match=message), fastres.use_backend(name):
        pass
    ours, theirs = small_pair()
    ours.backend = name  # for another machine, perhaps
    with torch.no_grad(), pytest.raises(fastres.BackendError, match=message):
        ours(image())
    ours.backend = None
    assert_same_function(ours, theirs, image())
    monkeypatch.setenv("FASTRES_BACKEND", name)
    with torch.no_grad(), pytest.raises(fastres.BackendError, match=message):
        ours(image())


# --- fallback


def test_a_named_backend_that_cannot_run_raises() -> None:
    ours, theirs = small_pair()
    for model in (ours, theirs):
        model.double()
    with (
        torch.no_grad(),
        fastres.use_backend("onednn"),
        pytest.raises(fastres.BackendError, match=r"does not run .*float64"),
    ):
        ours(image(dtype=torch.float64))


def test_auto_falls_back_and_explains() -> None:
    ours, _ = small_pair()
    assert ran(ours.double(), image(dtype=torch.float64)) == {"reference"}
    (reason,) = reasons(ours, image(dtype=torch.float64))
    assert "onednn: does not run torch.float64: expected float32, bfloat16 or float16" in reason
    assert all(name in reason for name in ranking.ORDER["cpu"] if name != "reference")


def test_pytorchs_own_switch_is_respected() -> None:
    ours, theirs = small_pair()
    assert_same_function(ours, theirs, image())
    with torch.backends.mkldnn.flags(enabled=False):
        assert ran(ours) == {"reference"}
        assert any("switched off by torch.backends.mkldnn.enabled" in reason for reason in reasons(ours))
        assert_same_function(ours, theirs, image())
        with torch.no_grad(), fastres.use_backend("onednn"), pytest.raises(fastres.BackendError, match="switched off"):
            ours(image())
    assert ran(ours) == {"onednn"}


def test_empty_batch() -> None:
    ours, _ = small_pair()
    assert ran(ours, image(0, 3, 32, 32)) == {"reference"}
    with torch.no_grad(), fastres.use_backend("onednn"), pytest.raises(fastres.BackendError, match="an empty batch"):
        ours(image(0, 3, 32, 32))


def test_a_projection_across_two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a backend runs one of a projection's convolutions, the other runs elsewhere and the two are added."""
    layer = make_layer(8, 16)
    shortcut, block_input = make_layer(4, 16, (1, 1), padding=(0, 0)), torch.randn(2, 4, 11, 11)
    x = input_of(layer)
    onednn = registry.get("onednn")

    def only_3x3(self: object, x: torch.Tensor, layer: object) -> str | None:
        return None if layer.weight.shape[2] == 3 else "not a 3x3"  # type: ignore[attr-defined]

    monkeypatch.setattr(type(onednn), "unsupported", only_3x3)
    result = torch.ops.fastres.projection(x, *layer.arguments(), block_input, *shortcut.arguments(), "")
    args = (x, layer, block_input, shortcut)
    assert_right(result, reference.projection(*args), reference.projection(*to_oracle(args)))


def test_a_backend_serves_a_direct_call() -> None:
    layer = make_layer()
    x = input_of(layer)
    for name in ("onednn", "reference"):
        result = conv_bn_act(x, layer, None, True, name)
        assert_right(result, reference.conv_bn_act(x, layer), reference.conv_bn_act(*to_oracle((x, layer))))


# --- several that could: the measured table, then the rule


NUMBERS = ranking.arithmetic(torch.float32)


class Fake(Reference):
    """Stands for a backend of our own kernels, on a CPU."""

    keeps_parameters = False  # so that plans with it are cached

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        return "v1"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Backends "fast" and "slow", verified here, behind "onednn"."""
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    for name in ("fast", "slow"):
        monkeypatch.setitem(registry._registered, name, Fake(name))
        verification.add(verification.Record(name, "cpu", "v1"))
    monkeypatch.setitem(ranking.ORDER, "cpu", ("onednn", "slow", "fast", "reference"))
    ranking.refresh()
    yield
    monkeypatch.undo()
    verification.records.cache_clear()
    ranking.refresh()


def operators(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Of each operator, the backend that ran the first convolution resolved as part of it, and why."""
    with torch.no_grad(), registry.recording() as choices:
        model(image())
    return {choice.operator: (choice.backend, choice.reason) for choice in reversed(choices)}


def keys(model: nn.Module) -> dict[str, str]:
    with torch.no_grad(), registry.recording() as choices:
        model(image())
    return {ranking.key(c.operator, c.x_shape, c.layer): c.operator for c in choices if c.layer is not None}


def test_the_measured_table_comes_before_the_rule(fakes: None) -> None:
    ours, theirs = small_pair()
    assert set(operators(ours).values()) >= {("onednn", "first choice for cpu")}
    winners = {key: "fast" for key, operator in keys(ours).items() if operator != "conv"}
    assert ranking.record(winners, NUMBERS, torch.device("cpu")) == ranking.user_table()
    by_operator = operators(ours)
    why = "the fastest here when `fastres tune` measured"
    assert by_operator["stem"] == by_operator["residual"] == by_operator["projection"] == ("fast", why)
    assert by_operator["shortcut"] == ("fast", "as one with the convolution that it is added to")
    assert by_operator["conv"][0] == "onednn"  # also in the plan of a stage that was made before
    assert_same_function(ours, theirs, image())
    assert ran(ours, image(1, 3, 64, 64)) == {"onednn"}  # another problem
    with fastres.use_backend("slow"):
        assert ran(ours) == {"slow"}


def test_a_plan_is_made_anew_when_the_table_changes(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = small_pair()
    calls: list[str] = []
    run = Reference.conv
    monkeypatch.setattr(Fake, "conv", lambda self, *args, **kw: calls.append(self.name) or run(self, *args, **kw))
    problems = keys(ours)
    with torch.no_grad():
        ours(image())
        assert calls == []
        ranking.record(dict.fromkeys(problems, "fast"), NUMBERS, torch.device("cpu"))
        ours(image())
        assert set(calls) == {"fast"}
        calls.clear()
        registry._registered["fast"].fingerprint = lambda: "v2"  # type: ignore[method-assign]
        verification.add(verification.Record("another", "cpu", "v1"))
        ours(image())
    assert calls == []


def test_the_fastest_does_not_run_unverified(fakes: None) -> None:
    ours, _ = small_pair()
    ranking.record(dict.fromkeys(keys(ours), "fast"), NUMBERS, torch.device("cpu"))
    registry._registered["fast"].fingerprint = lambda: "v2"  # type: ignore[method-assign]
    backend, reason = operators(ours)["stem"]
    assert backend == "onednn"
    assert (
        "fast: its kernels are not verified for inference on cpu: `fastres selftest --backend fast` does it" in reason
    )


def test_a_winner_that_is_gone_is_passed_over(fakes: None) -> None:
    ours, _ = small_pair()
    ranking.record(dict.fromkeys(keys(ours), "no such backend"), NUMBERS, torch.device("cpu"))
    assert ran(ours) == {"onednn"}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 1}', '{"version": 1, "measured": "", "fastest": 3}', "\xff"]
)
def test_a_damaged_ranking_is_passed_over(fakes: None, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = small_pair()
    monkeypatch.setattr(ranking, "_measured_with", lambda: "")
    ranking.user_table().write_text(content)
    ranking.refresh()
    with pytest.warns(UserWarning, match="cannot be used"):
        assert ran(ours) == {"onednn"}


def test_a_ranking_of_other_kernels_is_passed_over(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = small_pair()
    ranking.record(dict.fromkeys(keys(ours), "fast"), NUMBERS, torch.device("cpu"))
    monkeypatch.setattr(ranking, "_measured_with", lambda: "another")
    ranking.refresh()
    assert ran(ours) == {"onednn"}


@pytest.mark.parametrize(
    ("arch", "hopper", "conv", "stem"),
    [
        ("sm_80", False, "cudnn cuda triton reference", "cuda triton cudnn reference"),
        ("sm_90", False, "cudnn triton cuda reference", "triton cuda cudnn reference"),
        ("sm_90", True, "cudnn cuda triton reference", "cuda triton cudnn reference"),
        ("sm_100", True, "cudnn triton cuda reference", "triton cuda cudnn reference"),
        ("sm_120", True, "cudnn cuda triton reference", "cuda triton cudnn reference"),
    ],
)
def test_the_rule_on_a_gpu(arch: str, hopper: bool, conv: str, stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN first, but where ours save a pass over memory; of ours first those made for the GPU."""

    class OnGPU:
        device, is_cuda, dtype, shape = torch.device("cuda"), True, torch.bfloat16, (1, 8, 11, 11)

    monkeypatch.setattr(ranking, "architecture", lambda device: arch)
    monkeypatch.setattr(ranking, "_has_hopper_kernels", lambda: hopper)
    assert " ".join(ranking.order(ranking.CONV, OnGPU, make_layer())) == conv  # type: ignore[arg-type]
    for operator in ranking.ONE_PASS:
        assert " ".join(ranking.order(operator, OnGPU, make_layer())) == stem  # type: ignore[arg-type]


def test_tf32_follows_pytorchs_newer_switches() -> None:
    """The older switch raises once the newer ones say something that it cannot."""
    if not hasattr(torch.backends.cudnn, "conv"):
        return  # before torch 2.9 there is only the older
    before = torch.backends.cudnn.conv.fp32_precision
    ours, theirs = small_pair()
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cudnn.conv.fp32_precision = precision
            assert tuning.conv_tf32() == (precision == "tf32")
            assert_same_function(ours, theirs, image())
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
