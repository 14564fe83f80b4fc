"""How fast each corruption is: images per second on one thread, over the five severities, at four sizes."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import time

import torch

from vizrobust.rng import Streams
from vizrobust.robustness.corruptions import CORRUPTIONS, SEVERITIES

# MNIST, CIFAR-10, Imagenette at 64 px, ImageNet; as many images as a second or so allows.
SHAPES = [(200, 1, 28, 28), (100, 3, 32, 32), (50, 3, 64, 64), (8, 3, 224, 224)]


def main() -> None:
    torch.set_num_threads(1)
    names = [f"{channels}x{height}x{width}" for _, channels, height, width in SHAPES]
    print(f"{'images per second':<20}" + "".join(f"{name:>12}" for name in names))
    spent = [0.0] * len(SHAPES)
    for name, corrupt in CORRUPTIONS.items():
        cells = []
        for place, shape in enumerate(SHAPES):
            x, streams = torch.rand(shape), Streams(0, range(shape[0]))
            began = time.perf_counter()
            for severity in SEVERITIES:
                corrupt(x, severity, streams)
            each = (time.perf_counter() - began) / shape[0]
            spent[place] += each
            cells.append(f"{len(SEVERITIES) / each:12,.0f}")
        print(f"{name:<20}" + "".join(cells))
    print(f"{'s, all, 1,000 images':<20}" + "".join(f"{1000 * each:12,.0f}" for each in spent))


if __name__ == "__main__":
    main()
