"""How far pictures excite their units after equal steps: ours beside Lucent's and Horama's, scored by one forward pass.

``python -m tests.benchmarks.bench_activation [REF [LAYER [SIZE [BOX]]]]``; REF is any model reference for colour images, BOX
the side of MACO's crops as a share of the image's.
"""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.bench_attacks import THREADS
from tests.benchmarks.lucent_peer import lucent_renders
from tests.benchmarks.ratios import verdict
from vizrobust.compute import Compute
from vizrobust.features import Channel, lucid, maco, render
from vizrobust.models import ActivationReader, load_checkpoint

UNITS, SEEDS = range(4), range(2)
LUCENT_STEPS, HORAMA_STEPS, HORAMA_UNITS, HORAMA_SEEDS = 64, 64, range(4), range(1)
CROPS = 6


def scores(net: nn.Module, layer: str, images: Tensor, units: list[int]) -> Tensor:
    """(N,): each image's own unit, mean over positions, without transforms."""
    with torch.no_grad():
        maps = ActivationReader.of(net, tuple(images.shape[1:]), [layer])(net, images)[layer]  # type: ignore[arg-type]
    return maps.flatten(2).mean(2)[torch.arange(len(units)), torch.tensor(units)]


def report(what: str, ours: Tensor, theirs: Tensor) -> None:
    """(units, seeds) each; the share of units whose mean over seeds is at least the peer's."""
    one, two = ours.mean(1), theirs.mean(1)
    print(f"  {what}: unit by unit, mean over seeds")
    for unit, (a, b) in enumerate(zip(one.tolist(), two.tolist(), strict=True)):
        print(f"    unit {unit}: vizrobust {a:7.3f}   peer {b:7.3f}   difference {a - b:+.3f}")
    print(f"    means {float(one.mean()):.3f} and {float(two.mean()):.3f}")
    verdict(f"{what.partition(',')[0]}: share of units at least as excited", float((one >= two).float().mean()), 0.5, True)


@contextlib.contextmanager
def in_folder_with(spectrum: np.ndarray) -> Iterator[str]:
    """A folder that holds the spectrum under the name that Horama looks for, as the working folder."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/spectrum_decorrelated.npy", spectrum)
        os.chdir(folder)
        try:
            yield f"{folder}/spectrum_decorrelated.npy"
        finally:
            os.chdir(here)


def against_lucent(net: nn.Module, layer: str, size: int, compute: Compute) -> None:
    units, shape = list(UNITS), (3, size, size)
    theirs, ours = [], []
    for seed in SEEDS:
        batch, _ = lucent_renders(net, f"net.{layer}", units, size, LUCENT_STEPS, preprocess=False, seed=seed)
        if batch is None:
            return
        theirs.append(scores(net, layer, batch(), units))
        done = render(net, Channel(layer), units, lucid(steps=LUCENT_STEPS), [seed], shape=shape, compute=compute)
        ours.append(scores(net, layer, torch.stack([one.image for one in done]), units))
    report(f"Lucent, {LUCENT_STEPS} steps of Adam .05 on a spectrum, {size} px", torch.stack(ours, 1), torch.stack(theirs, 1))


def against_horama(net: nn.Module, layer: str, size: int, box: float, compute: Compute) -> None:
    try:
        from horama import maco as theirs_maco
    except ImportError:
        print("tests/peers.txt is not installed: no comparison with Horama")
        return
    units, shape = list(HORAMA_UNITS), (3, size, size)
    reading = ActivationReader.of(net, shape, [layer])
    frequency = np.sqrt(np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None] ** 2)
    law = np.broadcast_to(1 / np.maximum(frequency, 1 / size), (3, size, size // 2 + 1)).astype(np.float32)
    theirs, ours = [], []
    with in_folder_with(law) as spectrum:
        recipe = maco(steps=HORAMA_STEPS, crops=CROPS, low=box, high=box, spectrum=spectrum, noise=0.05)
        for seed in HORAMA_SEEDS:
            torch.manual_seed(seed)
            images = []
            for unit in units:
                image, _ = theirs_maco(
                    lambda x, unit=unit: reading(net, x)[layer][:, unit].mean(), total_steps=HORAMA_STEPS, image_size=size,
                    model_input_size=size, noise=0.05, values_range=(0.0, 1.0), crops_per_iteration=CROPS,
                    box_size=(box, box), device="cpu",
                )  # fmt: skip
                images.append(image.detach())
            theirs.append(scores(net, layer, torch.stack(images), units))
            done = render(net, Channel(layer), units, recipe, [seed], shape=shape, compute=compute, batch_size=4)
            ours.append(scores(net, layer, torch.stack([one.image for one in done]), units))
    report(
        f"Horama, {HORAMA_STEPS} steps of NAdam 1.0 on phases, {size} px, crops of {box:g}",
        torch.stack(ours, 1),
        torch.stack(theirs, 1),
    )


def main(ref: str = "torchvision:resnet18@random", layer: str = "layer2.1.conv2", size: str = "128", box: str = "0.75") -> None:
    torch.set_num_threads(THREADS)
    compute = Compute("cpu")
    net = compute.place(load_checkpoint(ref).net())
    for weight in net.parameters():
        weight.requires_grad_(False)
    print(f"{ref}, channels of {layer}, seeds {len(SEEDS)}; images scored alike, without transforms")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # their progress bars
        warnings.simplefilter("ignore")
        against_lucent(net, layer, int(size), compute)
        against_horama(net, layer, int(size), float(box), compute)


if __name__ == "__main__":
    main(*sys.argv[1:])
