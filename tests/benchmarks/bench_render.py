"""How fast feature images come: against Lucent, in a batch and unit by unit, and against bare passes; best of three."""

# ruff: noqa: T201  a script that prints its table
from __future__ import annotations

import resource
import warnings
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.bench_attacks import THREADS, Job, best_times, measured_precisions
from tests.benchmarks.lucent_peer import lucent_renders
from tests.benchmarks.ratios import verdict
from vizrobust.compute import Compute
from vizrobust.features import Channel, lucid, render
from vizrobust.models import ActivationReader, Checkpoint, load_checkpoint
from vizrobust.models.folding import folded_net

SIZE, STEPS, UNITS = 128, 16, 8
LAYER = "layer2.1.conv2"


def ours(checkpoint: Checkpoint, precision: str, units: int = UNITS, batch_size: int = UNITS) -> Job:
    net, compute = folded_net(checkpoint, [LAYER])[0], Compute("cpu", precision)
    recipe = lucid(steps=STEPS, size=SIZE)

    def run() -> None:
        shape = (3, SIZE, SIZE)
        list(render(net, Channel(LAYER), range(units), recipe, shape=shape, compute=compute, batch_size=batch_size))

    return run


def bare(checkpoint: Checkpoint, precision: str) -> Job:
    """As many passes as a render of `STEPS` steps makes, with one resampling and one inverse transform each."""
    compute = Compute("cpu", precision)
    net = compute.place(folded_net(checkpoint, [LAYER])[0])
    for weight in net.parameters():
        weight.requires_grad_(False)
    reading = ActivationReader.of(net, (3, SIZE, SIZE), [LAYER])
    z = torch.randn(UNITS, 3, SIZE, SIZE // 2 + 1, dtype=torch.complex64)
    turn = torch.tensor([[0.98, 0.1, 0.0], [-0.1, 0.98, 0.0]]).expand(UNITS, 2, 3)
    rows = torch.arange(UNITS)

    def seen(z: Tensor) -> Tensor:
        image = torch.sigmoid(torch.fft.irfft2(z, s=(SIZE, SIZE)))
        grid = F.affine_grid(turn, list(image.shape), align_corners=False)
        return compute.images(F.grid_sample(image, grid, padding_mode="reflection", align_corners=False))

    def run() -> None:
        with compute.autocast():
            for _ in range(STEPS):
                free = z.clone().requires_grad_()
                with compute.full_precision():
                    x = seen(free)
                torch.autograd.grad(reading(net, x)[LAYER][rows, rows].mean((1, 2)).sum(), free)
        with torch.no_grad():
            reading(net, seen(z))

    return run


def peak() -> float:
    """The process's largest memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    torch.set_num_threads(THREADS)
    checkpoint = load_checkpoint("torchvision:resnet18@random")
    print(f"{UNITS} channels of {LAYER} of torchvision's ResNet-18, {SIZE} px, {STEPS} steps, {THREADS} threads")
    precisions = measured_precisions()
    jobs: dict[str, Job] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body: nn.Module = deepcopy(checkpoint.net().net)
        batch, alone = lucent_renders(body, LAYER, range(UNITS), SIZE, STEPS)
        if batch is not None and alone is not None:
            jobs |= {"Lucent, one batch": batch, "Lucent, unit by unit": alone}
        for precision in precisions:
            jobs[f"bare passes, {precision}"] = bare(checkpoint, precision)
            jobs[f"vizrobust, {precision}"] = ours(checkpoint, precision)
        times = best_times(jobs)
    for name, seconds in times.items():
        print(f"  {name:<52} {seconds / UNITS / STEPS:7.4f} s per image and step")
    if "Lucent, one batch" in times:
        for peer, wanted in (("Lucent, one batch", (2.4, 4)), ("Lucent, unit by unit", (3.5, 6))):
            for precision, least in zip(precisions, wanted, strict=False):
                verdict(f"{peer} / vizrobust, {precision}", times[peer] / times[f"vizrobust, {precision}"], least, True)
    for precision in precisions:
        ratio = times[f"vizrobust, {precision}"] / times[f"bare passes, {precision}"]
        verdict(f"vizrobust / bare passes, {precision}", ratio, 1.1, False)
    costs = best_times({str(size): ours(checkpoint, "fp32", size, size) for size in (1, 4, 16, 64)})
    per_image = {size: seconds / int(size) / STEPS for size, seconds in costs.items()}
    print("  s per image and step by batch size: " + ", ".join(f"{size}: {cost:.4f}" for size, cost in per_image.items()))
    values = list(per_image.values())
    growth = max(later / min(values[: i + 1]) for i, later in enumerate(values[1:]))
    verdict("cost per image, a larger batch / the best smaller", growth, 1.05, False)
    before = peak()
    ours(checkpoint, "fp32", 128, UNITS)()
    print(f"  peak memory {before:.0f} MB before, {peak():.0f} MB after 128 units in batches of {UNITS}")


if __name__ == "__main__":
    main()
