"""The loop: iterations, an evaluation after each epoch, checkpoints from which a run goes on bit for bit."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..signals import StopRequest
from . import checkpoint
from .data import Data, epoch_order, in_order
from .distributed import World, synchronize_batch_norm
from .errors import Interrupted, SettingError, TrainingError
from .folder import CHECKPOINT, LOG, claim
from .log import CurveLog, Row
from .recipe import Recipe, build

_FLUSH = 20  # iterations between two looks at the losses, each of which waits for the device
_TEST_BATCH = 256


class Epoch(NamedTuple):
    """One epoch, counted from 1: mean loss and training error, test accuracy (percent), training images a second."""

    epoch: int
    loss: float
    train_error: float
    test_accuracy: float
    images_per_second: float


class Trainer:
    """Trains a recipe's network into `folder`: checkpoint.pt and log.csv.

    Args:
        recipe: what to train.
        data: on what.
        folder: where the run lies; created by `run`. With `state`, the folder that it came from.
        state: a checkpoint's contents (`checkpoint.load`) to go on from.
        device: where to train.
        world: this process's place among those of the run.
        save_every: iterations between checkpoints; one is written after every epoch anyway.
        on_iterations: called with a number of iterations that are done, and their mean loss.
        on_epoch: called after each epoch.

    Raises:
        SettingError: for a batch that the data or the processes cannot fill.
        TrainingError: where `state` is of another model.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        folder: Path,
        *,
        state: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        world: World | None = None,
        save_every: int = 1000,
        on_iterations: Callable[[int, float], None] = lambda count, loss: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> None:
        self.recipe, self.data, self.folder = recipe, data, folder
        self.device, self.world, self.save_every = torch.device(device), world or World(), save_every
        self.on_iterations, self.on_epoch = on_iterations, on_epoch
        self.path = folder / CHECKPOINT
        self.per_epoch = len(data.train) // recipe.batch
        if not self.per_epoch:
            raise SettingError(f"batch: expected at most the {len(data.train)} images there are, got {recipe.batch}")
        if recipe.batch % self.world.size:
            raise SettingError(f"batch: expected a multiple of the {self.world.size} processes, got {recipe.batch}")
        self.total = self.per_epoch * recipe.epochs
        self.iteration = 0
        self.epoch_sums = [0.0, 0.0]  # of this epoch's losses and training errors
        self.pending: list[tuple[Row, Tensor]] = []
        torch.manual_seed(recipe.seed)
        net = build(recipe, data.classes, data.channels).to(self.device)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.sync_bn:
            self.net = synchronize_batch_norm(self.net, self.device)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "float16")
        if state is not None:
            self._restore(state)
        self.model: nn.Module = self.net if self.world.size == 1 else DistributedDataParallel(self.net)
        self.log: CurveLog | None = None
        self.resumed, self.begun = state is not None, self.iteration

    def run(self) -> float:
        """Trains to the end and returns the test accuracy in percent.

        Raises Interrupted after SIGINT or SIGTERM, with a checkpoint of that moment, and TrainingError where the run
        cannot begin or go on (another process trains into the folder, it holds another run, the disk is full): the
        newest checkpoint is then intact.
        """
        with ExitStack() as stack:
            self._open(stack)
            stop = stack.enter_context(StopRequest())
            try:
                while self.iteration < self.total:
                    self._epoch(stop)
                return 100 - self.test_error()
            except RuntimeError as error:
                if self.world.size == 1:
                    raise
                raise TrainingError(
                    f"process {self.world.rank} of {self.world.size} stopped after iteration {self.iteration}: "
                    f"{str(error).strip().splitlines()[0]}; if another was lost, --resume goes on from {self.path}"
                ) from error

    def _epoch(self, stop: StopRequest) -> None:
        epoch, start = divmod(self.iteration, self.per_epoch)
        order = epoch_order(len(self.data.train), self.recipe.batch, self._seed(epoch))[start:]
        seeds = [self._seed(epoch, start + place) for place in range(len(order))]
        began = time.perf_counter()
        self.model.train()
        batches = self.data.train.batches(order, seeds, self.world.shard)
        for _ in order:
            try:
                x, y = next(batches)
            except TrainingError:
                if self.world.size == 1:  # several processes could not agree on it now
                    self._save()
                raise
            self._step(x, y, epoch)
            if self.iteration % self.per_epoch == 0:
                break
            if self.iteration % _FLUSH == 0:
                self._flush()
            if self.world.any(stop.requested):
                self._stop()
            if self.iteration % self.save_every == 0:
                self._save()
        self._flush(last=1)
        images_per_second = len(order) * self.recipe.batch / (time.perf_counter() - began)
        test_error = self.test_error()
        self._flush(test_error=test_error)
        loss, wrong = (value / self.per_epoch for value in self.epoch_sums)
        self.epoch_sums = [0.0, 0.0]
        self._save()
        self.on_epoch(Epoch(epoch + 1, loss, wrong, 100 - test_error, images_per_second))
        if self.world.any(stop.requested) and self.iteration < self.total:
            self._stop()

    def _step(self, x: Tensor, y: Tensor, epoch: int) -> None:
        rate = self.recipe.rate(self.iteration, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        y = y.to(self.device, non_blocking=True)
        with self._autocast():
            scores = self.model(x)
            loss = F.cross_entropy(scores, y)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1
        wrong = (scores.detach().argmax(1) != y).float().mean() * 100
        row = Row(self.iteration, epoch + 1, rate, math.nan, math.nan)
        self.pending.append((row, torch.stack([loss.detach().float(), wrong])))

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.recipe.amp or "bfloat16")
        return torch.autocast(self.device.type, dtype, enabled=bool(self.recipe.amp))

    def test_error(self) -> float:
        """Percent of the test images that the network, in evaluation mode, gets wrong."""
        if self.world.size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)  # as DistributedDataParallel does before it trains on
        self.net.eval()
        wrong = torch.zeros(1)
        order = in_order(len(self.data.test), _TEST_BATCH)
        with torch.inference_mode(), self._autocast():
            for x, y in self.data.test.batches(order, [0] * len(order), self.world.shard):
                wrong += (self.net(x.to(self.device)).argmax(1).cpu() != y).sum()
        return self.world.total(wrong).item() / len(self.data.test) * 100

    def _flush(self, *, last: int = 0, test_error: float | None = None) -> None:
        """Writes the rows since the last flush, but for the `last` ones, and checks that their losses are finite."""
        count = len(self.pending) - last
        if count <= 0:
            return
        done, self.pending = self.pending[:count], self.pending[count:]
        values = self.world.total(torch.stack([value for _, value in done]).cpu().double()) / self.world.size
        rows = [
            row._replace(loss=loss, train_error=wrong)
            for (row, _), (loss, wrong) in zip(done, values.tolist(), strict=True)
        ]
        for row in rows:
            if not math.isfinite(row.loss):
                raise TrainingError(f"the loss is {row.loss} at iteration {row.iteration}; a lower --lr may help")
            self.epoch_sums[0] += row.loss
            self.epoch_sums[1] += row.train_error
        rows[-1] = rows[-1]._replace(test_error=test_error)
        if self.log is not None:
            self.log.append(rows)
        self.on_iterations(len(rows), sum(row.loss for row in rows) / len(rows))

    def _stop(self) -> None:
        self._save()
        raise Interrupted(str(self.path), self.iteration)

    def _save(self) -> None:
        self._flush()
        if self.log is None:
            return
        self.log.sync()  # no checkpoint of iterations that the log could lose
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "recipe": self.recipe.to_dict(),
            "iteration": self.iteration,
            "epoch_sums": self.epoch_sums,
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random,
            "data": self.data.identity,
        }
        checkpoint.save(self.path, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if (known := state.get("data", "")) != self.data.identity and known:  # older checkpoints have none
            raise TrainingError(
                f"the data set changed since the checkpoint was written: expected {known}, got {self.data.identity}; "
                "restore it, or begin a new run"
            )
        try:
            self.net.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.iteration, self.epoch_sums = int(state["iteration"]), [float(value) for value in state["epoch_sums"]]
            if not 0 <= self.iteration <= self.total:
                raise ValueError(f"iteration: expected 0 to {self.total}, got {self.iteration}")
            torch.set_rng_state(state["random"]["cpu"])
            if self.device.type == "cuda" and "cuda" in state["random"]:
                torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            told = " ".join(str(error).split())[:300]
            raise TrainingError(f"the checkpoint does not fit {self.recipe.model}: {told}") from error

    def _open(self, stack: ExitStack) -> None:
        """Makes the folder this run's until `stack` ends, in every process or in none."""
        problem = ""
        if self.world.rank == 0:
            try:
                stack.enter_context(claim(self.folder))
                self._check_folder()
                self.log = CurveLog(self.folder / LOG, self.iteration)
            except TrainingError as error:
                problem = str(error)
        if problem := self.world.agree(problem):
            raise TrainingError(problem)

    def _check_folder(self) -> None:
        """Nobody wrote another checkpoint before the folder was ours, which this run would replace."""
        if self.log is not None or not self.path.exists():
            return
        if not self.resumed:
            raise TrainingError(f"{self.folder} holds a run already: --resume goes on with it")
        if (found := checkpoint.load(self.path)["iteration"]) != self.begun:
            raise TrainingError(
                f"the run in {self.folder} moved from iteration {self.begun} to {found} since its checkpoint was read: "
                "--resume again"
            )

    def _seed(self, *of: int) -> int:
        digest = hashlib.sha256(repr((self.recipe.seed, *of)).encode()).digest()
        return int.from_bytes(digest[:7], "little")
