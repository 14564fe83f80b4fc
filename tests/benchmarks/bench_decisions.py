"""HopSkipJump beside foolbox's: the same images and as many queries, median norm and CPU time; one thread."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import importlib.util

import torch

from tests.benchmarks.bench_smallest import timed
from tests.benchmarks.ratios import verdict
from tests.test_hop_skip_jump import foolbox_case, queries_and_norms
from vizrobust.attacks import L2, Ball, HopSkipJump, Linf

ROUNDS = 10
BALLS: tuple[Ball, ...] = (Linf(), L2())


def main() -> None:
    torch.set_num_threads(1)
    if importlib.util.find_spec("foolbox") is None:
        print("tests/peers.txt is not installed: no comparison with foolbox")
        return
    for name in ("mnist-k8", "mnist-k0"):
        net, x, y = foolbox_case(name)
        for ball in BALLS:
            norm = type(ball).__name__
            (queries, theirs), spent = timed(lambda net=net, x=x, y=y, ball=ball: queries_and_norms(net, x, y, ball, ROUNDS))
            attack = HopSkipJump(queries=queries, ball=ball)
            found, seconds = timed(lambda net=net, x=x, y=y, attack=attack: attack(net, x, y))
            mine = ball.norm(found.best - x).masked_fill(found.robust, torch.inf)
            print(f"{name}, {norm}, {len(x)} images, {queries} queries: medians of the smallest perturbations, CPU seconds")
            print(f"  vizrobust {float(mine.median()):9.4g} {seconds:6.1f} s")
            print(f"  foolbox   {float(theirs.median()):9.4g} {spent:6.1f} s")
            verdict(f"{name}, {norm}: median / foolbox's", float(mine.median() / theirs.median()), 1.0, False)
            verdict(f"{name}, {norm}: CPU time / foolbox's", seconds / spent, 2.0, False)


if __name__ == "__main__":
    main()
