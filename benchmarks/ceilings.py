"""Measures what this device can do at most, in each dtype of the suites, and saves the record: ceilings.py FILE."""

from __future__ import annotations

import sys
from pathlib import Path

from settings import DEVICE, DTYPES

from fastres.measure import results, roofline

if __name__ == "__main__":
    found = {results.dtype_name(dtype): roofline.ceilings(DEVICE, dtype) for dtype in DTYPES}
    results.save(results.record("ceilings", [], found, {"device": str(DEVICE)}), Path(sys.argv[1]))
