"""The operators `torch.ops.fastres.*`: registered properly, right on every backend, and functional."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_right, to_oracle, without_onednn
from torch import Tensor

import fastres
from fastres import reference
from fastres.backends import registry
from fastres.block import Block, ConvBN, Geometry, flatten, unflatten
from fastres.measure.parity import pytorchs_own

OPS = torch.ops.fastres
AVAILABLE = [name for name, reason in fastres.backends().items() if reason is None and not name.startswith("emulator")]


def make_layer(
    cin: int = 8,
    cout: int = 16,
    kernel: tuple[int, int] = (3, 3),
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: bool = False,
    affine: bool = True,
    dtype: torch.dtype = torch.float32,
) -> ConvBN:
    """A convolution of random weights, and a BatchNorm with negative and zero gamma and a channel of tiny variance."""
    fan_in = cin // groups * math.prod(kernel)
    weight = torch.randn(cout, cin // groups, *kernel) * fan_in**-0.5
    mean, var = torch.randn(cout) * 0.5, torch.rand(cout) * 1.5 + 0.5
    gamma = (torch.rand(cout) + 0.5) * torch.where(torch.rand(cout) < 0.3, -1, 1)
    gamma[cout // 2] = 0
    weight[0], mean[0], var[0] = weight[0] * 1e-3, mean[0] * 1e-3, 1e-6
    vectors = [torch.randn(cout) if bias else None, gamma, torch.randn(cout), mean, var]
    if not affine:
        vectors[1:3] = [None, None]
    converted = [v if v is None else v.to(dtype) for v in vectors]
    geometry = Geometry(stride, padding, dilation, groups)
    return ConvBN(weight.to(dtype), *converted, torch.tensor(3), 1e-5, geometry)  # type: ignore[arg-type]


GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"kernel": (1, 1), "padding": (0, 0)},
    "3x3": {},
    "3x3/2": {"stride": (2, 2)},
    "7x7/2": {"cin": 3, "kernel": (7, 7), "stride": (2, 2), "padding": (3, 3)},
    "grouped": {"cin": 16, "groups": 4},
    "depthwise": {"cin": 16, "groups": 16},
    "dilated": {"dilation": (2, 2), "padding": (2, 2)},
    "oblong": {"kernel": (1, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "bias": {"bias": True},
    "no affine": {"affine": False},
}


def conv_bn_act(x: Tensor, layer: ConvBN, residual: Tensor | None = None, relu: bool = True, name: str = "") -> Tensor:
    return OPS.conv_bn_act(x, *layer.arguments(), residual, relu, name)


def check(result: Tensor, function: Callable[..., Tensor], *args: Any) -> None:
    """The rule, for an operator whose specification is `function`."""
    with pytorchs_own():
        plain = function(*args)
    assert_right(result, plain, function(*to_oracle(args)))


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES)
def layer(request: pytest.FixtureRequest) -> ConvBN:
    if "backend" in request.fixturenames:
        request.getfixturevalue("backend")  # first: it says where tensors are made
    return make_layer(**request.param)


def input_of(layer: ConvBN, size: int = 11, batch: int = 2) -> Tensor:
    x = torch.randn(batch, layer.weight.shape[1] * layer.geometry.groups, size, size)
    return x.to(layer.weight.dtype, memory_format=torch.channels_last)


def shortcut_of(layer: ConvBN, cin: int = 4) -> tuple[ConvBN, Tensor]:
    """A 1x1 shortcut, and its input, that fit `layer` on `input_of(layer)`."""
    cout, (p, q) = layer.weight.shape[0], layer.out_size(input_of(layer))[2:]
    return make_layer(cin, cout, (1, 1), padding=(0, 0)), torch.randn(2, cin, p, q)


def small_stage() -> tuple[Tensor, tuple[Block, ...]]:
    """A projection block with stride 2, then an identity block, and their input."""
    first = Block(
        (make_layer(8, 4, (1, 1), padding=(0, 0)), make_layer(4, 4, stride=(2, 2)), make_layer(4, 16, bias=True)),
        make_layer(8, 16, (1, 1), stride=(2, 2), padding=(0, 0)),
    )
    second = Block((make_layer(16, 8), make_layer(8, 16, affine=False)), None)
    return torch.randn(2, 8, 11, 11), (first, second)


def layers_of(blocks: tuple[Block, ...]) -> list[ConvBN | None]:
    return [layer for block in blocks for layer in (*block.branch, block.shortcut)]


def with_gradients(value: Any) -> Any:
    """Leaves that require a gradient, in place of all floating tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, ConvBN):  # statistics have no gradient
        return ConvBN(*(with_gradients(v) for v in value[:4]), *value[4:])
    return [with_gradients(v) for v in value] if isinstance(value, list) else value


@contextlib.contextmanager
def answered(name: str, *layers: ConvBN | None) -> Iterator[None]:
    """The body runs, or, where the backend says that it cannot run one of `layers`, raises BackendError."""
    backend = registry.get(name)
    if any(layer is not None and backend.unsupported(input_of(layer), layer) for layer in layers):
        with pytest.raises(fastres.BackendError, match=f"backend '{name}' cannot run"):
            yield
    else:
        yield


# --- registration


@pytest.mark.parametrize(
    ("geometry", "residual"),
    [("3x3/2", True), ("grouped", False), ("oblong", True), ("bias", False), ("no affine", True)],
)
def test_opcheck_conv_bn_act(geometry: str, residual: bool) -> None:
    layer = make_layer(**GEOMETRIES[geometry])
    x = input_of(layer)
    other = torch.randn(layer.out_size(x)) if residual else None
    for prepare in (lambda v: v, with_gradients):
        torch.library.opcheck(
            OPS.conv_bn_act.default, (prepare(x), *prepare(layer).arguments(), prepare(other), True, "")
        )


@pytest.mark.parametrize("geometry", ["3x3/2", "bias"])
def test_opcheck_projection(geometry: str) -> None:
    layer = make_layer(**GEOMETRIES[geometry])
    shortcut, block_input = shortcut_of(layer)
    for prepare in (lambda v: v, with_gradients):
        args = (
            prepare(input_of(layer)),
            *prepare(layer).arguments(),
            prepare(block_input),
            *prepare(shortcut).arguments(),
            "",
        )
        torch.library.opcheck(OPS.projection.default, args)


@pytest.mark.parametrize("pool", [(3, 2, 1), (2, 2, 0)])
def test_opcheck_stem(pool: tuple[int, int, int]) -> None:
    layer = make_layer(**GEOMETRIES["7x7/2"])
    for prepare in (lambda v: v, with_gradients):
        torch.library.opcheck(OPS.stem.default, (prepare(input_of(layer, 21)), *prepare(layer).arguments(), *pool, ""))


def test_opcheck_stage() -> None:
    x, blocks = small_stage()
    tensors, spec, eps = flatten(blocks)
    torch.library.opcheck(OPS.stage.default, (x, tensors, spec, eps, ""))
    torch.library.opcheck(OPS.stage.default, (x.clone().requires_grad_(), tensors, spec, eps, ""))


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck_head(bias: bool) -> None:
    args = [torch.randn(2, 8, 5, 5), torch.randn(10, 8), torch.randn(10) if bias else None]
    for prepare in (lambda v: v, with_gradients):
        torch.library.opcheck(OPS.head.default, (*prepare(args), ""))


def test_flatten_is_undone_by_unflatten() -> None:
    _, blocks = small_stage()
    again = unflatten(*flatten(blocks))
    assert [len(block.branch) for block in again] == [3, 2]
    for before, after in zip(blocks, again, strict=True):
        for a, b in zip((*before.branch, before.shortcut), (*after.branch, after.shortcut), strict=True):
            assert (a is None) == (b is None)
            assert a is None or all(x is y if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


# --- right on every backend, by name


@dataclasses.dataclass
class Problem:
    layer: ConvBN
    x: Tensor
    residual: Tensor | None
    relu: bool


@st.composite
def problems(draw: st.DrawFn, dtype: torch.dtype) -> Problem:
    """Any convolution, with enough outputs that the largest of the errors is no matter of luck.

    Every window touches the image: where one lies in the padding, PyTorch's own bfloat16 convolution crashes on some
    processors (in oneDNN), and there is nothing to compare with.
    """
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    cin, cout = groups * draw(st.integers(1, 12)), groups * draw(st.integers(2, 24))
    pairs = {name: st.tuples(*[st.integers(low, high)] * 2) for name, low, high in (("k", 1, 5), ("s", 1, 3))}
    kernel, stride = draw(pairs["k"]), draw(pairs["s"])
    dilation = draw(st.tuples(*[st.integers(1, 2)] * 2))
    extent = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = draw(st.tuples(*[st.integers(0, min(3, most)) for most in extent]))
    layer = make_layer(
        cin,
        cout,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        affine=draw(st.booleans()),
        dtype=dtype,
    )
    smallest = [max(d, most + 1 - 2 * p) for d, most, p in zip(dilation, extent, padding, strict=True)]
    image = [low + draw(st.integers(0, 12)) for low in smallest]
    p, q = layer.out_size(torch.empty(1, cin, *image, device="meta"))[2:]
    batch = max(draw(st.integers(1, 3)), math.ceil(1000 / (cout * p * q)))
    x = torch.randn(batch, cin, *image).to(dtype)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    residual = torch.randn(batch, cout, p, q).to(dtype) if draw(st.booleans()) else None
    return Problem(layer, x, residual, draw(st.booleans()))


def dtypes_of(name: str) -> list[torch.dtype]:
    """The dtypes below float64 that a backend runs here."""
    layer = make_layer()
    candidates = (torch.float32, torch.bfloat16, torch.float16)
    return [dtype for dtype in candidates if registry.get(name).unsupported(input_of(layer).to(dtype), layer) is None]


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name in AVAILABLE for dtype in dtypes_of(name)], ids=lambda v: str(v)
)
@settings(max_examples=60)
@given(data=st.data())
def test_any_convolution(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    problem = data.draw(problems(dtype))
    layer, x, residual, relu = problem.layer, problem.x, problem.residual, problem.relu
    result = conv_bn_act(x, layer, residual, relu, name)
    assert result.is_contiguous(memory_format=torch.channels_last)
    check(result, reference.conv_bn_act, x, layer, residual, relu)
    if name == "reference":  # PyTorch's own convolution, whatever this processor makes of it
        with pytorchs_own():
            assert torch.equal(result, reference.conv_bn_act(x, layer, residual, relu))


def test_conv_bn_act(layer: ConvBN, backend: str) -> None:
    x = input_of(layer, 13, 4)
    residual = torch.randn(layer.out_size(x))
    with answered(backend, layer):
        for other in (None, residual):
            for relu in (False, True):
                check(conv_bn_act(x, layer, other, relu), reference.conv_bn_act, x, layer, other, relu)


def test_projection(layer: ConvBN, backend: str) -> None:
    shortcut, block_input = shortcut_of(layer)
    x = input_of(layer)
    with answered(backend, layer, shortcut):
        result = OPS.projection(x, *layer.arguments(), block_input, *shortcut.arguments(), "")
        check(result, reference.projection, x, layer, block_input, shortcut)


@pytest.mark.parametrize("pool", [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("size", [21, 32])
def test_stem(pool: tuple[int, int, int], size: int, backend: str) -> None:
    layer = make_layer(**GEOMETRIES["7x7/2"])
    x = input_of(layer, size)
    with answered(backend, layer):
        check(OPS.stem(x, *layer.arguments(), *pool, ""), reference.stem, x, layer, *pool)


def test_stage(backend: str) -> None:
    x, blocks = small_stage()
    with answered(backend, *layers_of(blocks)):
        for _ in range(2):  # folded, then from the cache
            check(OPS.stage(x, *flatten(blocks), ""), reference.stage, x, blocks)


@pytest.mark.parametrize("bias", [False, True])
def test_head(bias: bool, backend: str) -> None:
    x, weight, offset = torch.randn(4, 64, 5, 7), torch.randn(300, 64), torch.randn(300) if bias else None
    check(OPS.head(x, weight, offset, ""), reference.head, x, weight, offset)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_bfloat16_activations(parameters: torch.dtype, backend: str) -> None:
    """As under autocast, the parameters may be wider than the activations."""
    if torch.bfloat16 not in dtypes_of(backend):
        with pytest.raises(fastres.BackendError, match="bfloat16"):
            conv_bn_act(input_of(make_layer()).bfloat16(), make_layer())
        return
    layer = make_layer(32, 64, dtype=parameters)
    x = torch.randn(2, 32, 14, 14).bfloat16()
    residual = torch.randn(layer.out_size(x)).bfloat16()
    check(conv_bn_act(x, layer, residual), reference.conv_bn_act, x, layer, residual)


# --- values that are no numbers


def poisoned(value: float) -> tuple[Tensor, ConvBN]:
    layer = make_layer(8, 16, bias=True)
    x = input_of(layer, 12)
    x[0, 3, 5, 6] = value
    return x, layer


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("where", ["input", "residual"])
def test_nan_propagates(where: str, relu: bool, backend: str) -> None:
    x, layer = poisoned(math.nan if where == "input" else 1.0)
    residual = torch.randn(layer.out_size(x))
    if where == "residual":
        residual[1, 2, 3, 4] = math.nan
    with answered(backend, layer):
        result = conv_bn_act(x, layer, residual, relu)
        check(result, reference.conv_bn_act, x, layer, residual, relu)
        assert result.isnan().any()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_propagates(value: float, backend: str) -> None:
    x, layer = poisoned(value)
    layer = layer._replace(gamma=layer.gamma.where(layer.gamma != 0, 1))  # infinity times zero is the NaN of above
    with answered(backend, layer):
        result = conv_bn_act(x, layer, None, False)
        assert result.isinf().any()
        check(result, reference.conv_bn_act, x, layer, None, False)
        check(conv_bn_act(x, layer), reference.conv_bn_act, x, layer)


def test_float16_overflow(backend: str) -> None:
    """Where PyTorch's convolution overflows, an infinity may stand, or the exact result if it fits; nothing else.

    PyTorch's on the CPU: what cuDNN makes of an overflow is for it to choose, kernel by kernel.
    """
    layer = make_layer(8, 64, bias=False, dtype=torch.float16)
    x = (input_of(layer, 12).clamp(-3, 3) * 2e4).half()
    if torch.float16 not in dtypes_of(backend):
        with pytest.raises(fastres.BackendError, match="float16"):
            conv_bn_act(x, layer)
        return
    on_cpu = ConvBN(*(v.cpu() if isinstance(v, Tensor) else v for v in layer))
    with without_onednn():
        plain = reference.conv_bn_act(x.cpu(), on_cpu, None, False)
    overflown = ~plain.isfinite()
    assert overflown.any()
    assert not overflown.all()
    result, oracle = (
        conv_bn_act(x, layer, None, False).cpu(),
        reference.conv_bn_act(*to_oracle((x, layer)), None, False),
    )
    assert_right(result[~overflown], plain[~overflown], oracle[~overflown])
    fits = result.isinf() | result.isnan() | ((result - oracle).abs() <= 1e-2 * oracle.abs())
    odd = overflown & ~fits
    assert not odd.any(), (result[odd], oracle[odd])


# --- functional


def functional(call: Callable[..., Tensor], *inputs: Any) -> None:
    """The result shares no memory with an input and no input has changed."""
    tensors = [t for value in inputs for t in (value if isinstance(value, tuple | list) else [value])]
    tensors = [t for t in tensors if isinstance(t, Tensor)]
    before = [(t.clone(), t._version) for t in tensors]
    result = call()
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor._version == version
        assert tensor.untyped_storage().data_ptr() != result.untyped_storage().data_ptr()
    again = call()
    assert again.untyped_storage().data_ptr() != result.untyped_storage().data_ptr()
    assert torch.equal(again, result)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_conv_bn_act_is_functional(memory_format: torch.memory_format, backend: str) -> None:
    layer = make_layer(16, 16)
    x = input_of(layer).contiguous(memory_format=memory_format)
    residual = torch.randn_like(x).contiguous(memory_format=memory_format)
    with answered(backend, layer):
        for other in (None, residual, x):
            functional(lambda other=other: conv_bn_act(x, layer, other), x, layer, other)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_operators_are_functional(memory_format: torch.memory_format, backend: str) -> None:
    layer = make_layer()
    shortcut, block_input = shortcut_of(layer)
    x_stage, blocks = small_stage()
    x = input_of(layer).contiguous(memory_format=memory_format)
    block_input = block_input.contiguous(memory_format=memory_format)
    with answered(backend, layer, shortcut, *layers_of(blocks)):
        functional(
            lambda: OPS.projection(x, *layer.arguments(), block_input, *shortcut.arguments(), ""),
            x,
            layer,
            block_input,
            shortcut,
        )
        functional(lambda: OPS.stem(x, *layer.arguments(), 3, 2, 1, ""), x, layer)
        x_stage = x_stage.contiguous(memory_format=memory_format)
        tensors, spec, eps = flatten(blocks)
        functional(lambda: OPS.stage(x_stage, tensors, spec, eps, ""), x_stage, tensors)
        identity, spec, eps = flatten(blocks[1:])
        y = torch.randn(2, 16, 6, 6).contiguous(memory_format=memory_format)
        functional(lambda: OPS.stage(y, identity, spec, eps, ""), y, identity)
        weight = torch.randn(3, 8)
        functional(lambda: OPS.head(x, weight, None, ""), x, weight)


def test_outputs_are_channels_last(layer: ConvBN, backend: str) -> None:
    x = input_of(layer).contiguous()
    shortcut, block_input = shortcut_of(layer)
    x_stage, blocks = small_stage()
    with answered(backend, layer, shortcut, *layers_of(blocks)):
        for result in (
            conv_bn_act(x, layer),
            OPS.projection(x, *layer.arguments(), block_input, *shortcut.arguments(), ""),
            OPS.stem(x, *layer.arguments(), 2, 2, 0, ""),
            OPS.stage(x_stage, *flatten(blocks), ""),
        ):
            assert result.is_contiguous(memory_format=torch.channels_last)


def test_empty_batch() -> None:
    layer = make_layer(8, 16)
    x = torch.randn(0, 8, 9, 9)
    shortcut, block_input = shortcut_of(layer)
    x_stage, blocks = small_stage()
    assert conv_bn_act(x, layer).shape == (0, 16, 9, 9)
    assert OPS.projection(x, *layer.arguments(), block_input[:0, :, :9, :9], *shortcut.arguments(), "").shape == (
        0,
        16,
        9,
        9,
    )
    assert OPS.stem(x, *layer.arguments(), 3, 2, 1, "").shape == (0, 16, 5, 5)
    assert OPS.stage(x_stage[:0], *flatten(blocks), "").shape == (0, 16, 6, 6)
    assert OPS.head(x, torch.randn(4, 8), None, "").shape == (0, 4)


# --- gradients


def tiny(**kwargs: Any) -> ConvBN:
    return with_gradients(make_layer(2, 4, dtype=torch.float64, bias=True, **kwargs))


def leaf(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64, requires_grad=True)


def rebuilt(template: ConvBN, tensors: tuple[Tensor, ...]) -> ConvBN:
    return ConvBN(*tensors, *template[4:])


@pytest.mark.parametrize("through", ["operator", "reference"])
@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck_conv_bn_act(through: str, relu: bool) -> None:
    layer = tiny(stride=(2, 1))

    def function(x: Tensor, residual: Tensor, *tensors: Tensor) -> Tensor:
        call = conv_bn_act if through == "operator" else reference.conv_bn_act
        return call(x, rebuilt(layer, tensors), residual, relu)

    inputs = (leaf(2, 2, 5, 4), leaf(2, 4, 3, 4), *layer[:4])
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("through", ["operator", "reference"])
def test_gradcheck_projection(through: str) -> None:
    layer, shortcut = tiny(), with_gradients(make_layer(3, 4, (1, 1), padding=(0, 0), dtype=torch.float64))

    def function(x: Tensor, block_input: Tensor, weight: Tensor, *tensors: Tensor) -> Tensor:
        main, other = rebuilt(layer, tensors), shortcut._replace(weight=weight)
        if through == "operator":
            return OPS.projection(x, *main.arguments(), block_input, *other.arguments(), "")
        return reference.projection(x, main, block_input, other)

    inputs = (leaf(2, 2, 4, 4), leaf(2, 3, 4, 4), shortcut.weight, *layer[:4])
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("through", ["operator", "reference"])
def test_gradcheck_stem_and_head(through: str) -> None:
    layer = tiny()

    def function(x: Tensor, weight: Tensor, bias: Tensor, *tensors: Tensor) -> Tensor:
        main = rebuilt(layer, tensors)
        if through == "operator":
            return OPS.head(OPS.stem(x, *main.arguments(), 3, 2, 1, ""), weight, bias, "")
        return reference.head(reference.stem(x, main, 3, 2, 1), weight, bias)

    inputs = (leaf(2, 2, 6, 6), leaf(3, 4), leaf(3), *layer[:4])
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("through", ["operator", "reference"])
def test_gradcheck_stage(through: str) -> None:
    first = make_layer(2, 4, dtype=torch.float64)
    last, shortcut = (
        make_layer(4, 4, dtype=torch.float64),
        make_layer(2, 4, (1, 1), padding=(0, 0), dtype=torch.float64),
    )

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        a, b, c = (layer._replace(weight=w) for layer, w in zip((first, last, shortcut), weights, strict=True))
        blocks = [Block((a, b), c), Block((b, b), None)]
        return OPS.stage(x, *flatten(blocks), "") if through == "operator" else reference.stage(x, blocks)

    inputs = (leaf(2, 2, 4, 4), *(layer.weight.clone().requires_grad_() for layer in (first, last, shortcut)))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_gradients_of_the_operator_are_pytorchs(layer: ConvBN) -> None:
    x = input_of(layer)
    residual = torch.randn(layer.out_size(x))
    results = []
    for function in (conv_bn_act, reference.conv_bn_act):
        inputs = [with_gradients(v) for v in (x, layer, residual)]
        function(*inputs).square().sum().backward()
        results.append([t.grad for t in (inputs[0], *inputs[1][:4], inputs[2]) if t is not None])
    exact = [with_gradients(to_oracle(v)) for v in (x, layer, residual)]
    reference.conv_bn_act(*exact).square().sum().backward()
    oracle = [t.grad for t in (exact[0], *exact[1][:4], exact[2]) if t is not None]
    for ours, plain, right in zip(*results, oracle, strict=True):
        assert_right(ours, plain, right)
