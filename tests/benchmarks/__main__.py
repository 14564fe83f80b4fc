"""``python -m tests.benchmarks [NAME ...]``: every bench_*.py beside this file, one after the other, then all their ratios.

NAME is such a file without ``bench_`` and suffix. The ratios also become runs/bench.json.
"""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from tests.benchmarks import ratios

found, seconds = {}, {}
for path in sorted(Path(__file__).parent.glob("bench_*.py")):
    name = path.stem.removeprefix("bench_")
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    print(f"== {path.stem}", flush=True)
    ratios.MEASURED.clear()
    began = time.perf_counter()
    importlib.import_module(f"{__package__}.{path.stem}").main()
    found[name], seconds[name] = tuple(ratios.MEASURED), time.perf_counter() - began
print(ratios.table(found).text())
ratios.write(found, seconds)
print(f"{sum(seconds.values()) / 60:.1f} minutes; {ratios.FILE}")
