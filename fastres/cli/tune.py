"""`fastres tune`: measures which tiles and which backends are fastest on this GPU, and keeps that for later runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from .arguments import DTYPES, default_device, device, dtype, integer, model
from .errors import CommandError
from .progress import progress

NAME = "tune"
HELP = "measure tiles and backends on this GPU and keep the fastest"

_EPILOG = """\
Each distinct layer is measured with every tile of the Triton kernels that fits, then with every backend that runs it;
what is timed was first seen to be right. What is found goes into the user's tables, which come before everything else:
the tiles, and the order in which 'auto' asks the backends (kernels of fastres's own run only where they are verified:
'fastres selftest').

examples:
  fastres tune ResNet50 --dtype bfloat16                    batches of 1, 32 and 256
  fastres tune ResNet18 ResNet34 --batch 8 --size 160       two models, one batch and image size
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measures tiles and backends for the layers of models."
    parser.epilog = _EPILOG
    add: Callable[..., Any] = parser.add_argument
    add("model", type=model, nargs="+", metavar="MODEL", help="names of models, as in fastres.ResNet50")
    add("--batch", type=integer(1, 4096), nargs="+", default=[1, 32, 256], metavar="N", help="default: 1 32 256")
    add("--size", type=integer(32, 4096), default=224, metavar="PIXELS", help="side of the images (default: 224)")
    add("--dtype", type=dtype, default=torch.bfloat16, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: bfloat16)")
    add("--rounds", type=integer(5, 1000), default=15, metavar="N", help="samples of each tile (default: 15)")
    add("--device", type=device, help="cuda or cuda:N (default: the GPU)")


def run(args: argparse.Namespace) -> int:
    from .. import cache
    from ..backends import BackendError

    try:
        with cache.changing("tuning.json"):  # before minutes are spent, not after
            pass
    except OSError as error:
        raise CommandError(f"cannot keep what is measured: {error}") from error
    target = args.device or default_device()
    jobs = [(name, batch) for name in args.model for batch in args.batch]
    try:
        _rank_backends(_tune_tiles(jobs, args, target), args, target)
    except BackendError as error:
        raise CommandError(str(error)) from error
    return 0


def _tune_tiles(jobs: list[tuple[str, int]], args: argparse.Namespace, target: torch.device) -> list[Any]:
    """Measures the tiles of every problem, and gives the problems that backends are to be ranked on."""
    import fastres

    from .. import tuning
    from ..backends import registry, use_backend
    from ..measure import ranking
    from ..measure.tiles import Measured, measuring
    from ..measure.timing import timer_for

    found: list[Measured] = []
    posed: dict[str, Any] = {}

    def report(measured: Measured) -> None:
        found.append(measured)
        gain = measured.known_seconds / measured.fastest_seconds
        text = f"{_text(measured.fastest)}, {gain:.2f} times as fast as before"
        print(f"{measured.problem.key()}: {text}")
        tuning.record({measured.problem: measured.fastest}, measured.numbers, tuning.architecture(target))

    timer = timer_for(target)
    with (
        progress("tiles", len(jobs)) as bar,
        use_backend("triton"),
        torch.inference_mode(),
        measuring(timer, args.rounds, report),
    ):
        for name, batch in jobs:
            net = getattr(fastres, name)().eval().to(target, args.dtype)
            with registry.recording() as choices:
                net(torch.randn(batch, 3, args.size, args.size, device=target, dtype=args.dtype))
            posed.update((problem.key, problem) for problem in ranking.problems(choices, args.dtype))
            bar.advance()
    print(f"{len(found)} tiles measured on {target}; the table is {tuning.user_table()}")
    return list(posed.values())


def _rank_backends(posed: list[Any], args: argparse.Namespace, target: torch.device) -> None:
    from ..backends import ranking
    from ..measure.contenders import use_best_settings
    from ..measure.ranking import measure
    from ..measure.timing import timer_for

    use_best_settings()  # the library at its best is what ours must beat
    numbers = ranking.arithmetic(args.dtype)
    timer = timer_for(target)
    # Not inference_mode, whose tensors have no version: they would be folded anew in each call.
    with progress("backends", len(posed)) as bar, torch.no_grad():
        for problem in posed:
            ranked = measure(problem, target, timer, args.rounds)
            if ranked.seconds:
                ranking.record({problem.key: next(iter(ranked.seconds))}, numbers, target)
            times = [f"{name} {seconds * 1e6:.1f} us" for name, seconds in ranked.seconds.items()]
            left_out = [f"{name}: {why}" for name, why in ranked.left_out.items()]
            print(f"{problem.key}: {', '.join(times)}" + "".join(f"; {text}" for text in left_out))
            bar.advance()
    print(f"{len(posed)} problems ranked on {target}; the table is {ranking.user_table()}")


def _text(tile: Any) -> str:
    return f"tile {tile.m} x {tile.n} x {tile.k}, {tile.warps} warps, {tile.stages} stages"
