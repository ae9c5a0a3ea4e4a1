"""benchmarks/conv_sm90_counts.py: what conv_sm90 asks of memory, in ResNet-50's own layers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "conv_sm90_counts.py"
spec = importlib.util.spec_from_file_location("conv_sm90_counts", PATH)
assert spec is not None
assert spec.loader is not None
counts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(counts)

PROBLEMS = counts.problems(1)


@pytest.mark.parametrize("name", ["layer2.1.conv3", "layer3.0.conv2", "layer3.1.conv1", "layer4.0.conv3 + downsample"])
def test_no_byte_but_the_fewest_is_touched(name: str) -> None:
    """1x1 with a residual, 3x3 at stride 2, 1x1, and a projection whose shortcut has stride 2."""
    row = counts.count(PROBLEMS[name])
    assert 1 <= row["unique_ratio"] <= 1.02
    assert row["multiplied_ratio"] >= 1


def test_the_record_has_every_layer_at_its_fewest_bytes() -> None:
    rows = json.loads(counts.OUT.read_text())["rows"]
    assert rows.keys() == PROBLEMS.keys()
    assert len(rows) == 23
    assert all(1 <= row["unique_ratio"] <= 1.02 for row in rows.values())
