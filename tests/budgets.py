"""What a forward costs, counted rather than timed, against the table in budgets.json.

    python tests/budgets.py    renews the table: its diff is part of the review

Counted are: PyTorch's operators of a forward on a CPU, and the bytes of weights that it compares; launches and scratch
memory of a forward on a GPU, planned but not run; bytes of each plan; Python instructions that an operator call
executes on the host; modules that an import loads. None depends on the machine's speed. Instructions and modules are
budgets, rounded up; the others are exact.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastres
from fastres import fused
from fastres.backends import registry
from fastres.backends.plans import Work
from fastres.measure import traffic
from fastres.measure.roofline import Ceilings
from fastres.sampling import Sample

TABLE = Path(__file__).with_suffix(".json")
MODELS = ("resnet18", "resnet50", "resnext50_32x4d")
BATCHES = (1, 32)
MULTIPROCESSORS = 132  # an H100's
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Allocations and views come and go with PyTorch's releases; what computes or copies does not.
_FREE = ("aten::empty", "aten::resize_", "aten::view", "aten::as_strided", "aten::t", "aten::transpose", "aten::expand")


def operators() -> dict[str, dict[str, int]]:
    """By model, how often each operator of PyTorch's and ours runs in a warm float32 forward on backend `onednn`."""
    found = {}
    for name in MODELS:
        model = getattr(fastres, name)(backend="onednn").eval()
        x = torch.rand(1, 3, 32, 32)
        with torch.inference_mode():
            for _ in range(2):
                model(x)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
                model(x)
        counts = Counter(event.name for event in profiler.events() if "::" in event.name)
        found[name] = {name: count for name, count in sorted(counts.items()) if not name.startswith(_FREE)}
    return found


def compared_bytes() -> dict[str, int]:
    """By model, the bytes of its parameters and statistics that a warm forward compares on a CPU; see `sampling`."""
    found = {}
    for name in MODELS:
        model = getattr(fastres, name)(backend="onednn").eval()
        x = torch.rand(1, 3, 32, 32)
        with torch.inference_mode(), mock.patch.object(Sample, "same", autospec=True, side_effect=Sample.same) as asked:
            model(x)
            asked.reset_mock()
            model(x)
        found[name] = sum(call.args[0].nbytes for call in asked.call_args_list)
    return found


def cuda_launches(emulator: str) -> dict[str, dict[str, int]]:
    """Of a bfloat16 forward on our CUDA kernels, but for the head: launches by kernel's family, and bytes of scratch
    memory."""
    backend = registry.get(emulator)
    found = {}
    head = mock.patch.object(backend, "head", lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]))
    with _planned(backend) as works, head:
        for name, batch in _forwards(backend.name):
            scratch = sum(tensor.nbytes for work in works for tensor in work.scratch)
            found[f"{name}, batch {batch}"] = {**_by_family(works), "scratch bytes": scratch}
            works.clear()
    return found


def training_launches() -> dict[str, dict[str, int]]:
    """Of a bfloat16 training step on our CUDA kernels, as on an H100: launches by kernel's family. A step has one batch
    and size: what is launched does not depend on them, as long as no sum is split."""
    backend = registry.get("emulator_sm90")
    found = {}
    with _planned(backend) as works:
        for name in MODELS:
            model = getattr(fastres, name)(backend=backend.name).train().bfloat16()
            model(torch.rand(8, 3, 64, 64, dtype=torch.bfloat16)).sum().backward()
            found[name] = _by_family(works)
            works.clear()
    return found


@contextmanager
def _planned(backend: Any) -> Iterator[list[Work]]:
    """What `backend` is given to run, and does not."""
    works: list[Work] = []

    def plan_only(work: Work) -> Tensor:
        works.append(work)
        return work.result.zero_()

    with mock.patch.object(backend, "run", plan_only):
        yield works


def _by_family(works: list[Work]) -> dict[str, int]:
    return dict(sorted(Counter(plan.ptx for work in works for plan in work.plans).items()))


def triton_launches() -> dict[str, dict[str, int]]:
    """Of a bfloat16 forward on our Triton kernels, as on an H100: launches by kernel."""
    from triton.runtime.jit import JITFunction

    from fastres.emulator.triton import emulated

    counts: Counter[str] = Counter()

    def count(kernel: Any, *args: Any, **kwargs: Any) -> None:
        counts[kernel.fn.__name__] += 1

    found = {}
    with emulated(90, multiprocessors=MULTIPROCESSORS), mock.patch.object(JITFunction, "run", count):
        for name, batch in _forwards("triton"):
            found[f"{name}, batch {batch}"] = dict(sorted(counts.items()))
            counts.clear()
    return found


def _forwards(backend: str) -> Iterator[tuple[str, int]]:
    """Runs each model on each batch, at 224 pixels."""
    for name in MODELS:
        model = getattr(fastres, name)(backend=backend).eval().bfloat16()
        for batch in BATCHES:
            with torch.inference_mode():
                model(torch.empty(batch, 3, 224, 224, dtype=torch.bfloat16))
            yield name, batch


def plan_bytes() -> dict[str, dict[str, int]]:
    """By model, the bytes that each plan moves in a bfloat16 forward of 32 images, and its kernels."""
    found = {}
    for name in MODELS:
        plans = traffic.summary(traffic.steps(name, 32, 224), torch.bfloat16, Ceilings(1.0, 1.0))
        found[name] = {plan: int(of["bytes"]) for plan, of in plans.items()}
    return found


def instructions() -> dict[str, int]:
    """Python instructions executed by a warm call: of one convolution's operator, of what a block is written in, and of
    a whole ResNet-18's stages as one operator."""
    layer = fastres.resnet18(backend="onednn").eval()
    block: Any = layer.layer1[0]
    x = torch.rand(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    stages = list(layer.layer1) + list(layer.layer2) + list(layer.layer3) + list(layer.layer4)
    calls: dict[str, Callable[[], Any]] = {
        "conv_bn_act": lambda: fused.conv_bn_act(x, block.conv1, block.bn1, backend="onednn"),
        "conv_bn_act with residual": lambda: fused.conv_bn_act(x, block.conv1, block.bn1, x, backend="onednn"),
        "stage of 8 blocks": lambda: fused.stage(x, stages, backend="onednn"),
        "head": lambda: fused.head(x, nn_pool, nn_fc, backend=""),
    }
    nn_pool, nn_fc = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)
    with torch.inference_mode():
        return {name: _executed(call) for name, call in calls.items()}


def _executed(call: Callable[[], Any]) -> int:
    for _ in range(3):
        call()
    counted = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal counted
        counted += event == "opcode"
        return local

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return local

    with _quiet():
        before = sys.gettrace()
        sys.settrace(enter)
        try:
            call()
        finally:
            sys.settrace(before)
    return counted


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection, whose callbacks would count."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def imports() -> dict[str, Any]:
    """What `import fastres` loads when torch and torchvision are there: how many modules, and of whose packages."""
    program = (
        "import sys, torch, torchvision; before = set(sys.modules); import fastres; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    return {"modules": len(loaded), "packages": sorted(packages - {"torch", "torchvision"})}


EXACT: dict[str, Callable[[], Any]] = {
    "operators of a CPU forward": operators,
    "bytes compared in a CPU forward": compared_bytes,
    "CUDA kernels of a forward": partial(cuda_launches, "emulator"),
    "CUDA kernels of a forward on an H100": partial(cuda_launches, "emulator_sm90"),
    "CUDA kernels of a training step on an H100": training_launches,
    "Triton kernels of a forward": triton_launches,
    "bytes of a plan": plan_bytes,
}


def table() -> dict[str, Any]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _budget(count: int, step: int) -> int:
    """A multiple of `step` at least 3 % over `count`: room for a line or a module, not for a habit."""
    return math.ceil(1.03 * count / step) * step


def main() -> None:
    made = {name: count() for name, count in EXACT.items()}
    made["instructions of a call"] = {"python": PYTHON, **{name: _budget(n, 100) for name, n in instructions().items()}}
    found = imports()
    made["import"] = {**found, "modules": _budget(found["modules"], 10)}
    TABLE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
