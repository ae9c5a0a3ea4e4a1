"""Training: recipes, data, exact resumption, checkpoints, and the command line around them."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torch import Tensor

import fastres
from fastres.cli import main, training
from fastres.models import cifar, plain
from fastres.train import Interrupted, Recipe, SettingError, Trainer, TrainingError, checkpoint, log, plot, recipe
from fastres.train import data as datasets
from fastres.train.recipe import build


def tiny(**given: Any) -> Recipe:
    """Seconds of training: the smallest network on the digits."""
    return recipe("digits", "resnet8", **{"batch": 200, "epochs": 3, **given})


@pytest.fixture(scope="module")
def digits() -> datasets.Data:
    return datasets.load(recipe())


# --- recipes


def test_the_papers_recipe_for_cifar() -> None:
    made = recipe("cifar10", "resnet110")
    assert (made.batch, made.lr, made.momentum, made.weight_decay) == (128, 0.1, 0.9, 1e-4)
    total = made.epochs * (50_000 // made.batch)
    assert abs(total - 64_000) < 400
    rates = [made.rate(at, 64_000) for at in (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert recipe("cifar10", "resnet56").rate(0, 64_000) == 0.1


def test_the_papers_recipe_for_imagenet() -> None:
    made = recipe("imagefolder", path="somewhere")
    assert (made.model, made.batch, made.lr, made.momentum, made.weight_decay) == ("resnet50", 256, 0.1, 0.9, 1e-4)
    assert abs(made.epochs * (1_281_167 // made.batch) - 600_000) < 1_000
    assert [made.rate(at, 100) for at in (0, 24, 25, 50, 75)] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4])


def test_a_recipe_survives_a_checkpoint() -> None:
    made = recipe("cifar100", "plainnet20", lr=0.05, amp="bfloat16")
    assert Recipe.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    ("made", "kind", "classes", "channels"),
    [
        (recipe(), cifar.ResNet, 10, 1),
        (recipe("cifar100", "plainnet32"), cifar.PlainNet, 100, 3),
        (recipe("imagefolder", "resnet18"), fastres.ResNet18, 7, 3),
        (recipe("imagefolder", "plainnet18"), plain.PlainNet18, 7, 3),
    ],
)
def test_networks(made: Recipe, kind: type, classes: int, channels: int) -> None:
    model = build(made, classes, channels)
    assert type(model) is kind
    assert model.fc.out_features == classes
    assert model.conv1.in_channels == channels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "mnist"}, "data: expected one of digits, .*, got 'mnist'"),
        ({"model": "resnet21"}, r"model: expected resnetD or plainnetD with D = 6n\+2 .*, got 'resnet21'"),
        ({"model": "vgg16"}, "model: .* got 'vgg16'"),
        ({"data": "imagefolder", "model": "resnet20"}, "model: expected one of resnet18, .* got 'resnet20'"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch": 1}, "batch: expected at least 2, as BatchNorm needs, got 1"),
        ({"lr": math.nan}, "lr: expected a number of at least 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number of at least 0, got -1"),
        ({"amp": "float64"}, "amp: expected bfloat16 or float16, got 'float64'"),
    ],
)
def test_settings_that_cannot_be_met(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        recipe(**arguments)


# --- data


def test_digits(digits: datasets.Data) -> None:
    assert (digits.classes, digits.channels) == (10, 1)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    images = torch.cat([digits.train.images, digits.test.images])
    assert len(torch.unique(images.round(decimals=3), dim=0)) > 1790  # no image in both
    assert digits.train.images.mean(0).abs().max() < 1e-5
    assert digits.train.images.std().item() == pytest.approx(1, abs=1e-5)
    assert set(digits.test.labels.tolist()) == set(range(10))


def test_an_epoch_is_a_shuffle_without_repeats() -> None:
    first, second = (torch.cat(datasets.epoch_order(1437, 64, seed)) for seed in (1, 2))
    assert len(first.unique()) == len(first) == 1437 // 64 * 64
    assert not torch.equal(first, second)


def augmented(split: datasets.Pixels, seed: int = 3, shard: slice = slice(None)) -> Tensor:
    ((images, _),) = split.batches([torch.arange(len(split))], [seed], shard)
    return images


def test_augmentation_is_a_shifted_crop_and_its_mirror_image() -> None:
    images = torch.rand(200, 2, 5, 6)
    padded = torch.nn.functional.pad(images, [2] * 4)
    found = set()
    for image, before in zip(
        augmented(datasets.Pixels(images, torch.zeros(200), pad=2, flip=True)), padded, strict=True
    ):
        crops = {
            (top, left, mirrored): before[:, top : top + 5, left : left + 6].flip(2 if mirrored else [])
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
        }
        (where,) = [key for key, crop in crops.items() if torch.equal(crop, image)]
        found.add(where)
    assert len(found) > 45  # of 50


def test_shards_are_the_whole_batch() -> None:
    split = datasets.Pixels(torch.rand(10, 1, 4, 4), torch.zeros(10), pad=1, flip=True)
    whole, parts = augmented(split), [augmented(split, shard=slice(rank, None, 2)) for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    assert not torch.equal(augmented(split, seed=4), whole)


class FakeCIFAR:
    classes = ("cat", "dog")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        if root == "nowhere":
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.data = np.random.default_rng(train).integers(0, 256, (8 + 8 * train, 32, 32, 3), dtype=np.uint8)
        self.targets = [0, 1] * (4 + 4 * train)


@pytest.fixture
def _fake_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR)


@pytest.mark.usefixtures("_fake_cifar")
def test_cifar(tmp_path: Path) -> None:
    made = recipe("cifar10", "resnet8", batch=8, epochs=1)
    loaded = datasets.load(made)
    assert (loaded.classes, loaded.channels, len(loaded.train), len(loaded.test)) == (2, 3, 16, 8)
    pixels = torch.from_numpy(FakeCIFAR("", True, False).data).permute(0, 3, 1, 2).float()
    restored = loaded.train.images * (pixels - pixels.mean(0)).std() + pixels.mean(0)
    torch.testing.assert_close(restored, pixels, rtol=1e-4, atol=1e-3)
    assert (loaded.train.pad, loaded.train.flip, loaded.test.pad, loaded.test.flip) == (4, True, 0, False)
    assert 0 <= Trainer(made, loaded, tmp_path).run() <= 100


@pytest.mark.usefixtures("_fake_cifar")
def test_missing_cifar() -> None:
    with pytest.raises(TrainingError, match=r"'cifar10' is not in 'nowhere', or damaged; --download fetches it"):
        datasets.load(recipe("cifar10"), root="nowhere")


def make_folder(path: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 2) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            (path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{index}.png")
    return path


def folder_recipe(path: Path, **given: Any) -> Recipe:
    return recipe("imagefolder", "resnet18", path=str(path), **{"batch": 2, "epochs": 1, **given})


def test_a_folder_of_images_does_not_depend_on_workers(tmp_path: Path) -> None:
    made = folder_recipe(make_folder(tmp_path))
    order, seeds = datasets.epoch_order(4, 2, 0), [7, 8]
    batches = []
    for workers in (0, 2):
        state = torch.get_rng_state()
        loaded = datasets.load(made, workers=workers)
        batches.append(list(loaded.train.batches(order, seeds, slice(None))))
        if workers == 0:
            assert torch.equal(torch.get_rng_state(), state)
    for (x, y), (other_x, other_y) in zip(*batches, strict=True):
        assert x.shape == (2, 3, 224, 224)
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    assert sum(len(x) for x, _ in loaded.test.batches(datasets.in_order(4, 3), [0, 0], slice(None))) == 4


def test_an_interrupt_leaves_the_workers_at_work(tmp_path: Path) -> None:
    loaded = datasets.load(folder_recipe(make_folder(tmp_path, count=10)), workers=1)
    batches = loaded.train.batches(datasets.epoch_order(20, 2, 0), range(10), slice(None))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 9


def test_a_folder_of_images_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "images")
    arguments = ["--data", "imagefolder", str(tmp_path / "images"), "--model", "resnet18", "--batch", "2"]
    out = str(tmp_path / "run")
    assert main(["train", *arguments, "--epochs", "1", "--workers", "0", "--device", "cpu", "--out", out]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy: ")
    # What it wrote is what `fastres classify` reads.
    image = str(tmp_path / "images/train/cat/0.png")
    assert main(["classify", image, "--weights", f"{out}/checkpoint.pt", "--model", "resnet18"]) == 0


def _removed(path: Path) -> None:
    (path / "train/cat/0.png").unlink()


def _renamed(path: Path) -> None:
    (path / "val/cat/0.png").rename(path / "val/cat/9.png")


def _replaced(path: Path) -> None:
    Image.new("RGB", (50, 50)).save(path / "train/dog/1.png")


def _moved(path: Path) -> None:
    (path / "train/dog/1.png").rename(path / "train/cat/3.png")


@pytest.mark.parametrize("change", [_removed, _renamed, _replaced, _moved])
def test_a_folder_that_changed_is_not_resumed(change: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = folder_recipe(make_folder(tmp_path / "images"), epochs=2)
    trainer = Trainer(made, datasets.load(made), tmp_path / "run")
    trainer.log = log.CurveLog(make_empty(tmp_path / "run") / "log.csv", 0)
    trainer._save()
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    state = checkpoint.load(tmp_path / "run/checkpoint.pt")
    Trainer(made, datasets.load(made), tmp_path / "run", state=state)  # the same images
    change(tmp_path / "images")
    assert main(["train", "--resume", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastres: error: the data set changed since the checkpoint was written: expected 4 and 4 ")
    assert error.count("\n") == 1
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


def make_empty(path: Path) -> Path:
    path.mkdir()
    return path


# --- the loop


def test_training_learns_and_logs(tmp_path: Path, digits: datasets.Data) -> None:
    epochs, done = [], []
    trainer = Trainer(
        tiny(epochs=5), digits, tmp_path, on_epoch=epochs.append, on_iterations=lambda count, loss: done.append(count)
    )
    accuracy = trainer.run()
    rows = log.read(tmp_path / "log.csv")
    assert [row.iteration for row in rows] == list(range(1, 36))
    assert sum(done) == 35
    assert [row.epoch for row in rows] == [1 + i // 7 for i in range(35)]
    assert [row.iteration for row in rows if row.test_error is not None] == [7, 14, 21, 28, 35]
    assert [row.learning_rate for row in rows] == pytest.approx([0.1] * 18 + [0.01] * 8 + [0.001] * 9)
    assert rows[-1].loss < rows[0].loss / 2
    assert accuracy == epochs[-1].test_accuracy == pytest.approx(100 - rows[-1].test_error)
    assert accuracy > 50
    for epoch, row_loss in zip(epochs, [rows[7 * e : 7 * e + 7] for e in range(5)], strict=True):
        assert epoch.loss == pytest.approx(sum(row.loss for row in row_loss) / 7)
        assert epoch.images_per_second > 0


def test_the_evaluation_is_torchs(tmp_path: Path, digits: datasets.Data) -> None:
    """The percentage, from the checkpoint's weights and gradients recorded: PyTorch's own operators."""
    trainer = Trainer(tiny(epochs=1), digits, tmp_path)
    accuracy = trainer.run()
    model = cifar.ResNet(8, in_channels=1)
    model.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["model"])
    right = model.eval()(digits.test.images).argmax(1) == digits.test.labels
    assert accuracy == pytest.approx(right.float().mean().item() * 100, abs=0.3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("amp", [None, "bfloat16", "float16"])
def test_a_resumed_run_goes_on_bit_for_bit(amp: str | None, tmp_path: Path, digits: datasets.Data) -> None:
    """Stopped in the middle of an epoch, some iterations past its last checkpoint."""
    made = tiny(amp=amp)

    def kill(done: int, loss: float) -> None:
        if kill.seen >= 12:
            raise Killed
        kill.seen += done

    kill.seen = 0
    Trainer(made, digits, tmp_path / "whole").run()
    with pytest.raises(Killed):
        Trainer(made, digits, tmp_path / "parts", save_every=5, on_iterations=kill).run()
    state = checkpoint.load(tmp_path / "parts/checkpoint.pt")
    assert state["iteration"] % 7 != 0
    torch.manual_seed(99)  # a new process has another random state
    Trainer(made, digits, tmp_path / "parts", state=state).run()
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()
    ends = [checkpoint.load(folder / "checkpoint.pt") for folder in (whole, parts)]
    for name, tensor in ends[0]["model"].items():
        assert torch.equal(tensor, ends[1]["model"][name]), name
    assert torch.equal(ends[0]["random"]["cpu"], ends[1]["random"]["cpu"])


def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL, at whatever moment, then --resume in another process."""
    arguments = ["train", "--model", "resnet8", "--batch", "200", "--epochs", "8", "--device", "cpu"]
    script = (
        f"import torch; torch.set_num_threads(1); from fastres.cli import main; main({[*arguments, '--out', 'killed']})"
    )
    path = os.pathsep.join([str(Path(fastres.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    while not (tmp_path / "killed/checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = checkpoint.load(tmp_path / "killed/checkpoint.pt")["iteration"]
    assert 0 < before < 56
    assert main(["train", "--resume", str(tmp_path / "killed"), "--device", "cpu"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    logs = [(tmp_path / name / "log.csv").read_bytes() for name in ("killed", "whole")]
    assert logs[0] == logs[1]


def test_one_process_at_a_time_trains_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second refuses and changes nothing; once the first was killed, another may go on."""
    arguments = ["train", "--model", "resnet8", "--batch", "700", "--device", "cpu"]
    script = (
        "import torch; torch.set_num_threads(1); from fastres.cli import main; "
        f"main({[*arguments, '--epochs', '100000', '--out', 'run']})"
    )
    path = os.pathsep.join([str(Path(fastres.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    folder = tmp_path / "run"
    try:
        while not (folder / "checkpoint.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)  # at whatever moment; it still trains into the folder
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert main(["train", "--resume", str(folder), "--device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert error == (
            f"fastres: error: another process is training into {folder}: wait until it ends, or choose another folder\n"
        )
        with pytest.raises(TrainingError, match="another process is training into"):
            Trainer(tiny(), datasets.load(tiny()), folder).run()
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    finally:
        process.kill()
        process.wait()
    state = checkpoint.load(folder / "checkpoint.pt")
    made = Recipe.from_dict({**state["recipe"], "epochs": state["iteration"] // 2 + 1})
    Trainer(made, datasets.load(made), folder, state=state).run()
    assert checkpoint.load(folder / "checkpoint.pt")["iteration"] > state["iteration"]


def test_a_run_that_another_process_moved_on_or_began(tmp_path: Path, digits: datasets.Data) -> None:
    """Between the look into the folder and the claim to it."""
    fresh = Trainer(tiny(), digits, tmp_path)
    Trainer(tiny(epochs=1), digits, tmp_path).run()
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    stale = Trainer(tiny(), digits, tmp_path, state=state)
    Trainer(tiny(epochs=2), digits, tmp_path, state=state).run()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match="holds a run already: --resume goes on with it"):
        fresh.run()
    with pytest.raises(TrainingError, match="moved from iteration 7 to 14 since its checkpoint was read: --resume"):
        stale.run()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path, digits: datasets.Data) -> None:
    (tmp_path / ".checkpoint.pt.0123456789abcdef.tmp").write_bytes(b"half")
    Trainer(tiny(epochs=1), digits, tmp_path).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "checkpoint.pt", "log.csv"]


def test_new_folders_of_processes_that_begin_at_once_differ(tmp_path: Path) -> None:
    assert [training.free_folder(tmp_path / "runs", "a").name for _ in range(3)] == ["a", "a-2", "a-3"]
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot create the folder .*: Not a directory"):
        training.free_folder(tmp_path / "file", "a")


def test_an_interrupt_saves_this_very_moment(tmp_path: Path, digits: datasets.Data) -> None:
    """At iteration 20 of an epoch of 71, where the losses are looked at."""
    trainer = Trainer(
        tiny(batch=20), digits, tmp_path, on_iterations=lambda done, loss: os.kill(os.getpid(), signal.SIGINT)
    )
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"saved .*checkpoint.pt after iteration 20"):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(tmp_path / "checkpoint.pt")["iteration"] == 20
    assert log.read(tmp_path / "log.csv")[-1].iteration == 20


def test_ctrl_c_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastres.cli.training._report", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    out = str(tmp_path / "run")
    assert (
        main(["train", "--model", "resnet8", "--batch", "700", "--epochs", "2", "--device", "cpu", "--out", out]) == 130
    )
    assert f"go on with --resume {out}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", "--resume", out, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown if line.startswith("epoch")] == ["2/2"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, digits: datasets.Data) -> None:
    Trainer(tiny(epochs=1), digits, tmp_path).run()
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    state["model"]["fc.bias"][0] = math.nan
    with pytest.raises(TrainingError, match=r"the loss is nan at iteration 8; a lower --lr may help"):
        Trainer(tiny(), digits, tmp_path, state=state).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


# --- what may go wrong


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, digits: datasets.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(tiny(epochs=1), digits, tmp_path).run()
    kept = (tmp_path / "checkpoint.pt").read_bytes()

    fsync = os.fsync

    def full(file: int) -> None:
        if ".checkpoint.pt" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    trainer = Trainer(tiny(), digits, tmp_path, state=checkpoint.load(tmp_path / "checkpoint.pt"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot write the checkpoint .*No space left on device.*is intact"):
        trainer.run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "checkpoint.pt", "log.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_under_the_log(tmp_path: Path, digits: datasets.Data) -> None:
    written = log.CurveLog(tmp_path / "log.csv", 0)
    written.path = Path("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot write the log /dev/full: No space left on device"):
        written.append([log.Row(1, 1, 0.1, 1.0, 50.0)])
    (tmp_path / "log.csv").unlink()
    (tmp_path / "log.csv").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot write the log .*/log.csv: No space left on device"):
        Trainer(tiny(), digits, tmp_path).run()


def test_a_log_cut_short_by_a_kill(tmp_path: Path) -> None:
    rows = [log.Row(i, 1, 0.1, 1 / i, 50.0, 25.0 if i == 3 else None) for i in (1, 2, 3)]
    path = tmp_path / "log.csv"
    log.CurveLog(path, 0).append(rows)
    assert log.read(path) == rows
    path.write_bytes(path.read_bytes()[:-4])
    assert log.read(path) == rows[:2]
    log.CurveLog(path, 1)
    assert log.read(path) == rows[:1]
    with pytest.warns(UserWarning, match=r"log.csv lacks 2 of the 3 iterations so far: its curves have a gap"):
        log.CurveLog(path, 3)
    path.write_bytes(path.read_bytes()[:-5] + bytes(4) + b"\n")
    with pytest.raises(TrainingError, match=r"is damaged: .*; without this file, --resume goes on"):
        log.CurveLog(path, 1)
    path.write_text("iteration,loss\n1,2\n")
    with pytest.raises(TrainingError, match="is not a log of 'fastres train'"):
        log.read(path)


def _damaged(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 nonsense")


def _other_model(path: Path) -> None:
    state = checkpoint.load(path)
    state["recipe"]["model"] = "resnet14"
    torch.save(state, path)


def _state_dict(path: Path) -> None:
    torch.save(cifar.ResNet(8).state_dict(), path)


def _old_format(path: Path) -> None:
    torch.save({**checkpoint.load(path), "format": 0}, path)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_damaged, "is not a checkpoint"),
        (_truncated, "is not a checkpoint"),
        (_state_dict, "is not a checkpoint of 'fastres train': expected the keys"),
        (_old_format, "has format 0, expected 1"),
        (_other_model, "the checkpoint does not fit resnet14: .*layer1.1"),
    ],
)
def test_checkpoints_that_cannot_be_resumed(
    spoil: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], digits: datasets.Data
) -> None:
    Trainer(tiny(epochs=1, batch=1437), digits, tmp_path).run()
    path, rows = tmp_path / "checkpoint.pt", (tmp_path / "log.csv").read_bytes()
    spoil(path)
    kept = path.read_bytes()
    assert main(["train", "--resume", str(tmp_path), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastres: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert path.read_bytes() == kept
    assert (tmp_path / "log.csv").read_bytes() == rows


def _no_val(path: Path) -> None:
    (make_folder(path) / "val").rename(path / "test")


def _other_classes(path: Path) -> None:
    (make_folder(path) / "val/cat").rename(path / "val/lion")


def _empty_class(path: Path) -> None:
    (make_folder(path) / "train/empty").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "expected a folder with 'train' and 'val'.* with no 'train'"),
        (_no_val, "with no 'val'"),
        (
            lambda path: make_folder(path, classes=()) and (path / "train").mkdir(parents=True),
            "Couldn't find any class",
        ),
        (lambda path: make_folder(path, classes=("cat",)), r"expected at least two classes in .*, got \['cat'\]"),
        (_other_classes, r"expected the same classes .* only one has \['cat', 'lion'\]"),
        (_empty_class, "Found no valid file for the classes empty"),
    ],
)
def test_folders_that_are_no_data_set(
    make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "images")
    arguments = ["train", "--data", "imagefolder", str(tmp_path / "images"), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_and_the_run_saved(workers: int, tmp_path: Path) -> None:
    images = make_folder(tmp_path / "images", count=3)
    made = folder_recipe(images)
    loaded = datasets.load(made, workers=workers)
    trainer = Trainer(made, loaded, tmp_path / "run")
    order = datasets.epoch_order(6, 2, trainer._seed(0))
    last = loaded.train.folder.samples[int(order[-1][0])][0]
    Path(last).write_bytes(Path(last).read_bytes()[:100])
    with pytest.raises(TrainingError, match=rf"cannot read the image {last}: "):
        trainer.run()
    assert checkpoint.load(tmp_path / "run/checkpoint.pt")["iteration"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet21"], "model: expected resnetD"),
        (["--batch", "1438"], "batch: expected at most the 1437 images there are, got 1438"),
        (["--batch", "1"], "argument --batch: expected a whole number from 2"),
        (["--lr", "-0.1"], "argument --lr: expected a number of at least 0, got '-0.1'"),
        (["--lr", "nan"], "argument --lr: "),
        (["--data", "imagefolder"], "argument PATH: expected the folder of images"),
        (["somewhere"], "argument PATH: expected none for --data digits, got 'somewhere'"),
        (["--resume", "nowhere"], "argument --resume: no run in 'nowhere'"),
        (["--resume", "a", "--out", "b"], "not allowed with"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["train", "--model", "resnet8", "--batch", "1437", "--epochs", "1", "--device", "cpu"]
    assert main(short) == 0
    assert main(short) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits-resnet8", "digits-resnet8-2"]
    assert main([*short, "--out", "runs/digits-resnet8"]) == 2
    assert "holds a run already: --resume goes on with it" in capsys.readouterr().err
    assert main(["train", "--resume", "runs/digits-resnet8", "--model", "resnet20"]) == 2
    assert "argument --model: the run in 'runs/digits-resnet8' has 'resnet8', got 'resnet20'" in capsys.readouterr().err


def test_without_the_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: datasets.Data
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    short = ["train", "--model", "resnet8", "--batch", "1437", "--epochs", "1", "--device", "cpu"]
    assert main([*short, "--out", str(tmp_path)]) == 0
    assert "no plot of the curves: curves need matplotlib: pip install 'fastres[plot]'" in capsys.readouterr().err
    assert main(["experiment", "degradation"]) == 1
    assert "curves need matplotlib" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(short) == 1
    assert "needs scikit-learn: pip install 'fastres[train]'" in capsys.readouterr().err


# --- curves and experiments


def test_curves() -> None:
    rows = [log.Row(1, 1, 0.1, 1.0, 80.0), log.Row(2, 1, 0.1, 1.0, 60.0, 50.0), log.Row(3, 2, 0.1, 1.0, 40.0, 30.0)]
    assert plot.training_curve(rows) == ([2, 3], [70.0, 40.0])
    assert plot.test_curve(rows) == ([2, 3], [50.0, 30.0])


def test_degradation_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["experiment", "degradation", "--depths", "8", "14", "--epochs", "1", "--device", "cpu"]
    command += ["--out", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for name in ("figure1", "figure4", "figure6"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    for label in ("plain-8", "plain-14", "ResNet-8", "ResNet-14"):
        assert label in shown
    assert main(command) == 0
    assert "epoch 1/1" not in capsys.readouterr().out  # nothing was trained again
    assert main([*command, "--seed", "1"]) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_the_default_run_reads_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastres train`: 97 % or better of the test images."""
    assert main(["train", "--device", "cpu", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("test accuracy: ")
    assert float(last.split()[2]) >= 97
