"""Cost and memory over the number of pictures and images: each size is a command in a process of its own.

``python -m tests.benchmarks.bench_scale [FIGURE.png]`` goes on to 10,000 and draws them.
"""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.ratios import verdict
from vizrobust.data import load

SIZES, MOST = (100, 1000, 3000), 10000
PER_UNIT = 10  # pictures of each unit
MEASURE = """
import re, sys, time
from vizrobust.cli import main
try:
    main(sys.argv[1:])
finally:
    with open("/proc/self/status") as file:
        print("MEASURED", time.process_time(), int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1]) / 1024, file=sys.stderr)
"""


def measured(arguments: Sequence[str]) -> tuple[float, float]:
    """Processor seconds and the largest memory in MB of a command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, memory = done.stderr.rpartition("MEASURED")[2].split()
    return float(seconds), float(memory)


def images_file(folder: Path, n: int) -> Path:
    """n distinct test images: digits, each under its own little noise."""
    data = load("mnist5k")
    index = torch.arange(n) % len(data.train)
    noise = torch.empty(n, 1, 28, 28).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    x = (255 * (data.train.take(index) + noise).clamp(0, 1)).to(torch.uint8)
    np.savez(folder / f"{n}.npz", x_test=x.movedim(1, -1).numpy(), y_test=data.train.labels[index].numpy(), classes=data.classes)
    return folder / f"{n}.npz"


def main(figure: str = "") -> None:
    found: dict[str, list[tuple[int, float, float]]] = {"pictures": [], "attacked images": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in (*SIZES[:2], MOST) if figure else SIZES:
            units = min(100, n // PER_UNIT)
            render = (
                f"neurons mnist-k8 --layer linear1 --units 0:{units} --steps 8 --seeds {n // units} --out {folder}/pictures-{n}"
            )
            attack = f"attack mnist-k8 --data npz:{images_file(folder, n)} --attack pgd --images {n} --out {folder}/a-{n}"
            for what, command in zip(found, (render, attack), strict=True):
                seconds, memory = measured(command.split())
                found[what].append((n, seconds, memory))
                each = f"{seconds:7.1f} s   {1000 * seconds / n:7.2f} ms each   {memory:6.0f} MB"
                print(f"  {what:<16} {n:>6,}   {each}", flush=True)
    for what, ((few, early, low), (some, middle, _), (many, late, high)) in found.items():
        further = (late - middle) / (many - some) / ((middle - early) / (some - few))
        verdict(f"{what}: one more, beyond {some:,} / beyond {few:,}", further, 1.2, False)
        verdict(f"{what}: memory, {many:,} / {few:,}", high / low, 1.2, False)
    if figure:
        draw(found, figure)


def draw(found: dict[str, list[tuple[int, float, float]]], file: str) -> None:
    """Processor time of each, and memory, over how many there are."""
    from vizrobust.report.style import blank, house_style, save_figure

    with house_style():
        drawn = blank((7.6, 3.2))
        left, right = drawn.subplots(1, 2)
        for what, rows in found.items():
            n = [row[0] for row in rows]
            left.plot(n, [1000 * row[1] / row[0] for row in rows], marker="o", label=what)
            right.plot(n, [row[2] for row in rows], marker="o", label=what)
        for axes, title in ((left, "CPU time of each, ms"), (right, "largest memory, MB")):
            axes.set_xscale("log")
            axes.set_xticks(n, [f"{one:,}" for one in n])
            axes.minorticks_off()
            axes.set_xlabel("how many")
            axes.set_title(title)
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        left.legend(frameon=False, loc="upper right")
    save_figure(drawn, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
