"""Many processes: gradients and statistics of one, the images of one, and an end that loses nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import image, randomize
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastres
from fastres.models import cifar
from fastres.train import Recipe, SettingError, Trainer, checkpoint, distributed, log, recipe
from fastres.train import data as datasets

# The package that is tested, be it installed or not, and this folder.
PATHS = Path(fastres.__file__).parents[1], Path(__file__).parent


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(arguments: list[str], processes: int = 2) -> list[subprocess.Popen]:
    """What torchrun does: one process a rank, told by the environment where the others are."""
    port = free_port()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([*map(str, PATHS), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PATHS[1],  # Python looks first where it is started, were the sources there
            env={**os.environ, **common, "PYTHONPATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each, killed if they outlast a generous limit."""
    try:
        results = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, results, strict=True)]


# --- one step of two processes, as one process takes it


def step(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients, and buffers after the step, by name."""
    model.train()
    nn.functional.cross_entropy(model(x), y).backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    tensors = {f"gradient of {name}": p.grad for name, p in inner.named_parameters()}
    return tensors | {name: buffer.detach().clone() for name, buffer in inner.named_buffers()}


def network() -> nn.Module:
    """In float64, where only an error of logic is larger than rounding."""
    torch.manual_seed(1)
    return randomize(cifar.ResNet(8)).double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return image(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)


def rank_main(out: str, kind: str) -> None:
    """One rank's half of the batch, with statistics synchronized; what it got is saved.

    torch's own SyncBatchNorm takes no CPU tensor, so that a step of it shows that every one was fused.
    """
    torch.set_num_threads(1)
    with distributed.world(torch.device("cpu")) as world:
        model = network()
        if kind == "plain":
            model = DistributedDataParallel(distributed.synchronize_batch_norm(model, torch.device("cpu")))
        else:
            model = DistributedDataParallel(model)  # which asks whether such layers are on a GPU
            model.module = nn.SyncBatchNorm.convert_sync_batchnorm(model.module)
        x, y = batch()
        found = step(model, x[world.shard], y[world.shard])
        torch.save(found, f"{out}/{world.rank}.pt")
        assert world.agree(f"from {world.rank}") == "from 0"
        assert world.any(world.rank == 1)
        assert not world.any(False)


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_two_processes_with_synchronized_statistics_are_one(kind: str, tmp_path: Path) -> None:
    for status, _, stderr in ended(launch([__file__, str(tmp_path), kind])):
        assert status == 0, stderr
    one = step(network(), *batch())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == one.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    torch.testing.assert_close(first, one)


def test_synchronized_batch_norm_is_batch_norm_in_one_process() -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        model = distributed.synchronize_batch_norm(network(), torch.device("cpu"))
        found = step(model, *batch())
    finally:
        distributed.leave()
    assert {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {distributed.CPUSyncBatchNorm}
    torch.testing.assert_close(found, step(network(), *batch()))
    assert model.state_dict().keys() == network().state_dict().keys()


# --- whole runs


def train(*arguments: str) -> list[str]:
    return ["-m", "fastres", "train", "--device", "cpu", "--model", "resnet8", "--batch", "240", *arguments]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The same images in the same batches: losses differ by rounding alone, and the test accuracy is of all images."""
    results = ended(launch(train("--epochs", "1", "--sync-bn", "--out", str(tmp_path / "two"))))
    assert [status for status, _, _ in results] == [0, 0], results
    assert re.search(r"^test accuracy: [0-9.]+ %$", results[0][1], re.MULTILINE)
    assert results[1][1] == ""
    made = recipe("digits", "resnet8", batch=240, epochs=1)
    accuracy = Trainer(made, datasets.load(made), tmp_path / "one").run()
    one, two = (log.read(tmp_path / name / "log.csv") for name in ("one", "two"))
    torch.testing.assert_close(
        torch.tensor([row.loss for row in two]), torch.tensor([row.loss for row in one]), rtol=1e-3, atol=0
    )
    assert two[-1].test_error == pytest.approx(100 - accuracy, abs=1)


def test_a_lost_process_ends_the_run_with_a_usable_checkpoint(tmp_path: Path) -> None:
    processes = launch(train("--epochs", "100000", "--out", str(tmp_path)))
    path = tmp_path / "checkpoint.pt"
    wait_for(path.exists, processes)
    processes[1].kill()
    (status, _, stderr), _ = ended(processes)
    assert status == 1
    assert re.search(r"fastres: error: process 0 of 2 stopped after iteration \d+: .*--resume goes on from", stderr), (
        stderr
    )
    assert "Traceback" not in stderr
    state = checkpoint.load(path)
    made = Recipe.from_dict(state["recipe"])
    trainer = Trainer(made, datasets.load(made), tmp_path, state=state)
    assert trainer.iteration == state["iteration"] > 0
    log.CurveLog(tmp_path / "log.csv", trainer.iteration)
    assert log.read(tmp_path / "log.csv")[-1].iteration == trainer.iteration
    assert 0 <= trainer.test_error() <= 100


def wait_for(condition: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
    """Returns once `condition()` holds; fails if a process ended before."""
    while not condition():
        if any(process.poll() is not None for process in processes):
            raise AssertionError(ended(processes))
        time.sleep(0.05)


def test_a_signal_to_one_process_stops_all_and_saves(tmp_path: Path) -> None:
    processes = launch(train("--epochs", "100000", "--out", str(tmp_path)))
    wait_for((tmp_path / "checkpoint.pt").exists, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [status for status, _, _ in results] == [130, 130], results
    assert "go on with --resume" in results[0][2]
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert log.read(tmp_path / "log.csv")[-1].iteration == state["iteration"]


def test_a_batch_that_processes_cannot_share(tmp_path: Path) -> None:
    made = recipe("digits", batch=63)
    with pytest.raises(SettingError, match=r"batch: expected a multiple of the 2 processes, got 63"):
        Trainer(made, datasets.load(made), tmp_path, world=distributed.World(0, 2))


if __name__ == "__main__":
    rank_main(*sys.argv[1:])
