"""`fastres info`: what is installed, what it found on this machine, and what of fastres can run here."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

NAME = "info"
HELP = "versions, devices, the native module and the backends of this machine"

_EPILOG = """\
examples:
  fastres info                   what to read first when something runs slower than expected
  fastres info --json            the same for a program, or for a bug report
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Shows versions, devices, the native module, and each backend with what keeps it from running."
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else _text(facts))
    return 0


def collect() -> dict[str, Any]:
    """`environment()` with the native module and the backends, made of JSON's types."""
    from ..backends import registry
    from ..measure.environment import environment

    notes = registry.notes()
    backends = {
        name: {"unavailable": why, "note": notes[name], "verified": _verified(name)}
        for name, why in registry.backends().items()
    }
    return {**environment(), "native": _native(), "backends": backends}


def _verified(name: str) -> list[str] | None:
    """Architectures on which these very kernels are verified, so that `auto` may run them; None for a library's."""
    from ..backends import registry, verification

    try:
        fingerprint = registry.find(name).fingerprint()
    except (ImportError, FileNotFoundError):  # a native module that is broken, or without kernels
        return []
    return None if fingerprint is None else verification.architectures(name, fingerprint)


def _native() -> dict[str, Any]:
    from .. import native
    from ..backends import verification

    try:
        module = native.load()
    except ImportError as error:  # broken rather than missing: what this command is asked for
        return {"built": False, "why": str(error), "kernels": {}}
    if module is None:
        return {"built": False, "why": native.why_missing(), "kernels": {}}
    info = module.build_info()
    families = Counter(dict(info["kernels"]).values())  # symbol -> the file that it is compiled from
    state = verification.standing("cuda", native.kernel_hash()) if families else ""
    kernels = {family: {"variants": count, "state": state} for family, count in sorted(families.items())}
    return {"built": True, **info, "kernels": kernels}


def _text(facts: dict[str, Any]) -> str:
    rows = [(name, version or "none") for name, version in facts["versions"].items()]
    cpu = facts["cpu"]
    cpu_text = f"{cpu['model'] or 'unknown'}, {cpu['isa']}, {cpu['threads']} threads on {cpu['usable_cores']} cores"
    rows += [("", ""), ("system", facts["system"]), ("cpu", cpu_text)]
    for index, gpu in enumerate(facts["gpus"]):
        gib = gpu["memory_bytes"] / 2**30
        rows.append((f"gpu {index}", f"{gpu['name']}, {gib:.1f} GiB, compute capability {gpu['capability']}"))
    if not facts["gpus"]:
        rows.append(("gpu", "none that PyTorch can use"))
    native = facts["native"]
    if native["built"]:
        cuda = f"CUDA {native['cuda']}" if native["cuda"] else f"no CUDA ({native['cuda_missing']})"
        emulator = "with" if native["emulator"] else "without"
        rows += [("", ""), ("native module", f"built with {native['compiler']}, {cuda}, {emulator} emulator")]
        for family, kernels in native["kernels"].items():
            count = kernels["variants"]
            rows.append((f"  {family}", f"{count} variant{'s' * (count != 1)}: {kernels['state']}"))
    else:
        rows += [("", ""), ("native module", f"none: {native['why']}")]
    rows.append(("", ""))
    for name, backend in facts["backends"].items():
        state = f"unavailable: {backend['unavailable']}" if backend["unavailable"] else "available"
        rows.append((f"backend {name}", "; ".join(filter(None, (state, backend["note"])))))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in rows)
