"""How fast PGD is: against torchattacks, foolbox and a bare loop of gradient passes, interleaved, best of three."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.ratios import verdict
from vizrobust.attacks import PGD, Linf
from vizrobust.compute import Compute, has_bf16
from vizrobust.models import Normalized, architecture
from vizrobust.models.folding import fold, foldable
from vizrobust.rng import Streams

IMAGES, SHAPE, CLASSES = 128, (3, 32, 32), 10
STEPS, EPS = 10, 8 / 255
ALPHA = 2.5 * EPS / STEPS
ROUNDS = 3
THREADS = 2
Job = Callable[[], object]


def network() -> nn.Module:
    torch.manual_seed(0)
    body = architecture("resnet_small", SHAPE, CLASSES)()
    size = sum(weight.numel() for weight in body.parameters())
    print(f"PGD-{STEPS} on {IMAGES} images of {SHAPE}, {size:,} parameters, {THREADS} threads")
    return Normalized(body, [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]).eval()


def as_evaluated(net: nn.Module, x: Tensor) -> nn.Module:
    """The network as evaluations have it: a copy with BatchNorm folded where that is safe."""
    folded = deepcopy(net)
    for source, norm in foldable(deepcopy(net).double(), x[:2].double()):
        fold(folded, source, norm)
    return folded


def bare(compute: Compute, net: nn.Module, x: Tensor, y: Tensor, judged: bool) -> Job:
    """K gradient passes of the images and nothing else: what no attack can do without."""

    def run() -> None:
        with compute.autocast():
            for _ in range(STEPS):
                adv = x.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(net(adv), y, reduction="sum"), adv)
            if judged:
                with torch.no_grad():
                    net(x)

    return run


def ours(compute: Compute, net: nn.Module, x: Tensor, y: Tensor, judged: bool) -> Job:
    attack = PGD(steps=STEPS, ball=Linf(EPS), alpha=ALPHA)

    def run() -> None:
        with compute.autocast():
            attack(net, x, y, streams=Streams(0, range(IMAGES), "attack"), evaluate=judged)

    return run


def peers(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Job]:
    """The peers as their users call them; none where they are not installed."""
    try:
        import foolbox
        import torchattacks
    except ImportError:
        print("tests/peers.txt is not installed: no comparison with torchattacks and foolbox")
        return {}
    theirs = torchattacks.PGD(net, eps=EPS, alpha=ALPHA, steps=STEPS)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    linf = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS)
    return {"torchattacks": lambda: theirs(x, y), "foolbox": lambda: linf(model, x, y, epsilons=EPS)}


def best_times(jobs: dict[str, Job]) -> dict[str, float]:
    """The shortest time of each job in seconds; every round runs all of them, so noise meets all alike."""
    times = {name: float("inf") for name in jobs}
    for turn in range(ROUNDS + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            if turn:  # the first round warms up
                times[name] = min(times[name], time.perf_counter() - began)
    return times


def help_time() -> float:
    """Seconds that `vizrobust --help` takes, from nothing to its exit; best of three."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vizrobust", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


def measured_precisions() -> tuple[str, ...]:
    """bf16 only where the processor has its instructions: without them it does not end within the hour. Says which."""
    bf16 = has_bf16()
    print(f"this processor {'has' if bf16 else 'does not have'} bfloat16 instructions{'' if bf16 else ', so bf16 is left out'}")
    return ("fp32", "bf16") if bf16 else ("fp32",)


def main() -> None:
    torch.set_num_threads(THREADS)
    plain = network()
    x = torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = torch.randint(CLASSES, (IMAGES,), generator=torch.Generator().manual_seed(1))
    computes = {precision: Compute("cpu", precision) for precision in measured_precisions()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs = peers(plain, x, y)
        for precision, compute in computes.items():
            net, placed = compute.place(as_evaluated(plain, x)), compute.images(x)
            for judged in (False, True):
                suffix = f"{precision}{', judged' if judged else ''}"
                jobs[f"bare loop, {suffix}"] = bare(compute, net, placed, y, judged)
                jobs[f"vizrobust, {suffix}"] = ours(compute, net, placed, y, judged)
        times = best_times(jobs)
    for name, seconds in times.items():
        print(f"  {name:<52} {seconds:6.3f} s")
    if "torchattacks" in times:
        for precision, least in zip(computes, (1.4, 2.5), strict=False):
            ratio = times["torchattacks"] / times[f"vizrobust, {precision}"]
            verdict(f"torchattacks / vizrobust, {precision}", ratio, least, True)
    for suffix in (f"{precision}{judged}" for precision in computes for judged in ("", ", judged")):
        verdict(f"vizrobust / bare loop, {suffix}", times[f"vizrobust, {suffix}"] / times[f"bare loop, {suffix}"], 1.05, False)
    verdict("vizrobust --help, seconds", help_time(), 0.4, False)


if __name__ == "__main__":
    main()
