"""What PyTorch does to models works on ours: autocast, compile, export, tracing, scripting, torch.func, replicas."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import image, small_pair
from steps import assert_same_step
from tolerance import assert_right, assert_same_function, to_oracle
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import fastres

FUSED = {"fastres::stem", "fastres::stage", "fastres::head"}

# torch.jit is deprecated, and says so, but works and is in use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


@pytest.fixture(autouse=True)
def _no_compiled_code() -> None:
    """Models of all tests share one forward, of which torch.compile keeps a limited number of versions."""
    torch._dynamo.reset()


def operators(graph: fx.GraphModule) -> set[str]:
    """Names of this package's operators in a graph."""
    names = {node.target.name() for node in graph.graph.nodes if hasattr(node.target, "name")}
    return {name.partition(".")[0] for name in names if name.startswith("fastres::")}


# --- modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(mode: Callable[[], Any]) -> None:
    ours, theirs = small_pair()
    x = image()
    for _ in range(2):  # an entry of the cache made in one mode serves the next
        with mode():
            result = ours(x)
        assert result.requires_grad == (mode is torch.enable_grad)
        assert_right(result, theirs(x), to_oracle(theirs)(x.double()))
        assert_same_function(ours, theirs, x)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_autocast(parameters: torch.dtype) -> None:
    ours, theirs = (model.to(parameters) for model in small_pair())
    x = image()
    oracle = to_oracle(theirs)(x.double())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        result, plain = ours(x), theirs(x)
        fuses = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        backend = "onednn" if fuses else "reference"
        assert {layer.backend for layer in fastres.explain(ours, x).layers} == {backend}
    assert result.dtype == torch.bfloat16
    assert_right(result, plain, oracle)


# --- torch.compile and torch.export


def _capturing(graphs: list[fx.GraphModule]) -> Callable[..., Any]:
    def compiler(graph: fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    return compiler


def test_compile_is_one_graph_of_fused_operators() -> None:
    ours, theirs = small_pair()
    graphs: list[fx.GraphModule] = []
    compiled = torch.compile(ours, fullgraph=True, backend=_capturing(graphs))
    assert_same_function(compiled, theirs, image())
    assert len(graphs) == 1
    assert operators(graphs[0]) == FUSED


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    ours, theirs = small_pair()
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    assert_same_function(compiled, theirs, image())
    with torch.no_grad():
        for model in (ours, theirs):
            model.conv1.weight.mul_(-0.5)
            model.layer2[0].conv2.weight.mul_(-0.5)
    assert_same_function(compiled, theirs, image())  # with the new weights


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_under_autocast(backend: str) -> None:
    ours, theirs = small_pair()
    compiled, x = torch.compile(ours, fullgraph=True, backend=backend), image()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        result, plain = compiled(x), theirs(x)
    assert_right(result, plain, to_oracle(theirs)(x.double()))


def test_compile_with_dynamic_sizes() -> None:
    ours, theirs = small_pair()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((2, 3, 64, 64), (3, 3, 48, 80), (1, 3, 33, 65)):
        assert_same_function(compiled, theirs, image(*size))


def test_compile_training() -> None:
    """One graph, in which a block's step is one operator; gradients and running statistics are torchvision's."""
    ours, theirs = small_pair()
    graphs: list[fx.GraphModule] = []
    torch.compile(ours.train(), fullgraph=True, backend=_capturing(graphs))(image())
    assert operators(graphs[0]) == {"fastres::train_block", "fastres::track"}
    torch.compiler.reset()
    ours.load_state_dict(theirs.state_dict())
    assert_same_step(torch.compile(ours, fullgraph=True, backend="aot_eager"), theirs, image())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
def test_export(recorded: bool, strict: bool) -> None:
    """A program of PyTorch's operators, which other tools take and which loads without fastres."""
    ours, theirs = small_pair()
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.set_grad_enabled(recorded):
        program = torch.export.export(ours, (image(),), strict=strict, dynamic_shapes=({0: batch},))
    assert operators(program.graph_module) == set()
    assert_same_function(program.module(), theirs, image(3, 3, 64, 64))


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_fused_operators(strict: bool) -> None:
    ours, theirs = small_pair()
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad(), fastres.use_backend("auto"):
        program = torch.export.export(ours, (image(),), strict=strict, dynamic_shapes=({0: batch},))
    assert operators(program.graph_module) == FUSED
    assert_same_function(program.module(), theirs, image(3, 3, 64, 64))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_same_function(torch.export.load(file).module(), theirs, image(1, 3, 64, 64))


# --- torch.jit


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    ours, theirs = small_pair()
    with torch.no_grad():
        traced = torch.jit.trace(ours, image())
    assert_same_function(traced, theirs, image(3, 3, 48, 48))


@pytest.mark.parametrize("training", [False, True])
def test_jit_script(training: bool) -> None:
    ours, theirs = small_pair()
    classes = [type(module) for module in ours.modules()]
    scripted = torch.jit.script(ours.train(training))
    assert [type(module) for module in ours.modules()] == classes, "the model itself stays as it is"
    assert scripted.state_dict().keys() == theirs.state_dict().keys()
    assert_same_function(scripted.eval(), theirs, image())
    assert_same_function(ours.eval(), theirs, image())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert_same_function(torch.jit.load(file), theirs, image())


def test_jit_script_of_a_part_and_of_a_whole_around_it() -> None:
    ours, theirs = small_pair()
    assert_same_function(torch.jit.script(ours.layer2), theirs.layer2, image(2, 256, 9, 9))
    assert_same_function(
        torch.jit.script(nn.Sequential(ours, nn.Softmax(1))), nn.Sequential(theirs, nn.Softmax(1)), image()
    )


class Headless(fastres.ResNet18):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(x)


def test_jit_script_of_a_subclass_names_what_to_use() -> None:
    with pytest.raises(TypeError, match=r"Headless has no equivalent .* torch\.export"):
        torch.jit.script(Headless())


# --- torch.fx


def test_fx_graph_is_torchvisions() -> None:
    ours, theirs = small_pair()
    graph, expected = fx.symbolic_trace(ours), fx.symbolic_trace(theirs)
    assert [(n.op, n.name) for n in graph.graph.nodes] == [(n.op, n.name) for n in expected.graph.nodes]
    assert_same_function(graph, theirs, image())


def test_feature_extractor() -> None:
    ours, theirs = small_pair()
    assert get_graph_node_names(ours) == get_graph_node_names(theirs)
    nodes = ["relu", "layer1.0.conv2", "layer1.0.downsample", "layer2.1.add", "layer3", "flatten"]
    extractor = create_feature_extractor(ours, nodes)
    assert_same_function(extractor, create_feature_extractor(theirs, nodes), image())


# --- torch.func


def test_per_sample_gradients() -> None:
    ours, theirs = small_pair()
    x = image(3, 3, 32, 32)

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            return torch.func.functional_call(model, (parameters, buffers), sample[None]).square().mean()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)

    expected = gradients(theirs)
    for name, gradient in gradients(ours).items():
        assert torch.equal(gradient, expected[name]), name


def test_vmap_without_gradients() -> None:
    ours, theirs = small_pair()
    x = image(6, 3, 32, 32).view(2, 3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))


def test_jacobian_vector_product() -> None:
    ours, theirs = small_pair()
    x = image(1, 3, 32, 32)
    (_, result), (_, expected) = (torch.func.jvp(model, (x,), (torch.ones_like(x),)) for model in (ours, theirs))
    assert torch.equal(result, expected)


def test_second_derivative_through_a_model() -> None:
    """Of the plain path; of a fused step, an error says so."""
    ours, theirs = small_pair()
    x = image(1, 3, 32, 32).requires_grad_()

    def twice(model: nn.Module) -> Tensor:
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), model.conv1.weight)[0]

    with fastres.use_backend("plain"):
        assert torch.equal(twice(ours), twice(theirs))
    with pytest.raises(RuntimeError, match=r"no second derivative: .* `with fastres\.use_backend\(\"plain\"\):`"):
        twice(ours)


# --- copies that PyTorch makes


def _replicate(model: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate makes for a second device: attributes that are no parameters."""
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach().clone())
        for name, buffer in module._buffers.items():
            setattr(replica, name, None if buffer is None else buffer.clone())
    return replicas[model]


def test_replicas_of_data_parallel() -> None:
    ours, theirs = small_pair()
    replica = _replicate(ours)
    assert not list(replica.parameters())
    assert_same_function(replica, theirs, image())
    with torch.no_grad():
        for model in (ours, theirs):
            model.conv1.weight.mul_(-0.5)
    assert_same_function(_replicate(ours), theirs, image())
    assert_same_function(ours, theirs, image())


def test_data_parallel_without_devices() -> None:
    ours, theirs = small_pair()
    assert_same_function(nn.DataParallel(ours), theirs, image())


@pytest.mark.parametrize("average", ["equal", "exponential"])
def test_averaged_model(average: str) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    pair = small_pair()
    chosen = {"multi_avg_fn": get_ema_multi_avg_fn(0.5)} if average == "exponential" else {}
    ours, theirs = (AveragedModel(model, use_buffers=True, **chosen) for model in pair)
    for _ in range(3):
        with torch.no_grad():
            for model in pair:
                model.layer1[0].conv2.weight.mul_(-0.7)
                model.layer1[0].bn2.running_mean.add_(0.1)
        for averaged, model in zip((ours, theirs), pair, strict=True):
            averaged.update_parameters(model)
        assert_same_function(ours, theirs, image())


def test_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint_sequential

    ours, theirs = (model.double() for model in small_pair())
    x = torch.randn(2, 64, 16, 16, dtype=torch.float64, requires_grad=True)
    gradients = []
    for model in (ours, theirs):
        stages = nn.Sequential(model.layer1, model.layer2).train()
        checkpoint_sequential(stages, 2, x, use_reentrant=False).square().mean().backward()
        gradients.append(model.layer1[0].conv1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_state_dict_goes_both_ways() -> None:
    ours, theirs = small_pair()
    other, _ = small_pair(seed=5)
    theirs.load_state_dict(other.state_dict(), strict=True)
    assert_same_function(other, theirs, image())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_function(ours, theirs, image())


def test_a_copied_model_keeps_its_class() -> None:
    ours, _ = small_pair()
    assert [type(m) for m in copy.deepcopy(ours).modules()] == [type(m) for m in ours.modules()]
