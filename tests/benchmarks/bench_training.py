"""How fast adversarial training is: beside a textbook loop, beside its bare passes, and on several processes."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.bench_attacks import THREADS, Job, best_times, measured_precisions
from tests.benchmarks.ratios import verdict
from vizrobust.attacks import PGD, Linf
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, DataSet
from vizrobust.training import Trainer, TrainingRecipe

STEPS, EPS, BATCH, BATCHES = 7, 8 / 255, 100, 3
SHAPE, CLASSES = (3, 32, 32), 10
ALPHA = 2.5 * EPS / STEPS
RECIPE = TrainingRecipe(
    arch="resnet_small", data="random", attack=PGD(steps=STEPS, ball=Linf(EPS)), batch_size=BATCH, eps_ramp=0,
    optimizer="sgd", lr=0.05, augment="crop+flip", epochs=1000,
)  # fmt: skip


def data(images: int) -> DataSet:
    x = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (images,), generator=torch.Generator().manual_seed(1))
    split = ArraySplit(x, labels)
    return DataSet("random", tuple(map(str, range(CLASSES))), SHAPE, split, split, split, EPS)


def trainer(precision: str = "fp32", images: int = BATCH * BATCHES, **changes: object) -> Trainer:
    recipe = replace(RECIPE, precision=precision, **changes)  # type: ignore[arg-type]
    return Trainer(recipe, data(images), Compute("cpu", precision))


def epoch(here: Trainer) -> Job:
    """All batches of an epoch, without what is measured after it."""

    def run() -> None:
        for progress in here.run_epoch():
            if progress.batch == progress.batches:
                break
        here.tally = type(here.tally)()

    return run


def textbook(net: nn.Module, x: Tensor, y: Tensor) -> Job:
    """The loop of the tutorials: fp32, contiguous, ``loss.backward()`` through the weights for every attack step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    def run() -> None:
        for start in range(0, len(x), BATCH):
            clean, truth = x[start : start + BATCH], y[start : start + BATCH]
            adv = (clean + torch.empty_like(clean).uniform_(-EPS, EPS)).clamp(0, 1)
            net.eval()
            for _ in range(STEPS):
                adv.requires_grad_()
                F.cross_entropy(net(adv), truth).backward()
                assert adv.grad is not None
                stepped = adv.detach() + ALPHA * adv.grad.sign()
                adv = torch.min(torch.max(stepped, clean - EPS), clean + EPS).clamp(0, 1)
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net(adv), truth).backward()
            optimizer.step()

    return run


def bare(here: Trainer) -> Job:
    """K input gradients and one weight step for each batch, and nothing else: what no loop can do without."""
    net, optimizer, compute = here.net, here.train_state.optimizer, here.compute
    split = here.data.train

    def run() -> None:
        for start in range(0, len(split), BATCH):
            index = torch.arange(start, start + BATCH)
            x, y = compute.images(split.take(index)), split.labels[index]
            with compute.autocast():
                net.eval()
                for _ in range(STEPS):
                    point = x.detach().requires_grad_()
                    torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)
            net.train()
            optimizer.zero_grad(set_to_none=True)
            with compute.autocast():
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()

    return run


def pipeline(here: Trainer) -> Job:
    """What an epoch spends on its data alone: order, decoding, augmentation."""
    from vizrobust.rng import Streams

    def run() -> None:
        order = Streams(0, [0], "order").permutation(len(here.data.train))[0]
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            here._images(index, Streams(0, [f"0/{i}" for i in index.tolist()], "train"))

    return run


def compiled() -> None:
    """What --compile changes on a GPU, after its compilation, on a network with BatchNorm and shortcuts and on a plain one."""
    for arch in ("resnet_small", "small_cnn"):
        times = best_times({kind: epoch(trainer(arch=arch, compile=kind == "compiled")) for kind in ("eager", "compiled")})
        verdict(f"{arch}, as it is / --compile", times["eager"] / times["compiled"], 1.0, True)


def throughput(processes: int, threads: int) -> float:
    """Images per second of data-parallel training in so many processes with so many threads each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "tests.benchmarks.bench_training", "--throughput"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def timed_throughput() -> None:
    here = trainer()
    run = epoch(here)
    run()
    times = []
    for _ in range(4):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    if here.compute.processes.main:
        print(BATCH * BATCHES / min(times))


def several() -> None:
    """One process of two threads and two of one; the best of three rounds in turn."""
    base, two = (1, THREADS), (2, 1)
    rates = dict.fromkeys((base, two), 0.0)
    for _ in range(3):
        for kind in rates:
            rates[kind] = max(rates[kind], throughput(*kind))
    for (processes, threads), found in rates.items():
        print(f"  {f'processes: {processes}, threads of each: {threads}':<52} {found:6.1f} images/s")
    verdict("2 processes / 1 of 2 threads", rates[two] / rates[base], 1.0, True)


def resident() -> float:
    """MB of memory that this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory() -> None:
    here = trainer(images=10 * BATCH, arch="small_cnn", attack=PGD(steps=2, ball=Linf(EPS)))
    run, seen = epoch(here), []
    for _ in range(100):
        run()
        seen.append(resident())
    verdict("memory after 1,000 batches / after 200", seen[-1] / seen[19], 1.02, False)


def main() -> None:
    torch.set_num_threads(THREADS)
    precisions, plain = measured_precisions(), trainer()
    whole = data(BATCH * BATCHES).train
    contiguous = plain.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    x, y = whole.take(torch.arange(BATCH * BATCHES)), whole.labels
    jobs = {
        "textbook": textbook(contiguous, x, y),
        "its data alone": pipeline(trainer()),
    }
    for precision in precisions:
        jobs |= {f"bare passes, {precision}": bare(trainer(precision)), f"vizrobust, {precision}": epoch(trainer(precision))}
    print(f"PGD-{STEPS} training, {BATCHES} batches of {BATCH} images of {SHAPE}, resnet_small, {THREADS} threads")
    times = best_times(jobs)
    for name, seconds in times.items():
        print(f"  {name:<52} {seconds:6.3f} s")
    for precision, least in zip(precisions, (1.5, 3.0), strict=False):
        verdict(f"textbook / vizrobust, {precision}", times["textbook"] / times[f"vizrobust, {precision}"], least, True)
    for precision in precisions:
        ratio = times[f"vizrobust, {precision}"] / times[f"bare passes, {precision}"]
        verdict(f"vizrobust / {STEPS} input gradients and a weight step, {precision}", ratio, 1.1, False)
    verdict("data / epoch", times["its data alone"] / times["vizrobust, fp32"], 0.03, False)
    if torch.cuda.is_available():  # slower on a CPU, where `train` refuses it
        compiled()
    memory()
    several()


if __name__ == "__main__":
    timed_throughput() if "--throughput" in sys.argv else main()
