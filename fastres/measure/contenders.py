"""Who is measured: ways to run one torchvision ResNet, each at its best settings.

A contender's name is one of `NAMES`, `fastres:BACKEND`, `fastres-graph:BACKEND`, or `module:function` of a function of
your own with the signature of `Build`.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import capture, optimize
from ..backends import registry
from .workload import Workload

Forward = Callable[[], Tensor]
Build = Callable[[nn.Module, Tensor], Forward]  # a model in evaluation mode and its input, both NCHW and on the device

FASTRES, FASTRES_GRAPH = "fastres", "fastres-graph"


@dataclass(frozen=True)
class Contender:
    """A way to run a model: `build` makes a forward of it, `unavailable` says why there can be none, or None.

    `needs` are the packages that it imports.
    """

    name: str
    build: Build
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    sees_tensors: bool = True  # whether its memory comes from PyTorch's allocators
    trains: bool = False
    graph: bool = False  # a forward is a CUDA graph by itself; a training step is captured whole

    def unavailable(self, workload: Workload) -> str | None:
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        if workload.device.type not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        if workload.train and not self.trains:
            return "does not train"
        if workload.dtype not in self.dtypes:
            return f"set up for {' and '.join(str(d).removeprefix('torch.') for d in self.dtypes)} only"
        return None


def use_best_settings() -> None:
    """PyTorch's own, for this whole process: cuDNN times its algorithms and keeps the fastest."""
    torch.backends.cudnn.benchmark = True


def channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _eager(model: nn.Module, x: Tensor) -> Forward:
    return lambda: model(x)


def _eager_channels_last(model: nn.Module, x: Tensor) -> Forward:
    return _eager(*channels_last(model, x))


def _fastres(backend: str | None) -> Build:
    def build(model: nn.Module, x: Tensor) -> Forward:
        return _eager(*channels_last(optimize(model, backend=backend), x))

    return build


def _compile(freezing: bool = False, **options: Any) -> Build:
    def build(model: nn.Module, x: Tensor) -> Forward:
        import torch._inductor.config as inductor

        model, x = channels_last(model, x)
        compiled = torch.compile(model, dynamic=False, **options)
        with inductor.patch(freezing=freezing), torch.no_grad():
            compiled(x)  # compiles, so that the setting holds
        return lambda: compiled(x)

    return build


def _fastres_graph(backend: str | None) -> Build:
    def build(model: nn.Module, x: Tensor) -> Forward:
        return _graph(*channels_last(optimize(model, backend=backend), x))

    return build


def _eager_graph(model: nn.Module, x: Tensor) -> Forward:
    return _graph(*channels_last(model, x))


def _graph(model: nn.Module, x: Tensor) -> Forward:
    if model.training:
        return _eager(model, x)
    replay = capture(model, x)
    return lambda: replay(x)


def _onnx(model: nn.Module, x: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no package beside onnx calls itself legacy
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], output_names=["y"])


def _onnxruntime(model: nn.Module, x: Tensor) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads spin inside a run, but not after it, into another contender's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _onnx(model, x, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = x.numpy()
    return lambda: torch.from_numpy(session.run(None, {"x": image})[0])


def _openvino(model: nn.Module, x: Tensor) -> Forward:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bfloat16 where the processor has it
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"  # not its own converter of PyTorch models, which reports to its makers
        _onnx(model, x, path)
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    image = x.numpy()
    return lambda: torch.from_numpy(request.infer([image], share_inputs=True)[0])


def _tensorrt(model: nn.Module, x: Tensor) -> Forward:
    import torch_tensorrt

    model, x = channels_last(model, x)
    # Its best: the whole graph, kernels timed at length, in the model's precision; TF32 as PyTorch is told.
    settings = {"enabled_precisions": {x.dtype}, "optimization_level": 5, "require_full_compilation": True}
    compiled = torch_tensorrt.compile(
        model, ir="dynamo", inputs=[x], disable_tf32=not torch.backends.cudnn.allow_tf32, **settings
    )
    return lambda: compiled(x)


_CPU_RUNTIME: dict[str, Any] = {"devices": ("cpu",), "dtypes": (torch.float32,), "sees_tensors": False}
_GRAPH: dict[str, Any] = {"devices": ("cuda",), "trains": True, "graph": True}
_ALL = (
    Contender(FASTRES, _fastres(None), trains=True),
    Contender("eager", _eager, trains=True),
    Contender("eager-channels-last", _eager_channels_last, trains=True),
    Contender("compile", _compile(), trains=True),
    Contender("compile-freezing", _compile(freezing=True)),
    Contender("compile-max-autotune", _compile(mode="max-autotune")),
    Contender(FASTRES_GRAPH, _fastres_graph(None), **_GRAPH),
    Contender("eager-graph", _eager_graph, **_GRAPH),
    Contender("tensorrt", _tensorrt, ("torch_tensorrt", "tensorrt"), devices=("cuda",), sees_tensors=False),
    Contender("onnxruntime", _onnxruntime, ("onnx", "onnxruntime"), **_CPU_RUNTIME),
    Contender("openvino", _openvino, ("onnx", "openvino"), **_CPU_RUNTIME),
)
_BY_NAME = {contender.name: contender for contender in _ALL}
NAMES = tuple(_BY_NAME)


def get(name: str) -> Contender:
    """The contender of this name. Raises ValueError, naming the choices, where there is none."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    prefix, colon, rest = name.partition(":")
    if colon and prefix in (FASTRES, FASTRES_GRAPH):
        registry.check_name(rest)
        if prefix == FASTRES:
            return Contender(name, _fastres(rest), trains=True)
        return Contender(name, _fastres_graph(rest), **_GRAPH)
    if colon:
        try:
            return Contender(name, getattr(importlib.import_module(prefix), rest), trains=True)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"contender {name!r} cannot be imported: {error}") from error
    raise ValueError(
        f"unknown contender {name!r}, expected one of {', '.join(NAMES)}, fastres[-graph]:BACKEND, or module:function"
    )
