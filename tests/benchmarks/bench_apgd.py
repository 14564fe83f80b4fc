"""How fast APGD is: against its authors' code on the same network, batch and steps, interleaved, best of three."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn

from tests.benchmarks.bench_attacks import IMAGES, SHAPE, THREADS, Job, best_times, network
from tests.benchmarks.ratios import verdict
from vizrobust.attacks import APGD, L1, L2, Ball, Linf
from vizrobust.compute import Compute
from vizrobust.rng import Streams

STEPS = 10
LOSSES = {"Linf": ("ce", "dlr"), "L2": ("ce",), "L1": ("ce",)}
# So small that no image is broken: the authors' code does the same work for every image either way, but leaves out what is
# wrong before it starts.
BALLS: dict[str, Ball] = {"Linf": Linf(1e-4), "L2": L2(1e-3), "L1": L1(1e-2)}


def ours(compute: Compute, net: nn.Module, x: Tensor, y: Tensor, ball: Ball, loss: str) -> Job:
    attack = APGD(steps=STEPS, ball=ball, loss=loss)

    def run() -> None:
        attack(net, x, y, streams=Streams(0, range(IMAGES), "attack"))

    return run


def theirs(net: nn.Module, x: Tensor, y: Tensor, ball: Ball, loss: str) -> Job | None:
    """The authors' code as its users call it, with the L1 schedule that their standard ensemble has; None where it is not."""
    try:
        from pyautoattack.autopgd_base import APGDAttack
    except ImportError:
        return None
    norm = type(ball).__name__
    attack = APGDAttack(
        net, n_iter=STEPS, norm=norm, eps=ball.eps, loss=loss, seed=0, device="cpu", use_largereps=norm == "L1"
    )  # fmt: skip
    return lambda: attack.perturb(x, y)


def main() -> None:
    torch.set_num_threads(THREADS)
    plain = network()
    x = torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = plain(x).argmax(1)
    print(f"APGD-{STEPS}, the same batch")
    compute = Compute("cpu")
    net, placed = compute.place(deepcopy(plain)), compute.images(x)
    for norm, ball in BALLS.items():
        for loss in LOSSES[norm]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                jobs = {f"vizrobust {norm} {loss}": ours(compute, net, placed, y, ball, loss)}
                there = theirs(plain, x, y, ball, loss)
                if there is None:
                    print("tests/peers.txt is not installed: no comparison with pyautoattack")
                else:
                    jobs[f"pyautoattack {norm} {loss}"] = there
                    # Both on a network whose weights are channels-last: what is left is the attacks' own bookkeeping.
                    # (Elsewhere their code reshapes gradients in a way that channels-last tensors do not allow.)
                    same = theirs(net, placed, y, ball, loss) if (norm, loss) == ("Linf", "ce") else None
                    if same is not None:
                        jobs[f"pyautoattack {norm} {loss}, channels-last too"] = same
                times = best_times(jobs)
            for name, seconds in times.items():
                print(f"  {name:<52} {seconds:6.3f} s")
            if there is not None:
                ratio = times[f"pyautoattack {norm} {loss}"] / times[f"vizrobust {norm} {loss}"]
                verdict(f"pyautoattack / vizrobust, {norm} {loss}, fp32", ratio, 1.3, True)


if __name__ == "__main__":
    main()
