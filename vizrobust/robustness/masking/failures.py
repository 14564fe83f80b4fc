"""Checks on single runs: the indicators of attack failure of Pintor et al. 2022."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vizrobust.attacks.losses import LOSSES, margin
from vizrobust.models import borrowed
from vizrobust.robustness.masking.check import Check, held, not_run
from vizrobust.robustness.masking.context import Context

# The indicators are signs of single images; a network shows one where more than a tenth of its images do (our choice,
# after the tenth of I2).
OF_IMAGES = 0.1
# I2: uniform noise of half the radius 8/255, and the mean relative change of the loss that it may cause.
NOISE = 4 / 255
NOISY_POINTS = 20  # a hundred in the paper; over a hundred images the mean settles well before
CHANGE = 0.1
# I4: the last steps, and how much of the loss's whole rise may still come in them.
LAST, STILL_RISING = 10, 0.05


def unavailable_gradients(context: Context) -> Check:
    """I1, and AutoAttack's zero gradient at the start: no gradient, or one of zeros, at unchanged images."""
    name, advice = "no gradient at the start", "replace what cannot be differentiated for the attack (BPDA, Athalye et al. 2018)"
    if context.gradient_error is not None:
        told = f"autograd refuses: {context.gradient_error}"
        return held(name, 1.0, 0, told, advice, counts={"images": len(context.probes), "without": len(context.probes)})
    without = {loss: int((_gradient(context, loss).flatten(1).abs().amax(1) == 0).sum()) for loss in ("margin", "ce")}
    n = len(context.probes)
    evidence = f"{without['margin']} of {n} images have no gradient at all ({without['ce']} under cross entropy)"
    counts = {"images": n, "without": without["margin"], "without under cross entropy": without["ce"]}
    return held(name, without["margin"] / n, 0, evidence, advice, counts=counts)


def unstable_predictions(context: Context) -> Check:
    """I2: small noise changes the loss a lot, so a gradient tells little about the neighbourhood."""
    x, y = context.probe_images
    streams = context.streams("unstable predictions")
    with borrowed(context.net), context.compute.autocast(), torch.no_grad():
        base = margin(context.net(x), y).double()
        changes = torch.zeros_like(base)
        for _ in range(NOISY_POINTS):
            noise = (2 * streams.uniform(*x.shape[1:]).to(x) - 1) * NOISE
            near = margin(context.net((x + noise).clamp(0, 1)), y).double()
            changes += ((near - base).abs() / base.abs().clamp_min(1e-12)).clamp_max(1)
    value = float((changes / NOISY_POINTS).mean())
    evidence = f"noise of 4/255 changes the margin by {100 * value:.1f} % on average"
    advice = "smooth the loss: attack its mean over noise (EoT), and look at the loss along the attack's path"
    return held("unstable predictions", value, CHANGE, evidence, advice, counts={"images": len(x)})


def silent_success(context: Context) -> Check:
    """I3: an iterate was wrong and the last one is not, so an attack that returns its last point reports a failure."""
    correct = _correct(context)
    silent = int((~correct[1:].all(0) & correct[-1]).sum())
    evidence = (
        f"{silent} of {correct.shape[1]} images were wrong on the way and are right at the end (vizrobust counts them as broken)"
    )
    advice = "count an image as broken at any iterate, as vizrobust does; other tools' numbers on this network will be too high"
    counts = {"images": correct.shape[1], "silent": silent}
    return held("silent success", silent / correct.shape[1], OF_IMAGES, evidence, advice, counts=counts)


def incomplete_optimisation(context: Context) -> Check:
    """I4: the loss still rises in the last steps on images that were not broken: more steps would find more."""
    name, loss, alive = "stopped too early", context.trajectory.loss, _correct(context).all(0)
    assert loss is not None
    n, steps = int(alive.sum()), len(loss) - 1
    if not n:
        return not_run(name, f"all {len(alive)} images are broken, so nothing was left to climb")
    best = loss[:, alive].double().cummax(0).values
    last = min(LAST, steps // 5)
    whole = best[-1] - loss[:, alive].double().amin(0)
    rising = int(((best[-1] - best[-1 - last]) > STILL_RISING * whole).sum())
    evidence = (
        f"on {rising} of {n} unbroken images the last {last} of {steps} steps brought over {100 * STILL_RISING:.0f} % of the rise"
    )
    advice = f"use more steps than {steps}, or APGD, until the accuracy stops falling"
    return held(name, rising / n, OF_IMAGES, evidence, advice, counts={"images": n, "still rising": rising})


def judged_is_differentiated(context: Context) -> Check:
    """I5: the network answers otherwise when it is differentiated, so the attack was on another network."""
    (x, y), adv = context.probe_images, context.trajectory.best
    assert adv is not None
    with borrowed(context.net), context.compute.autocast():
        with torch.no_grad():
            judged = context.net(adv).argmax(1)
        differentiated = context.net(adv.detach().requires_grad_()).detach().argmax(1)
    other = int((judged != differentiated).sum())
    evidence = f"{other} of {len(y)} adversarial images get another class when gradients are asked for"
    advice = "attack the network that is used: the same forward pass with and without gradients"
    return held("attacked another network", other / len(x), 0, evidence, advice, counts={"images": len(x), "other": other})


FAILURES: dict[str, Callable[[Context], Check]] = {
    check.__name__: check
    for check in (
        unavailable_gradients, unstable_predictions, silent_success, incomplete_optimisation, judged_is_differentiated,
    )
}  # fmt: skip


def _gradient(context: Context, loss: str) -> Tensor:
    x, y = context.probe_images
    with borrowed(context.net), context.compute.autocast():
        point = x.detach().requires_grad_()
        return torch.autograd.grad(LOSSES[loss](context.net(point), y).sum(), point)[0]


def _correct(context: Context) -> Tensor:
    """(steps + 1, p) bool: the verdicts along PGD's path."""
    assert context.trajectory.correct is not None
    return context.trajectory.correct
