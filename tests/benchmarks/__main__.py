"""``python -m tests.benchmarks``: every bench_*.py beside this file, one after the other."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import importlib
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("bench_*.py")):
    print(f"== {path.stem}")
    importlib.import_module(f"{__package__}.{path.stem}").main()
