"""The standard ensemble and `fast` beside its authors' code on checkpoints of other groups: accuracy and time on 200 images.

Time is that of the processor, one thread: the run takes tens of minutes, and no machine is idle for that long. It needs
the shared folder, so it runs by name: ``python -m tests.benchmarks.standard``.
"""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.test_convert import THEIRS, imported, test_images
from vizrobust.attacks import AutoAttack, Linf
from vizrobust.compute import Compute
from vizrobust.data import head
from vizrobust.intervals import share
from vizrobust.robustness import evaluate, merge_results

IMAGES = 200
CASES = (("cifar_wide_adv.pth", 2 / 255), ("mnist_lenet5_advtrained.pt", 0.3))
VERSIONS = ("standard", "fast")
BATCH_SIZE = 25


def main(names: list[str]) -> None:
    from pyautoattack import AutoAttack as Theirs

    torch.set_num_threads(1)
    shared = Path(__file__).resolve().parents[3] / "shared"
    for file, eps in CASES:
        if names and file not in names:
            continue
        theirs = next(one for one in THEIRS if one.file == file)
        images = head(test_images(shared, theirs.data), IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            net = imported(theirs, shared, Path(folder))
        ours, shares = {}, {}
        for version in VERSIONS:
            attack = AutoAttack(version, Linf(eps))
            began = time.process_time()
            found = merge_results(attack, evaluate(net, attack, images, Compute("cpu"), batch_size=BATCH_SIZE))
            ours[version], shares[version] = time.process_time() - began, share(found.robust)
            print(f"{file}, {attack}, {IMAGES} images: clean {100 * found.clean:.1f}")
            robust = f"{100 * shares[version]:5.1f}"
            print(f"  vizrobust    {robust}  {ours[version]:7.1f} CPU s  {found.successes_by_component()}", flush=True)
        x, y = images.take(torch.arange(IMAGES)), images.labels
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = Theirs(net, norm="Linf", eps=eps, version="standard", device="cpu", seed=0)
            adv, *_ = peer.run_standard_evaluation(x, y, batch_size=IMAGES)
        seconds = time.process_time() - began
        with torch.no_grad():
            robust = float((net(adv).argmax(1) == y).double().mean())
        print(f"  pyautoattack {100 * robust:5.1f}  {seconds:7.1f} CPU s")
        for version in VERSIONS:
            apart = 100 * abs(robust - shares[version])
            ratio = ours[version] / seconds
            print(f"  {version}: time, vizrobust / pyautoattack {ratio:.2f}; accuracy differs by {apart:.1f} points", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
