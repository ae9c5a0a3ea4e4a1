"""What is said about samples: median and quartiles, and ratios between contenders that took turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Summary:
    """Order statistics of samples, in their unit. Quartiles interpolate linearly, as numpy.percentile does."""

    count: int
    low: float
    q1: float
    median: float
    q3: float


def summarize(samples: Sequence[float]) -> Summary:
    """Raises ValueError where there are no samples."""
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    q1, _, q3 = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return Summary(len(samples), min(samples), q1, median(samples), q3)


def speedup(baseline: Sequence[float], samples: Sequence[float]) -> Summary:
    """How many times faster `samples` are than `baseline`, round by round: both are seconds of the same rounds.

    Neighbours in time share the machine's state, so the quartiles of these ratios are narrower than those of either.

    Raises ValueError where the lengths differ: such samples do not come from the same rounds.
    """
    if len(baseline) != len(samples):
        raise ValueError(f"samples: expected as many as the baseline's {len(baseline)}, got {len(samples)}")
    return summarize([b / s for b, s in zip(baseline, samples, strict=True)])
