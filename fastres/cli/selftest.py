"""`fastres selftest`: the cases that every backend must pass, run on this machine; verifies our kernels for `auto`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

from .arguments import DTYPES, backend, default_device, device, dtype
from .errors import CommandError, UsageError

NAME = "selftest"
HELP = "check the backends on this machine; verifies fastres's own kernels"

_EPILOG = """\
Every case is held against a float64 oracle: a result may err twice as much as PyTorch's own in the same dtype. Where
all cases of a backend of fastres's own kernels pass on a GPU, that is recorded, and 'auto' may use it from then on.
On a GPU, convolutions in float32 are checked as such and in TF32, PyTorch's own then with operands rounded to TF32.

examples:
  fastres selftest                                        every backend that runs here
  fastres selftest --backend triton --dtype bfloat16      one backend and dtype; recorded only if every dtype is run
  fastres selftest --list                                 the cases

exit status: 0 if no case failed, 1 if one did, 2 for wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs every backend's cases on this machine."
    parser.epilog = _EPILOG
    add: Callable[..., Any] = parser.add_argument
    add("--backend", type=backend, nargs="+", metavar="NAME", help="backends to check (default: all available)")
    add("--dtype", type=dtype, nargs="+", metavar="DTYPE", help=f"of {', '.join(DTYPES)} (default: all)")
    add("--device", type=device, help="cpu, cuda or cuda:N (default: the GPU if any)")
    add("--match", nargs="+", metavar="TEXT", help="only cases in whose line of --list one of these is; not recorded")
    add("--list", action="store_true", help="list the cases and run nothing")


def run(args: argparse.Namespace) -> int:
    from .. import backends, selftest
    from ..backends import registry, verification

    target = args.device or default_device()
    cases = list(selftest.cases(args.dtype or selftest.FLOATS, target.type))
    if args.match:
        cases = [case for case in cases if any(text in str(case) for text in args.match)]
        if not cases:
            raise UsageError(f"argument --match: no case has {' or '.join(map(repr, args.match))}: see --list")
    if args.list:
        print("\n".join(map(str, cases)))
        return 0
    names = args.backend or [name for name, why in backends().items() if why is None]
    if registry.AUTO in names:
        raise UsageError("argument --backend: 'auto' names no backend to check")
    failed = 0
    for name in names:
        outcomes = []
        for case in cases:
            outcome = selftest.run(case, name, target)
            outcomes.append(outcome)
            if outcome.status == selftest.FAILED:
                print(f"{name}: FAILED {case}: {outcome.detail}", flush=True)
        counts = Counter(outcome.status for outcome in outcomes)
        failed += counts[selftest.FAILED]
        print(f"{name} on {target}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
        for reason, n in Counter(o.detail for o in outcomes if o.status == selftest.DECLINED).items():
            print(f"  {n} declined: {reason}")
        for record in [] if args.dtype or args.match else selftest.verify(name, target, outcomes):
            try:
                path = verification.add(record)
                print(f"  verified for {record.work} on {record.architecture}: recorded in {path}")
            except OSError as error:
                raise CommandError(f"cannot record the verification: {error}") from error
    return 1 if failed else 0
