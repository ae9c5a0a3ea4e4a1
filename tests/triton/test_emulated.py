"""Whole networks through the compiled kernels, in bfloat16, on the emulator: every launch, checked byte by byte.

The kernels one by one are in `emulator/test_fastres_kernels.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from tolerance import assert_right, to_oracle
from torch import Tensor, nn

import fastres
from fastres.emulator.triton import emulated


def randomise(model: nn.Module) -> None:
    """BatchNorms as training leaves them, not as they start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.mark.parametrize(
    ("name", "arch", "instruction"), [("ResNet18", 80, "mma.sync"), ("ResNet50", 90, "wgmma.mma_async")]
)
def test_resnet(name: str, arch: int, instruction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model = getattr(fastres, name)(num_classes=10).eval()
    randomise(model)
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


def keep_from_zero(bn: nn.Module) -> None:
    """Has a ReLU behind `bn` pass a channel or not, whatever the rounding."""
    with torch.no_grad():
        bn.weight.uniform_(-0.4, 0.4)
        bn.bias.uniform_(2, 3).mul_(torch.randn_like(bn.bias).sign())


def stem_of(net: nn.Module) -> nn.Module:
    return nn.ModuleDict({name: net.get_submodule(name) for name in ("conv1", "bn1")})


def plain_stem(stem: nn.Module, x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(stem.bn1(stem.conv1(x))), 3, 2, 1)


def plain_block(block: nn.Module, x: Tensor) -> Tensor:
    """Up to its last ReLU, of which the output says whom it passed."""
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return out + (x if block.downsample is None else block.downsample(x))


def step(part: nn.Module, forward: Callable[..., Tensor], x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """By name: the output, the gradients of the input and the parameters, and the buffers after the step."""
    x = x.detach().clone().requires_grad_()
    out = forward(part.train(), x)
    out.backward(gradient)
    return {"output": F.relu(out.detach()), "gradient of its input": x.grad} | state(part)


def state(part: nn.Module) -> dict[str, Tensor]:
    """Gradients of parameters, as far as there are any, and running statistics."""
    found = {f"gradient of {name}": p.grad for name, p in part.named_parameters() if p.grad is not None}
    return found | {name: buffer for name, buffer in part.named_buffers() if buffer.is_floating_point()}


def test_resnet18_train_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward in one run; then each block is held to the oracle on what reached it from both sides.

    Across all layers, rounding to bfloat16 turns over so many ReLUs that PyTorch's own gradients are off by half their
    size, and no bound means much. Across one block, none is left to chance: see `keep_from_zero` and `plain_block`.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    theirs = torchvision.models.resnet18(num_classes=10)
    randomise(theirs)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    for name in blocks:
        keep_from_zero(theirs.get_submodule(name).bn1)
    ours = fastres.ResNet18(num_classes=10).bfloat16()
    ours.load_state_dict(theirs.bfloat16().state_dict())
    seen: dict[str, list[Tensor]] = {name: [] for name in blocks}
    for name in blocks:
        block = ours.get_submodule(name)
        block.register_forward_hook(lambda block, inputs, out, name=name: seen[name].extend([inputs[0], out]))
        block.register_full_backward_hook(lambda block, to, of, name=name: seen[name].extend([of[0], to[0]]))
    x = torch.randn(1, 3, 64, 64).bfloat16().requires_grad_()
    with emulated(90) as reports, fastres.use_backend("triton"):
        ours.train()(x).float().square().mean().backward()
    assert all(report.findings == () for report in reports)
    assert {report.kernel for report in reports} == {
        "conv_kernel",
        "merge_kernel",
        "finalize_kernel",
        "apply_kernel",
        "sums_kernel",
        "ordered_sum_kernel",
        "backward_kernel",
        "dgrad_kernel",
        "wgrad_kernel",
    }

    def check(name: str, ours: nn.Module, plain: nn.Module, forward: Callable[..., Tensor], *tensors: Tensor) -> None:
        entered, left, gradient, of_input = (t.detach() for t in tensors)
        given = entered, gradient
        expected, oracle = step(plain, forward, *given), step(to_oracle(plain), forward, *to_oracle(given))
        found = {"output": left, "gradient of its input": of_input} | state(ours)
        for what, right in oracle.items():
            assert_right(found[what], expected[what], right, f"{what} of {name}")

    for name in blocks:
        entered, left, gradient, of_input = seen[name]
        passed = entered, left, gradient * (left > 0), of_input
        check(name, ours.get_submodule(name), theirs.get_submodule(name), plain_block, *passed)
    assert x.grad is not None
    entered, _, _, of_input = seen[blocks[0]]
    check("stem", stem_of(ours), stem_of(theirs), plain_stem, x, entered, of_input, x.grad)
