"""Makes docs/performance.md and its plots of the records under benchmarks/results/, and of nothing else.

What a record cannot say of itself, such as the sources that were measured, is in a file of its name in .md.

python benchmarks/pages.py          writes them
python benchmarks/pages.py --check  says what differs, and exits with 1 if anything does
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plots import ratios, speeds

from fastres.measure import charts, results
from fastres.measure.profile import KIND as PROFILE
from fastres.measure.profile_tables import worths
from fastres.measure.statistics import summarize
from fastres.measure.svg import number
from fastres.measure.traffic import FUSIONS

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, IMAGES = ROOT / "benchmarks" / "results", Path("docs/performance.md"), Path("docs/images/performance")

Record = dict[str, Any]

_HEAD = """\
# Performance

Made by `python benchmarks/pages.py` from the records under `benchmarks/results/`; a test fails where this page and they
differ. What a figure means, and how to measure your own machine: [benchmarks](../benchmarks/README.md).

Every result was held against a float64 oracle before it was timed. Contenders took turns, and ratios are taken round by
round: median and, in brackets, quartiles. Above 1 is faster than the first contender of the table. The load is how many
processes wanted a core as the run ended: where it is above the number of cores, others shared them, and times are
longer than on an idle machine; ratios, and only they, stand. A roofline above 100 % has a ceiling that was measured in
worse times than the contender.
"""

_NO_GPU = """\
## GPUs

**There is no result of a GPU here**, so nothing on this page speaks of the speed of fastres's \
GPU kernels. `benchmarks/run_gpu.sh all` on a GPU leaves the records that this page would show.
"""


def records(folder: Path) -> list[tuple[Path, Record]]:
    """Every record under `folder`, by path. Raises ValueError for a file that is none."""
    return [(path, results.load(path)) for path in sorted(folder.rglob("*.json"))]


def documents(found: Sequence[tuple[Path, Record]]) -> dict[Path, str]:
    """Every file that the records make: its path from the root, and its text."""
    files: dict[Path, str] = {}
    by_device: dict[str, list[tuple[Path, Record]]] = {}
    for path, record in found:
        by_device.setdefault(device(record), []).append((path, record))
    parts = [_HEAD]
    if not any(on_gpu(record) for _, record in found):
        parts.append(_NO_GPU)
    for name in sorted(by_device, key=lambda name: (not on_gpu(by_device[name][0][1]), name)):
        parts += [f"## {name}\n", *_device(by_device[name], files)]
    files[PAGE] = "\n".join(parts)
    return files


def on_gpu(record: Record) -> bool:
    places = [record["settings"].get("device", ""), *(row["device"] for row in record["rows"])]
    return any(place.startswith("cuda") for place in places)


def device(record: Record) -> str:
    """What the record was measured on, for people."""
    environment = record["environment"]
    if on_gpu(record):
        return environment["gpus"][0]["name"]
    cpu = environment["cpu"]
    return f"{cpu['model'] or 'unknown processor'}, {cpu['usable_cores']} cores, {cpu['isa']}"


def _device(found: Sequence[tuple[Path, Record]], files: dict[Path, str]) -> Iterator[str]:
    for path, record in found:
        place = path.relative_to(RESULTS) if path.is_relative_to(RESULTS) else Path(path.name)
        stem = "-".join(place.with_suffix("").parts)
        yield f"### {_title(record)}\n"
        yield f"{_lines(results.heading(record))}\nRecord: `benchmarks/results/{place.as_posix()}`\n"
        if (note := path.with_suffix(".md")).is_file():
            yield note.read_text(encoding="utf-8")
        if record["kind"] == PROFILE:
            yield from _profile(record, stem, files)
        elif record["rows"]:
            yield from _races(record, stem, files)


def _title(record: Record) -> str:
    s = record["settings"]
    if record["kind"] == PROFILE:
        return f"Profile of {s['model']}, batch {s['batch']}, {s['dtype']}"
    if record["kind"] == "models":
        return f"Whole models: {', '.join(dict.fromkeys(row['name'] for row in record['rows']))}"
    return {"layers": "Layers and blocks", "ceilings": "Ceilings"}[record["kind"]]


def _lines(text: str) -> str:
    return "".join(f"{line}\\\n" for line in text.split("\n"))[:-1]


def _races(record: Record, stem: str, files: dict[Path, str]) -> Iterator[str]:
    groups = results.groups_of(record["rows"])
    models = record["kind"] == "models"
    named = [(f"{g[0]['batch']} x {g[0]['name']} {g[0]['dtype']}", g) for g in groups]
    files[IMAGES / f"{stem}.svg"] = speeds(named, f"{_title(record)}: speed against the first contender")
    yield f"![Speed of each contender](images/performance/{stem}.svg)\n"
    for name, group in named:
        yield f"**{name}**: {_verdict(group)}\n"
        headers = ["contender", "ms [quartiles]", f"times {group[0]['contender']}", "TFLOP/s", "GB/s", "roofline"]
        cells = [_cells(row, group) for row in group]
        if models:
            headers, cells = (
                [*headers, "images/s", "peak MB"],
                [[*c, *_more(r)] for c, r in zip(cells, group, strict=True)],
            )
        yield _table(headers, cells)


def _verdict(group: Sequence[Record]) -> str:
    """Losses first."""
    timed = {row["contender"]: row for row in group if row["samples"]}
    ours = next((name for name in timed if name.startswith("fastres")), None)
    if ours is None:
        return "fastres has no time here."
    lost, won, even = [], [], []
    for name, row in timed.items():
        if name.startswith("fastres"):
            continue
        ratio = ratios([row, timed[ours]])[ours]
        text = f"{name} ({number(ratio.median)})"
        (lost if ratio.q3 < 1 else won if ratio.q1 > 1 else even).append(text)
    said = [
        f"slower than {', '.join(lost)}" if lost else "slower than none",
        f"even with {', '.join(even)}" if even else "",
        f"faster than {', '.join(won)}" if won else "faster than none",
    ]
    return f"{ours} is {'; '.join(filter(None, said))}."


def _cells(row: Record, group: Sequence[Record]) -> list[str]:
    if not row["samples"]:
        return [row["contender"], f"{row['status']}: {row['reason']}", *[""] * 4]
    time = summarize(row["samples"])
    ratio = ratios([group[0], row])[row["contender"]] if group[0]["samples"] else None
    against = "1" if row is group[0] else results.spread(ratio, 1) if ratio else ""
    rates = f"{row['flops'] / time.median / 1e12:.3g}", f"{row['bytes'] / time.median / 1e9:.4g}"
    return [
        row["contender"],
        results.spread(time, 1e3),
        against,
        *rates,
        f"{row['roofline_seconds'] / time.median:.0%}",
    ]


def _more(row: Record) -> list[str]:
    """What is said of whole models only."""
    if not row["samples"]:
        return ["", ""]
    tensors = row["memory"].get("tensor_bytes")
    return [f"{row['batch'] / summarize(row['samples']).median:.1f}", "" if tensors is None else f"{tensors / 1e6:.1f}"]


def _profile(record: Record, stem: str, files: dict[Path, str]) -> Iterator[str]:
    for name, draw in (("steps", charts.steps), ("fusions", charts.plans), ("roofline", charts.roofline)):
        files[IMAGES / f"{stem}-{name}.svg"] = draw(record)
    yield f"![Time of each step against the roofline](images/performance/{stem}-steps.svg)\n"
    slower = [line.name for line in charts.in_order(record) if line.against and line.against.q3 < 1]
    yield f"Steps slower than {charts.library_name(record)}: {', '.join(slower) or 'none'}.\n"
    yield f"![Rate over intensity](images/performance/{stem}-roofline.svg)\n"
    yield f"![What each fusion is worth](images/performance/{stem}-fusions.svg)\n"
    rows = []
    for w in worths(record):
        measured = results.spread(w.ratio, 1) if w.ratio else w.remark
        rows.append([f"{w.fusion}: {FUSIONS[w.fusion]}", f"{w.predicted_ratio:.2f}", measured])
    yield _table(["fusion, on against off", "predicted", "measured"], rows)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    text = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
    return f"{text}\n"


def stale(files: dict[Path, str]) -> list[Path]:
    """Plots in the tree that no record makes any more."""
    folder = ROOT / IMAGES
    return [p.relative_to(ROOT) for p in sorted(folder.glob("*")) if p.relative_to(ROOT) not in files]


def main(arguments: Sequence[str]) -> int:
    files = documents(records(RESULTS))
    differing = [path for path, text in files.items() if not (ROOT / path).is_file() or _read(path) != text]
    if "--check" in arguments:
        for path in [*differing, *stale(files)]:
            print(f"{path} is not what the records make: run python benchmarks/pages.py", file=sys.stderr)
        return 1 if differing or stale(files) else 0
    (ROOT / IMAGES).mkdir(parents=True, exist_ok=True)
    for path in stale(files):
        (ROOT / path).unlink()
    for path, text in files.items():
        (ROOT / path).write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(files)} files, {len(differing)} of them new or changed")
    return 0


def _read(path: Path) -> str:
    return (ROOT / path).read_bytes().decode("utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
