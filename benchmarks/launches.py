"""Which kernels a forward, or with --train a training step, launches on this GPU, and how long each takes.

launches.py FILE [--train]: for every model, batch, dtype and contender of settings.py, a line of JSON. The kernels'
times are the profiler's, of one call after a warm-up; for times to compare by, see the suites.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from problems import contenders
from settings import AGAINST, BATCHES, DEVICE, DTYPES, MODELS

from fastres.measure import kernels
from fastres.measure.processes import one_line
from fastres.measure.session import Session
from fastres.measure.workload import Material, Workload, prepare

WARM_UP = 3
SHOWN = 24  # kernels of a contender


def measure(contender: str, material: Material) -> list[kernels.Launch]:
    session = Session(contender, material)
    for _ in range(WARM_UP):
        session.output()
    with torch.enable_grad() if material.workload.train else torch.inference_mode():
        found = kernels.launches(session.forward, DEVICE)
    session.close()
    return found


def show(found: list[kernels.Launch]) -> None:
    of: dict[str, list[float]] = defaultdict(list)
    for launch in found:
        of[launch.name].append(launch.duration)
    gaps = kernels.gaps(found)
    print(f"  {gaps.launches} launches, {gaps.busy:.0f} us busy, {gaps.idle:.0f} us idle between them")
    for name, times in sorted(of.items(), key=lambda item: -sum(item[1]))[:SHOWN]:
        print(f"  {sum(times):9.1f} us  {len(times):4} x  {name[:110]}")


def main() -> int:
    path, train = Path(sys.argv[1]), "--train" in sys.argv
    rows = []
    failed = 0
    for model in MODELS:
        for batch in BATCHES:
            for dtype in DTYPES:
                workload = Workload(model, batch, dtype=dtype, device=DEVICE, train=train)
                material = prepare(workload)
                for contender in dict.fromkeys((*AGAINST, *contenders(DEVICE)[1:])):
                    print(f"{model} {batch} {dtype} {contender}{' training' if train else ''}", flush=True)
                    try:
                        found = measure(contender, material)
                    except Exception as error:  # whatever a contender may raise
                        print(f"  failed: {one_line(error)}")
                        failed = 1
                        continue
                    show(found)
                    timeline = [[launch.name, launch.start, launch.duration] for launch in found]
                    rows.append([model, batch, str(dtype), contender, train, timeline])
                    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return failed


if __name__ == "__main__":
    sys.exit(main())
