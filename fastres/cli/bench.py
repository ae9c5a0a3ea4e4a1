"""`fastres bench`: fastres beside torchvision and others on this machine; parity first, then time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import arguments, measuring
from .errors import UsageError

if TYPE_CHECKING:
    from ..measure.workload import Workload

NAME = "bench"
HELP = "time fastres beside torchvision and others: parity first"

MODELS, BATCHES, AGAINST = ["resnet50"], [1, 8], ["eager", "eager-channels-last"]
ALL = "all"

_EPILOG = """\
Every contender runs the same seeded weights on the same photograph. Its output is checked against a float64 oracle
before it is timed: fastres may err twice as much as PyTorch in the same dtype, a peer eight times; the column "error"
is in units of PyTorch's. Contenders take turns, each in a process of its own on a CPU, and ratios are taken round by
round. The exit status is 1 if one failed or gave a wrong result.

contenders:
  eager, eager-channels-last                              torchvision's model
  compile, compile-freezing, compile-max-autotune         torch.compile; on a CPU it takes a C++ compiler and a minute
  tensorrt                                                where torch-tensorrt is installed, on a GPU
  onnxruntime, openvino                                   where installed, float32 on a CPU
  eager-graph, fastres-graph                              as a CUDA graph
  fastres:BACKEND                                         fastres on one backend, such as fastres:cudnn
  module:function                                         your own: function(model, x) returns a function that runs it

examples:
  fastres bench                                           ResNet-50 beside torchvision, in two minutes
  fastres bench --against all --seconds 0 --json r50.json every contender, full length, with all samples in r50.json
  fastres bench --models resnet18 resnet152 --batch 1 32 --dtype bfloat16
  fastres bench --train --batch 8 --against eager-channels-last compile
  fastres bench --show r50.json                           the tables of an earlier run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Times fastres beside torchvision and others on this machine."
    parser.epilog = _EPILOG
    add: Callable[..., Any] = parser.add_argument
    add("--models", nargs="+", type=arguments.model, default=MODELS, metavar="MODEL", help="default: resnet50")
    add("--batch", nargs="+", type=arguments.integer(1, 65536), default=BATCHES, metavar="N", help="default: 1 8")
    add("--size", type=arguments.integer(32, 4096), default=224, metavar="PIXELS", help="image size (default: 224)")
    arguments.add_placement(parser)
    add("--against", nargs="+", default=AGAINST, metavar="NAME", help="contenders, the baseline first, or 'all'")
    add(
        "--train",
        action="store_true",
        help="a training step (forward, loss, backward; no optimizer; autocast for a narrower dtype), not a forward",
    )
    add("--rounds", type=arguments.integer(1, 10000), default=15, metavar="N", help="samples of each (default: 15)")
    add("--threads", type=arguments.integer(1, 4096), metavar="N", help="CPU threads (default: PyTorch's choice)")
    add(
        "--seconds",
        type=arguments.integer(0, 10**6),
        default=100,
        metavar="S",
        help="on a busy machine, cut rounds to stay near this time; 0: never (default: 100)",
    )
    add("--json", type=Path, metavar="FILE", help="save the record, every sample in it")
    add("--show", type=Path, metavar="FILE", help="show a saved record and measure nothing")


def run(args: argparse.Namespace) -> int:
    from ..measure import results

    result = measuring.load(args.show) if args.show else _measure(args)
    console = measuring.console()
    with measuring.from_record(args.show):
        tables = results.tables(measuring.plain(result), wide=console.width >= 115)
        failures = results.failures(result)
    console.print(tables)
    if args.json:
        measuring.save(result, args.json)
    return 1 if failures else 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ..measure import results, roofline
    from ..measure.compare import compare
    from ..measure.workload import Workload

    begin = time.monotonic()
    device = args.device or arguments.default_device()
    measuring.check_dtype(args.dtype, device)
    if args.json:
        measuring.check_writable(args.json, "--json")
    workloads = [
        Workload(model, batch, args.size, args.dtype, device, train=args.train)
        for model in args.models
        for batch in args.batch
    ]
    names = _contenders(args, workloads[0])
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    settings = {"rounds": args.rounds, "seconds": args.seconds, "threads": torch.get_num_threads(), "contenders": names}
    total = len(workloads) * args.rounds * len(names)
    with measuring.progress(total) as (title, progress):
        progress.step("this device's ceilings")
        ceilings = roofline.ceilings(device, args.dtype)
        ceilings_by_dtype = {results.dtype_name(args.dtype): ceilings}
        for i, workload in enumerate(workloads):
            title(f"{workload.model}, batch {workload.batch}")
            now = time.monotonic()
            share = (begin + args.seconds - now) / (len(workloads) - i) if args.seconds else float("inf")
            found = compare(workload, names, args.rounds, args.threads, now + share, progress)
            rows += [results.model_row(row, ceilings) for row in found]
    return results.record("models", rows, ceilings_by_dtype, settings)


def _contenders(args: argparse.Namespace, workload: Workload) -> list[str]:
    """Names in the order of the table: the baseline first, fastres last."""
    from ..measure import contenders

    fastres = contenders.FASTRES if args.backend in (None, "auto") else f"{contenders.FASTRES}:{args.backend}"
    if ALL in args.against:
        names = [*AGAINST, *(name for name in contenders.NAMES if name not in (*AGAINST, contenders.FASTRES))]
        names = [name for name in names if workload.device.type in contenders.get(name).devices]
    else:
        names = args.against
        for name in names:
            try:
                reason = contenders.get(name).unavailable(workload)
            except ValueError as error:
                raise UsageError(f"argument --against: {error}, or {ALL}") from error
            if reason:
                raise UsageError(f"argument --against: {name!r} is not available: {reason}")
    return list(dict.fromkeys([*(name for name in names if name != fastres), fastres]))
