"""The cache of folded weights is never stale, never mixes models up, holds no memory of a deleted one, and is safe."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from models import image, randomize, small_pair
from tolerance import assert_right, assert_same_function, to_oracle
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torchvision.models import resnet as tv
from torchvision.ops import FrozenBatchNorm2d

import fastres
from fastres import folding, fused
from fastres.sampling import Sample

Change = Callable[[nn.Module], Any]


@torch.no_grad()
def _edit(model: nn.Module, name: str) -> None:
    model.get_parameter(name).mul_(-0.5)


@torch.no_grad()
def _edit_buffer(model: nn.Module, name: str) -> None:
    model.get_buffer(name).mul_(3).add_(0.1)


def _train_forward(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(torch.linspace(-3, 3, 4 * 3 * 32 * 32).view(4, 3, 32, 32))
    model.eval()


def _step(optimizer: Callable[..., torch.optim.Optimizer], **kwargs: Any) -> Change:
    def change(model: nn.Module) -> None:
        step = optimizer(model.parameters(), **kwargs)
        for seed in range(2):  # the mode stays evaluation: only the optimizer tells that the weights moved
            with torch.no_grad():
                model(image(1, 3, 32, 32))
            torch.manual_seed(seed)
            step.zero_grad()
            with fastres.use_backend("plain"):  # the same bits: Adam makes a step of the sign of a rounding error
                model(image(2, 3, 32, 32)).square().mean().backward()
            step.step()

    return change


def _other_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return randomize(tv.ResNet(tv.Bottleneck, [1, 2, 1, 1], width_per_group=16), seed=7).state_dict()


def _replace_parameter(model: nn.Module) -> None:
    model.layer1[0].conv1.weight = nn.Parameter(model.layer1[0].conv1.weight.detach() * -0.5)


def _replace_data(model: nn.Module) -> None:
    for block in model.layer2:
        block.conv2.weight.data = block.conv2.weight.data * -0.5


def _transpose_data(model: nn.Module) -> None:
    """Same memory, same version, another meaning."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.weight.data = module.weight.data.transpose(2, 3)


def _slice_data(model: nn.Module) -> None:
    """Structured pruning: the first channels of the same memory."""
    block = model.layer1[0]
    for module, names in ((block.conv1, ["weight"]), (block.bn1, ["weight", "bias", "running_mean", "running_var"])):
        for name in names:
            tensor = getattr(module, name)
            tensor.data = tensor.data[:8]
    block.conv2.weight.data = block.conv2.weight.data[:, :8]


def _swap(model: nn.Module) -> None:
    conv = model.layer2[1].conv2
    torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach() * -0.5))


def _flat(model: nn.Module) -> None:
    """All parameters become views of one storage."""
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector * 0.97, model.parameters())


def _flat_twice(model: nn.Module) -> None:
    _flat(model)
    with torch.no_grad():
        model(image())
        next(model.parameters()).view(-1).mul_(0.5)


def _eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1


def _geometry(model: nn.Module) -> None:
    model.layer4[0].conv2.stride = (1, 1)
    model.layer4[0].downsample[0].stride = (1, 1)
    model.layer1[0].conv2.dilation = (2, 2)
    model.layer1[0].conv2.padding = (2, 2)


def _compiled_edit(model: nn.Module) -> None:
    @torch.compile(backend="aot_eager")
    def edit(weights: list[Tensor]) -> None:
        for weight in weights:
            weight.mul_(0.9)

    with torch.no_grad():
        edit([p for p in model.parameters() if p.dim() == 4])


def _prune(model: nn.Module) -> None:
    """Unstructured pruning of a tenth of every weight, in place through `.data`."""
    for i, module in enumerate(m for m in model.modules() if isinstance(m, nn.Conv2d)):
        keep = torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(i)) > 0.1
        module.weight.data.mul_(keep)


def _numpy(model: nn.Module) -> None:
    model.layer1[0].conv2.weight.detach().numpy()[...] *= -0.5


def _storage_copy(model: nn.Module) -> None:
    weight = model.layer2[0].conv2.weight
    weight.untyped_storage().copy_((weight.detach() * -0.5).untyped_storage())


def _collective(model: nn.Module) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        weight = model.layer1[0].conv2.weight.detach()
        dist.all_gather([weight], weight * -0.5)
    finally:
        dist.destroy_process_group()


def _train_uncounted(model: nn.Module) -> None:
    model.layer1[0].bn2.num_batches_tracked = None
    with torch.no_grad():
        model(image())
    _train_forward(model)


def _written_by_another_process(model: nn.Module) -> None:
    model.share_memory()
    with torch.no_grad():
        model(image())
    array = model.layer1[0].conv2.weight.detach().numpy()
    child = os.fork()
    if child == 0:
        array *= -0.5
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _shared_memory(model: nn.Module) -> None:
    model.share_memory()
    _edit(model, "layer1.0.conv3.weight")


CHANGES: dict[str, Change] = {
    "load_state_dict": lambda m: m.load_state_dict(_other_state()),
    "load_state_dict, assigned": lambda m: m.load_state_dict(_other_state(), assign=True),
    "convolution edited in place": lambda m: _edit(m, "layer1.0.conv2.weight"),
    "first convolution edited in place": lambda m: _edit(m, "conv1.weight"),
    "shortcut edited in place": lambda m: _edit(m, "layer3.0.downsample.0.weight"),
    "gamma edited in place": lambda m: _edit(m, "layer2.1.bn1.weight"),
    "beta edited in place": lambda m: _edit(m, "layer1.0.bn2.bias"),
    "mean edited in place": lambda m: _edit_buffer(m, "layer1.0.bn1.running_mean"),
    "variance edited in place": lambda m: _edit_buffer(m, "layer2.0.downsample.1.running_var"),
    "classifier edited in place": lambda m: _edit(m, "fc.weight"),
    "parameter replaced": _replace_parameter,
    "data replaced": _replace_data,
    "data transposed": _transpose_data,
    "data sliced": _slice_data,
    "tensors swapped": _swap,
    "parameters become one vector": _flat,
    "one vector edited": _flat_twice,
    "training forward": _train_forward,
    "SGD": _step(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": _step(torch.optim.AdamW, lr=1e-3),
    "fused AdamW": _step(torch.optim.AdamW, lr=1e-3, fused=True),
    "fused SGD": _step(torch.optim.SGD, lr=0.05, fused=True),
    "eps": _eps,
    "stride and dilation": _geometry,
    "compiled edit": _compiled_edit,
    "shared memory": _shared_memory,
    "weight written through data": lambda m: m.conv1.weight.data.mul_(-0.5),
    "beta written through data": lambda m: m.layer3[0].bn2.bias.data.mul_(-0.5),
    "one beta written through data": lambda m: m.layer3[0].bn2.bias.data[3].add_(50),
    "pruned through data": _prune,
    "one filter zeroed through data": lambda m: m.conv1.weight.data[3].zero_(),
    "one input channel zeroed through data": lambda m: m.layer2[0].conv2.weight.data[:, 5].mul_(40),
    "written through NumPy": _numpy,
    "storage copied": _storage_copy,
    "collective": _collective,
    "training forward, batches not counted": _train_uncounted,
    "double, in place edit, float": lambda m: _edit(m.double(), "conv1.weight") or m.float(),
}


if hasattr(os, "fork"):
    CHANGES["written by another process"] = _written_by_another_process


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change: Change) -> None:
    ours, theirs = small_pair()
    x = image()
    with torch.no_grad():
        before = ours(x)
    change(theirs)
    change(ours)
    with torch.no_grad():
        assert not torch.allclose(theirs(x), before, rtol=1e-3, atol=1e-4), (
            "the change must matter, or nothing is tested"
        )
    assert_same_function(ours, theirs, x)
    assert_same_function(ours, theirs, x)  # from the cache


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_of_the_dtype(dtype: torch.dtype) -> None:
    ours, theirs = small_pair()
    ours(image())
    ours.to(dtype)
    theirs.to(dtype, memory_format=torch.channels_last)
    assert_same_function(ours, theirs, image(dtype=dtype))
    assert_same_function(ours.float(), theirs.float(), image())


def test_conversion_of_the_memory_format() -> None:
    ours, theirs = small_pair()
    ours(image())
    assert_same_function(ours.to(memory_format=torch.channels_last), theirs, image())
    assert_same_function(ours.to(memory_format=torch.contiguous_format), theirs, image())


def test_one_model_at_many_sizes_and_dtypes_of_autocast() -> None:
    ours, theirs = small_pair()
    for _ in range(2):
        for size in (32, 48, 33):
            assert_same_function(ours, theirs, image(2, 3, size, size))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            half = ours(image())
        assert half.dtype == torch.bfloat16


def test_frozen_batch_norm_edited() -> None:
    ours, theirs = small_pair(norm_layer=FrozenBatchNorm2d)
    assert_same_function(ours, theirs, image())
    for name in ("weight", "bias", "running_mean", "running_var"):
        for model in (ours, theirs):
            _edit_buffer(model, f"layer1.0.bn2.{name}")
        assert_same_function(ours, theirs, image())


# --- copies


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_and_its_original_are_independent(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = small_pair()
    ours.backend = "onednn"
    with torch.no_grad():
        ours(image())
    other, other_theirs = duplicate(ours), copy.deepcopy(theirs)
    assert other.backend == "onednn"
    assert_same_function(other, other_theirs, image())
    for model in (other, other_theirs):
        _edit(model, "layer1.0.conv2.weight")
    assert_same_function(other, other_theirs, image())
    assert_same_function(ours, theirs, image())
    for model in (ours, theirs):
        _edit(model, "layer2.0.conv2.weight")
    assert_same_function(ours, theirs, image())
    assert_same_function(other, other_theirs, image())


def test_a_pickle_holds_no_folded_weights() -> None:
    ours, _ = small_pair()
    cold = len(pickle.dumps(ours))
    with torch.no_grad():
        ours(image())
    assert len(pickle.dumps(ours)) == cold


def test_functional_call_uses_its_own_parameters() -> None:
    ours, theirs = small_pair()
    state = {name: tensor.detach() for name, tensor in _other_state().items()}
    with torch.no_grad():
        ours(image())
    assert_same_function(lambda x: torch.func.functional_call(ours, state, x), _loaded(theirs, state), image())
    assert_same_function(ours, theirs, image())


def _loaded(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    return model


# --- memory


def test_a_deleted_model_is_freed() -> None:
    ours, _ = small_pair()
    with torch.no_grad():
        ours(image())
    weights = [StorageWeakRef(p.untyped_storage()) for p in ours.parameters() if p.dim() > 1]
    parameters = [weakref.ref(p) for p in ours.parameters()]
    assert not any(ref.expired() for ref in weights)
    assert all(ref() is not None for ref in parameters)
    del ours
    gc.collect()
    assert all(ref.expired() for ref in weights)
    assert not any(ref() is not None for ref in parameters)


def _folded_tensors() -> list[weakref.ref[Tensor]]:
    made = [made.value for folds in folding._folds.values() for made in folds.made.values()]
    return [weakref.ref(t) for value in made for t in folding._tensors(value)]


def test_refresh_frees_what_was_folded() -> None:
    ours, _ = small_pair()
    with torch.no_grad():
        ours(image())
    made = _folded_tensors()
    assert made
    fastres.refresh()
    gc.collect()
    assert not any(ref() is not None for ref in made)


def test_a_deleted_models_folds_go_with_the_next_fold() -> None:
    fastres.refresh()
    ours, _ = small_pair()
    with torch.no_grad():
        ours(image())
    mine = _folded_tensors()
    assert mine
    del ours
    gc.collect()
    another, _ = small_pair(seed=1)
    with torch.no_grad():
        another(image())
    gc.collect()
    assert not any(ref() is not None for ref in mine)


def test_recycled_addresses() -> None:
    """Fifty short-lived layers, most of them where the one before was: none may get another's weights."""
    x = image(2, 8, 12, 12)
    seen = set()
    for seed in range(50):
        torch.manual_seed(seed)
        conv, bn = nn.Conv2d(8, 16, 3), randomize(nn.BatchNorm2d(16), seed).eval()
        seen.add(conv.weight.data_ptr())
        with torch.no_grad():
            result = fused.conv_bn_act(x, conv, bn)
        plain = nn.Sequential(conv, bn, nn.ReLU())
        assert_right(result, plain(x), to_oracle(plain)(x.double()))
    assert len(seen) < 50, "no address was used twice, so nothing is tested"


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MAX_FOLDS", 8)
    monkeypatch.setattr(folding, "_folds", {})
    pairs = [small_pair(seed) for seed in range(2)]
    for _ in range(2):
        for ours, theirs in pairs:
            assert_same_function(ours, theirs, image())
            assert 0 < len(folding._folds) <= 8


def test_image_sizes_share_what_was_folded_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new image size adds no set of sources, and what is kept of each is bounded."""
    monkeypatch.setattr(folding, "MAX_RECIPES", 4)
    monkeypatch.setattr(folding, "_folds", {})
    ours, theirs = small_pair()
    with torch.no_grad():
        ours(image())
    sets = len(folding._folds)
    for size in (24, 40, 48, 56, 64, 24):
        assert_same_function(ours, theirs, image(1, 3, size, size))
    assert len(folding._folds) == sets
    assert max(len(folds.made) for folds in folding._folds.values()) == 4


def test_inference_tensors() -> None:
    """They keep no version, so an edit would leave no trace: nothing of them may be cached."""
    with torch.inference_mode():
        ours, theirs = small_pair()
        x = image()
        sets = len(folding._folds)
        for _ in range(2):
            for model in (ours, theirs):
                model.conv1.weight.mul_(-0.5)
                model.layer1[0].bn1.running_mean.add_(0.1)
            result, plain = ours(x), theirs(x)
            assert_right(result, plain, to_oracle(theirs)(x.double()))
        assert len(folding._folds) == sets


# --- writes that leave no trace


def _write_outside_the_sample(*weights: Tensor) -> None:
    """The same element of all, the first that the sample leaves out."""
    before = Sample(weights)
    for index in range(weights[0].numel()):
        old = [weight.data.view(-1)[index].item() for weight in weights]
        for weight in weights:
            weight.data.view(-1)[index] = 100.0
        if before.same():
            return
        for weight, value in zip(weights, old, strict=True):
            weight.data.view(-1)[index] = value
    raise AssertionError("the sample is the whole weight")


@pytest.mark.parametrize("name", ["conv1.weight", "layer2.0.downsample.0.weight", "layer3.0.conv2.weight"])
def test_a_write_that_misses_the_sample_is_refreshed_and_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of writes that PyTorch does not record: too few elements of a weight."""
    (ours, theirs), x = small_pair(), image()
    with torch.no_grad():
        before = ours(x)
        _write_outside_the_sample(ours.get_parameter(name), theirs.get_parameter(name))
        assert torch.equal(ours(x), before)
        monkeypatch.setenv("FASTRES_CHECK_FOLD", "1")
        with pytest.raises(RuntimeError, match=r"are stale.*fastres\.refresh"):
            ours(x)
    fastres.refresh(ours)
    assert_same_function(ours, theirs, x)


def test_freed_parameters_are_refused() -> None:
    ours, theirs = small_pair()
    for model in (ours, theirs):
        model.layer1[0].conv2.weight.untyped_storage().resize_(0)
        with torch.no_grad(), pytest.raises(RuntimeError):
            model(image())


def test_the_check_is_silent_where_nothing_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRES_CHECK_FOLD", "1")
    ours, _ = small_pair()
    with torch.no_grad():
        ours.layer1[0].bn1.running_var[0] = float("nan")  # equal to itself here
        first = ours(image())
        assert ours(image()).isnan().all()
    assert first.isnan().all()


def test_refresh_takes_a_module() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        fastres.refresh("resnet50")  # type: ignore[arg-type]


# --- threads and processes


def _in_threads(tasks: list[Callable[[], Tensor]]) -> list[Tensor]:
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], Tensor]) -> Tensor:
        start.wait()
        with torch.no_grad():
            return torch.stack([task() for _ in range(5)])

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [done.result() for done in [pool.submit(run, task) for task in tasks]]


def test_threads_on_one_model() -> None:
    ours, theirs = small_pair()
    x = image()
    oracle = to_oracle(theirs)(x.double())
    for _ in range(3):
        fastres.refresh()  # all threads find the cache stale
        for results in _in_threads([lambda: ours(x)] * 4):
            for result in results:
                assert_right(result, theirs(x), oracle)


def test_threads_on_two_models() -> None:
    pairs = [small_pair(seed) for seed in (0, 1)]
    x = image()
    for results, (_, theirs) in zip(_in_threads([lambda m=ours: m(x) for ours, _ in pairs]), pairs, strict=True):
        for result in results:
            assert_right(result, theirs(x), to_oracle(theirs)(x.double()))


def test_threads_while_the_cache_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MAX_FOLDS", 2)
    pairs = [small_pair(seed) for seed in (0, 1)]
    x = image()
    for results, (_, theirs) in zip(_in_threads([lambda m=ours: m(x) for ours, _ in pairs]), pairs, strict=True):
        for result in results:
            assert_right(result, theirs(x), to_oracle(theirs)(x.double()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork() -> None:
    """A child inherits the cache and changes its own weights, even if another thread was folding as it was born."""
    script = """
        import os, sys, threading, torch, fastres
        from fastres import folding
        from models import small_pair, image
        from tolerance import assert_same_function
        torch.set_num_threads(1)
        ours, theirs = small_pair()
        assert_same_function(ours, theirs, image())
        held, release = threading.Event(), threading.Event()
        def hold():
            with folding._lock:
                held.set()
                release.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            with torch.no_grad():
                for model in (ours, theirs):
                    model.conv1.weight.mul_(-0.5)
            assert_same_function(ours, theirs, image())
            os._exit(0)
        release.set()
        thread.join()
        _, status = os.waitpid(child, 0)
        assert_same_function(ours, theirs, image())
        sys.exit(os.waitstatus_to_exitcode(status))
    """
    path = os.pathsep.join(filter(None, (os.path.dirname(__file__), *sys.path)))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
