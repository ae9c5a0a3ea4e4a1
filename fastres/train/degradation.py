"""The paper's first experiment: plain and residual networks at two depths, and its figures 1, 4 and 6 drawn of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from . import log, plot
from .log import Row

FAMILIES = {"plainnet": "plain", "resnet": "ResNet"}
Curves = dict[str, list[Row]]


def models(depths: Sequence[int]) -> Iterator[str]:
    """The names of the networks to train, plain ones first, in the order of `depths`."""
    for family in FAMILIES:
        for depth in depths:
            yield f"{family}{depth}"


def draw(folder: Path, depths: Sequence[int], data: str) -> list[Path]:
    """Draws the figures of the runs in `folder`, one of each of `models(depths)`, and returns where they are."""
    runs: Curves = {model: log.read(folder / model / "log.csv") for model in models(depths)}
    drawn = {
        "figure1.png": _figure1(runs, depths, data),
        "figure4.png": _pairs(runs, depths, data, training="-"),
        "figure6.png": _pairs(runs, depths, data, training="--"),
    }
    for name, figure in drawn.items():
        plot.save(figure, folder / name)
    return [folder / name for name in drawn]


def summary(folder: Path, depths: Sequence[int]) -> str:
    """A table of each network's last training and test error."""
    lines = [f"{'network':<14} {'training error':>14} {'test error':>11}"]
    for model in models(depths):
        rows = log.read(folder / model / "log.csv")
        training, testing = plot.training_curve(rows)[1][-1], plot.test_curve(rows)[1][-1]
        lines.append(f"{_label(model):<14} {training:>12.2f} % {testing:>9.2f} %")
    return "\n".join(lines)


def _figure1(runs: Curves, depths: Sequence[int], data: str) -> object:
    """Training error (left) and test error (right) of the plain networks."""
    figure, panels = plot.figure(2)
    for panel, curve, kind in zip(panels, (plot.training_curve, plot.test_curve), ("training", "test"), strict=True):
        panel.set_title(f"plain networks on {data}: {kind} error", fontsize=10)
        for index, depth in enumerate(depths):
            points = curve(runs[f"plainnet{depth}"])
            panel.plot(*points, color=plot.COLOURS[index], linewidth=1.5, label=f"{depth} layers")
        panel.set_ylim(0, 100)
        panel.legend(fontsize=8)
    return figure


def _pairs(runs: Curves, depths: Sequence[int], data: str, *, training: str) -> object:
    """Plain networks (left) and residual ones (right): training error in line style `training`, test error bold."""
    figure, panels = plot.figure(2)
    for panel, (family, name) in zip(panels, FAMILIES.items(), strict=True):
        panel.set_title(f"{name} on {data}", fontsize=10)
        for index, depth in enumerate(depths):
            plot.draw(panel, runs[f"{family}{depth}"], _label(f"{family}{depth}"), index, training=training)
        panel.set_ylim(0, 100)
        panel.legend(fontsize=8)
    return figure


def _label(model: str) -> str:
    family = next(family for family in FAMILIES if model.startswith(family))
    return f"{FAMILIES[family]}-{model.removeprefix(family)}"
