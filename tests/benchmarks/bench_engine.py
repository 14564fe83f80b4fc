"""What leaving the batch saves, and what a whole curve over attack steps costs, on the built-in checkpoints."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import torch

from tests.benchmarks.bench_attacks import THREADS, best_times
from tests.benchmarks.ratios import verdict
from vizrobust.attacks import PGD, Linf
from vizrobust.compute import Compute, full_batches
from vizrobust.data import head, load
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams
from vizrobust.robustness import BATCH_SIZE, evaluate, merge_results

IMAGES, EPS = 500, 0.3


def main() -> None:
    torch.set_num_threads(THREADS)
    compute, images = Compute("cpu"), head(load("mnist5k").test, IMAGES)
    for name, steps, what in (("mnist-k0", 100, "active set"), ("mnist-k8", 50, "curve")):
        net = compute.place(load_checkpoint(name).net())
        attack = PGD(steps=steps, ball=Linf(EPS))

        def whole(attack: PGD = attack, net: torch.nn.Module = net) -> None:
            """Every image through all steps: what one attack on all images costs."""
            for index, _ in full_batches(IMAGES, BATCH_SIZE):
                x, y = compute.images(images.take(index)), images.labels[index]
                attack(net, x, y, streams=Streams(0, index.tolist(), "attack"))

        def evaluated(attack: PGD = attack, net: torch.nn.Module = net) -> None:
            merge_results(attack, evaluate(net, attack, images, compute, all_runs=True)).curve()

        times = best_times({f"{name}, {steps} steps, all": whole, f"{name}, {steps} steps, evaluated": evaluated})
        slow, fast = times.values()
        for label, seconds in times.items():
            print(f"  {label:<52} {seconds:6.3f} s")
        if what == "active set":
            verdict("without / with images leaving, standard model", slow / fast, 5.0, True)
        else:
            verdict(f"curve over {steps} steps / one attack of {steps} steps", fast / slow, 1.1, False)


if __name__ == "__main__":
    main()
