"""Smallest perturbations: what `attack --minimal` runs for each norm beside adv-lib, the same 100 images, median and CPU time.

One thread, the processor's time: the run takes minutes, and no machine is idle for that long. A checkpoint of another
group takes part where the shared folder is.
"""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from tests.benchmarks.ratios import verdict
from tests.conftest import on_network
from tests.test_convert import THEIRS, imported, test_images
from vizrobust.attacks import L0, L1, L2, Attack, Ball, Linf, parse_attack
from vizrobust.commands.attack_modes import SMALLEST
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, load
from vizrobust.models import load_checkpoint
from vizrobust.robustness.smallest_eps import smallest_eps
from vizrobust.spec import vary

IMAGES = 50
BALLS: dict[str, Ball] = {"Linf": Linf(), "L2": L2(), "L1": L1(), "L0": L0()}
OTHERS = "cifar_wide_adv.pth"
# What adv-lib offers for each norm, its defaults but for the passes.
PEERS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "Linf": [("fmn", {"norm": float("inf"), "steps": 100}), ("fmn", {"norm": float("inf"), "steps": 200})],
    "L2": [("fmn", {"norm": 2, "steps": 100}), ("ddn", {"steps": 200, "levels": None}), ("alma", {"num_steps": 500})],
    "L1": [("fmn", {"norm": 1, "steps": 300}), ("alma", {"distance": "l1", "num_steps": 300})],
    "L0": [("fmn", {"norm": 0, "steps": 300}), ("sigma_zero", {"num_steps": 300}), ("sigma_zero", {"num_steps": 1000})],
}


def networks() -> Iterator[tuple[str, nn.Module, ArraySplit]]:
    test = load("mnist5k").test
    digits = ArraySplit(test.take(torch.arange(IMAGES)), test.labels[:IMAGES])
    for name in ("mnist-k8", "mnist-k0"):
        yield name, load_checkpoint(name).net(), digits
    shared = Path(__file__).resolve().parents[3] / "shared"
    if shared.exists():
        theirs = next(one for one in THEIRS if one.file == OTHERS)
        images = test_images(shared, theirs.data)
        with tempfile.TemporaryDirectory() as folder:
            net = imported(theirs, shared, Path(folder))
        yield OTHERS, net, ArraySplit(images.take(torch.arange(IMAGES)), images.labels[:IMAGES])


def peers() -> ModuleType | None:
    sys.modules.setdefault("visdom", ModuleType("visdom")).__dict__.setdefault("Visdom", object)
    try:
        import adv_lib.attacks
    except ImportError:
        print("tests/peers.txt is not installed: no comparison with adv-lib")
        return None
    return adv_lib.attacks


def timed(job: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.process_time()
    found = job()
    return found, time.process_time() - began


def ours(attack: Attack, net: nn.Module, images: ArraySplit) -> Tensor:
    return smallest_eps(attack, on_network(net, images, Compute("cpu"))).eps


def theirs(lib: ModuleType, name: str, how: dict[str, object], net: nn.Module, images: ArraySplit, ball: Ball) -> Tensor:
    x, y = images.take(torch.arange(IMAGES)), images.labels
    adv = getattr(lib, name)(net, x, y, **how).detach()
    with torch.no_grad():
        right, broken = net(x).argmax(1) == y, net(adv).argmax(1) != y
    return torch.where(broken, ball.norm(adv - x), torch.inf).masked_fill(~right, 0)


def middle(norms: Tensor) -> float:
    return float(norms.sort().values[(len(norms) - 1) // 2])


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lib = peers()
    for name, net, images in networks():
        net = net.eval().requires_grad_(False)
        print(f"{name}, {IMAGES} images: median of the smallest perturbations, CPU seconds")
        for norm, ball in BALLS.items():
            own, seconds = [], 0.0
            for text in SMALLEST[norm]:
                found, spent = timed(partial(ours, vary(parse_attack(text), ball=ball), net, images))
                own.append(found)
                seconds += spent
            mine = middle(torch.stack(own).amin(0))
            print(f"  {norm:4} vizrobust, {' + '.join(SMALLEST[norm]):<90} {mine:9.4g} {seconds:6.1f} s", flush=True)
            medians = []
            for which, how in PEERS[norm] if lib else []:
                found, spent = timed(partial(theirs, lib, which, how, net, images, ball))
                medians.append((middle(found), spent))
                print(f"  {norm:4} adv-lib, {which} {how!s:<94} {medians[-1][0]:9.4g} {spent:6.1f} s", flush=True)
            if medians:
                best, spent = min(medians)
                verdict(f"{name}, {norm}: median / adv-lib's best", mine / best, 1.0, False)
                verdict(f"{name}, {norm}: CPU time / that of its best", seconds / spent, 1.5, False)


if __name__ == "__main__":
    main()
