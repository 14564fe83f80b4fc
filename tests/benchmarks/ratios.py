"""Ratios beside their goals: printed where they are measured, and all together as one table and as JSON."""

# ruff: noqa: T201  it prints what a script has measured
from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vizrobust.compute import has_bf16, versions
from vizrobust.results import Table

FILE = Path("runs/bench.json")


@dataclass(frozen=True)
class Ratio:
    """What was measured, and the goal that it is `at_least` or at most to reach."""

    name: str
    value: float
    goal: float
    at_least: bool

    @property
    def reached(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def wanted(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.goal:g}"


# What this process has measured, in order.
MEASURED: list[Ratio] = []


def verdict(name: str, value: float, wanted: float, at_least: bool) -> None:
    """Print a ratio with its goal, and keep it."""
    ratio = Ratio(name, value, wanted, at_least)
    MEASURED.append(ratio)
    print(f"  {name:<52} {value:6.2f}   wanted: {ratio.wanted}   {'reached' if ratio.reached else 'MISSED'}", flush=True)


def machine() -> dict[str, Any]:
    """What a speed depends on besides the code."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16 instructions": has_bf16(), "python": platform.python_version(), **versions(),
    }  # fmt: skip


def table(found: Mapping[str, Sequence[Ratio]]) -> Table:
    """All ratios by benchmark."""
    rows = [
        [bench, one.name, f"{one.value:.2f}", one.wanted, "reached" if one.reached else "missed"]
        for bench, ratios in found.items()
        for one in ratios
    ]
    about = ", ".join(f"{name}: {value}" for name, value in machine().items())
    return Table("Ratios beside their goals", ["benchmark", "ratio", "measured", "goal", ""], rows, about)


def write(found: Mapping[str, Sequence[Ratio]], seconds: Mapping[str, float], file: Path = FILE) -> None:
    """The table as JSON, with the machine and the seconds of each benchmark."""
    ratios = [
        {"benchmark": bench, "ratio": one.name, "value": round(one.value, 4), "goal": one.goal, "at least": one.at_least,
         "reached": one.reached}
        for bench, some in found.items() for one in some
    ]  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    text = {"machine": machine(), "seconds": {name: round(value, 1) for name, value in seconds.items()}, "ratios": ratios}
    file.write_text(json.dumps(text, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
