"""Curves in the paper's style: error against iterations, training thin or dashed, testing bold. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from .errors import TrainingError
from .log import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("tab:orange", "tab:cyan", "tab:red", "tab:green")


def figure(columns: int, *, height: float = 3.4) -> tuple[Any, Sequence[Axes]]:
    """An empty figure of `columns` panels that share their axes. Raises TrainingError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TrainingError("curves need matplotlib: pip install 'fastres[plot]'") from error
    drawn = Figure(figsize=(4.2 * columns, height), layout="constrained")
    panels = drawn.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
    for panel in panels:
        panel.set_xlabel("iterations")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error (%)")
    return drawn, panels


def training_curve(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """(last iterations, mean training errors) of the epochs in `rows`."""
    epochs: dict[int, list[Row]] = {}
    for row in rows:
        epochs.setdefault(row.epoch, []).append(row)
    groups = epochs.values()
    return [g[-1].iteration for g in groups], [sum(row.train_error for row in g) / len(g) for g in groups]


def test_curve(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """(iterations, test errors) where they were taken."""
    taken = [(row.iteration, row.test_error) for row in rows if row.test_error is not None]
    return [iteration for iteration, _ in taken], [error for _, error in taken]


def draw(panel: Axes, rows: Sequence[Row], label: str, index: int = 0, *, training: str = "--") -> None:
    """Adds a run to a panel: its training error in line style `training`, its test error bold."""
    colour = COLOURS[index % len(COLOURS)]
    panel.plot(*training_curve(rows), training, color=colour, linewidth=1, label=f"{label}, training")
    panel.plot(*test_curve(rows), "-", color=colour, linewidth=2, label=f"{label}, testing")


def save(drawn: Any, path: Path) -> None:
    """Writes a figure as PNG. Raises TrainingError where it cannot be written."""
    try:
        with files.replacing(path, path.suffix) as temporary:
            drawn.savefig(temporary, dpi=100)
    except OSError as error:
        raise TrainingError(f"cannot write the plot {path}: {error.strerror or error}") from error


def curves(rows: Sequence[Row], label: str, path: Path) -> None:
    """One run's curves as PNG at `path`."""
    drawn, (panel,) = figure(1)
    draw(panel, rows, label)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8)
    save(drawn, path)
