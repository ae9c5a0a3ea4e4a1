"""What `fastres train` and `fastres experiment` share: arguments, a bar with images/s, one run from start to end."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import train
from ..train import checkpoint, distributed
from ..train import data as datasets
from .arguments import default_device, device, integer
from .errors import CommandError, UsageError, printable
from .progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how and where to train, but not what."""
    add: Any = parser.add_argument
    add("--device", type=device, help="cpu, cuda or cuda:N (default: the GPU if any)")
    add("--threads", type=integer(1, 1024), metavar="N", help="CPU threads (default: 1 for digits, else PyTorch's)")
    add("--workers", type=integer(0, 256), default=4, metavar="N", help="processes that decode images (default: 4)")
    add("--root", default="data", metavar="DIR", help="where CIFAR lies (default: data)")
    add("--download", action="store_true", help="download CIFAR to --root if it is not there")
    add(
        "--save-every",
        type=integer(1, 10**9),
        default=1000,
        metavar="N",
        help="iterations between checkpoints, beside one an epoch (default: 1000)",
    )


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


@contextmanager
def clear_errors() -> Iterator[None]:
    """What training raises, as errors and exit statuses of a command."""
    try:
        yield
    except train.SettingError as error:
        raise UsageError(str(error)) from error
    except train.TrainingError as error:
        raise CommandError(str(error)) from error


def place(args: argparse.Namespace, data: str) -> torch.device:
    """The device to train on, with the number of threads set."""
    chosen = distributed.local_device(args.device or default_device())
    threads = args.threads or (1 if data == "digits" else None)  # of 8 x 8 images a second thread mostly waits
    if threads:
        torch.set_num_threads(threads)
    return chosen


def run(
    args: argparse.Namespace,
    recipe: train.Recipe,
    folder: Path,
    where: torch.device,
    world: distributed.World,
    state: dict[str, Any] | None = None,
) -> float:
    """Trains `recipe` into `folder` and returns the test accuracy; process 0 reports each epoch on stdout.

    An interrupt is told on stderr and raised on as KeyboardInterrupt.
    """
    data = datasets.load(recipe, root=args.root, download=args.download, workers=args.workers)
    since = time.perf_counter()

    with progress(recipe.model, shown=world.rank == 0) as bar:

        def advance(count: int, loss: float) -> None:
            nonlocal since
            now = time.perf_counter()
            speed = count * recipe.batch / max(now - since, 1e-9)
            since = now
            bar.advance(count, f"{speed:.0f} images/s  loss {loss:.4f}")

        trainer = train.Trainer(
            recipe,
            data,
            folder,
            state=state,
            device=where,
            world=world,
            save_every=args.save_every,
            on_iterations=advance,
            on_epoch=(lambda epoch: _report(epoch, recipe)) if world.rank == 0 else (lambda epoch: None),
        )
        bar.begin(trainer.iteration, trainer.total)
        try:
            return trainer.run()
        except train.Interrupted as stopped:
            if world.rank == 0:
                print(f"fastres: {stopped}; go on with --resume {printable(folder)}", file=sys.stderr)
            raise KeyboardInterrupt from stopped


def _report(epoch: train.Epoch, recipe: train.Recipe) -> None:
    print(
        f"epoch {epoch.epoch}/{recipe.epochs}  loss {epoch.loss:.4f}  training error {epoch.train_error:.2f} %  "
        f"test accuracy {epoch.test_accuracy:.2f} %  {epoch.images_per_second:.0f} images/s",
        flush=True,
    )


def read_run(folder: Path) -> tuple[train.Recipe, dict[str, Any]]:
    """(recipe, state) of the run in `folder`. Raises TrainingError where there is none."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise train.SettingError(f"argument --resume: no run in {str(folder)!r}: expected a checkpoint.pt there")
    state = checkpoint.load(path)
    try:
        return train.Recipe.from_dict(state["recipe"]), state
    except KeyError as error:
        raise train.TrainingError(f"{path} is not a checkpoint of 'fastres train': its recipe lacks {error}") from error
    except (TypeError, train.SettingError) as error:
        raise train.TrainingError(f"{path} is not a checkpoint of 'fastres train': its recipe: {error}") from error


def free_folder(parent: Path, name: str) -> Path:
    """A new folder: parent/name, or parent/name-2 and so on if that is taken. Raises TrainingError if it cannot be."""
    folder, count = parent / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # perhaps of a process that began at the same moment
            count += 1
            folder = parent / f"{name}-{count}"
        except OSError as error:
            raise train.TrainingError(f"cannot create the folder {folder}: {error.strerror or error}") from error


def remove_empty(folder: Path) -> None:
    """Removes `folder` and the one around it as far as they are empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
