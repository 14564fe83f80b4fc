"""Checks on the loss around the images: zero gradients, saturation, bends, and what the gradient predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks import epsilon
from vizrobust.attacks.losses import margin
from vizrobust.attacks.threat_models import widened
from vizrobust.models import evaluating
from vizrobust.robustness.first_order import FALLS_SHORT_BELOW, UNDERESTIMATED_BEYOND, input_gradient
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.findings import Check, skipped, threshold_check

# A network shows a sign where more than a tenth of its images, or of an image's pixels, do (our choice).
OF_IMAGES = OF_PIXELS = 0.1
# Moved inside by this much, black and white pixels no longer lie at the bounds of a clamp, where it has no gradient.
INSIDE = 0.01
# 60 degrees: less in common with the gradient elsewhere in the ball than not. GradAlign (Andriushchenko & Flammarion
# 2020) raises this cosine because it falls towards 0 where training has overfitted to one step; the limit is ours.
COSINE = 0.5
# The error of the linear approximation over what it and the loss itself say (Qin et al. 2019, who bound the error).
BENT = 0.5
WRONG_WITH_GRADIENTS = "the network is wrong everywhere when gradients are asked for"


def zero_gradient_coordinates(attacks: MaskingAttacks) -> Check:
    """Pixels without a gradient that have one once the image is moved inside [0, 1]: a clamp in the forward pass.

    The shares of all zero coordinates, split by saturated and other pixels, are in the evidence.
    """
    x, _ = attacks.probe_images
    gradient = _gradient(attacks, x)
    inside = _gradient(attacks, x * (1 - 2 * INSIDE) + INSIDE)
    zero, saturated = gradient == 0, (x <= 0) | (x >= 1)
    lost = zero & saturated & (inside != 0)
    value = _share(lost, saturated)
    others = (
        f"{100 * _share(zero, ~saturated):.1f} % of the other pixels"
        if not bool(saturated.all())
        else "there are no other pixels"
    )
    evidence = (
        f"no gradient at {100 * _share(zero, saturated):.1f} % of the black and white pixels, {others}; "
        f"moved inside by {INSIDE:g}, {100 * value:.1f} % of the black and white ones have one"
    )
    counts = {"pixels": int(saturated.sum()), "without a gradient": int((zero & saturated).sum()), "lost": int(lost.sum())}
    advice = "clip outside the differentiated path, or pass the gradient through the clamp unchanged"
    return threshold_check("black and white frozen", value, OF_PIXELS, evidence, advice, counts=counts)


def cross_entropy_underflow(attacks: MaskingAttacks) -> Check:
    """Plain cross entropy has no gradient: the network is so confident that float32 rounds the loss to 0."""
    x, y = attacks.probe_images
    with evaluating(attacks.net), attacks.compute.autocast():
        with torch.no_grad():
            logits = attacks.probe_net(x).detach()
        logits = logits.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    under = int((slope.abs().amax(1) == 0).sum())
    sure = float(-margin(logits.detach(), y).median())
    evidence = f"plain cross entropy has no slope at {under} of {len(x)} images; the median lead of the label is {sure:.3g}"
    advice = "other tools' attacks on cross entropy stop here; divide the logits, or use the margin or DLR loss"
    counts = {"images": len(x), "without a slope": under}
    return threshold_check("cross entropy underflows", under / len(x), 0, evidence, advice, counts=counts)


def gradient_cosine(attacks: MaskingAttacks) -> Check:
    """Gradients at the image and at a random point of the ball point in different directions."""
    name = "gradients turn in the ball"
    x, _ = attacks.probe_images
    near = (x + attacks.ball.sample(x, attacks.streams("cosine"))).clamp(0, 1)
    here, there = (widened(_gradient(attacks, points)).flatten(1) for points in (x, near))
    some = here.any(1) & there.any(1)
    if not bool(some.any()):
        return skipped(name, "there are no gradients to compare")
    cosines = F.cosine_similarity(here[some], there[some])
    value = float(cosines.mean())
    evidence = f"mean cosine of the gradients at an image and at a random point of its ball: {value:.2f}"
    advice = "the sign of catastrophic overfitting: train with more steps or GradAlign; attack with many steps and restarts"
    counts = {"images": len(cosines), "below": int((cosines < COSINE).sum())}
    return threshold_check(name, value, COSINE, evidence, advice, counts=counts, unit="number", flagged_if="below")


def local_linearity(attacks: MaskingAttacks) -> Check:
    """One step of eps along the gradient changes the loss by something else than the gradient predicts."""
    x, y = attacks.probe_images
    gradient, before = _gradient(attacks, x), _margin(attacks, x, y)
    step = (x + epsilon(attacks.ball) * attacks.ball.steepest_direction(gradient, x)).clamp(0, 1) - x
    said = (widened(gradient) * step).flatten(1).sum(1)
    done = _margin(attacks, x + step, y) - before
    errors = (done - said).abs() / (done.abs() + said.abs()).clamp_min(1e-12)
    value = float(errors.nan_to_num(1.0).median())
    evidence = f"after one step the median error of the predicted margin is {100 * value:.0f} % of prediction and change together"
    advice = "one-step attacks tell nothing here: use many small steps"
    counts = {"images": len(x), "above": int((errors > BENT).sum())}
    return threshold_check("bent along one step", value, BENT, evidence, advice, counts=counts, unit="number")


def promised_too_little(attacks: MaskingAttacks) -> Check:
    """PGD lowers the margin by far more than the gradient at the image promises: it is hidden there."""
    return _share_of_drops(
        attacks, "gradient promises too little", "gradient_underestimates", "hidden",
        f"PGD's drop is over {UNDERESTIMATED_BEYOND:g} times what the gradient promises",
        "start attacks at random points of the ball, and use attacks without gradients beside them",
    )  # fmt: skip


def fell_short(attacks: MaskingAttacks) -> Check:
    """FGSM gets less than half of what the gradient promises though PGD gets it: overfitted to one step."""
    return _share_of_drops(
        attacks, "one step falls short", "fgsm_falls_short", "short",
        f"FGSM's drop is under {FALLS_SHORT_BELOW:g} times its promise, PGD's is not",
        "the network bends away just where one-step training looks: judge it by many steps only",
    )  # fmt: skip


def _share_of_drops(attacks: MaskingAttacks, name: str, which: str, count: str, said: str, advice: str) -> Check:
    """The share of images whose drops are as the mask `which` of the first-order comparison says."""
    found = attacks.first_order
    if found is None:
        return skipped(name, WRONG_WITH_GRADIENTS)
    these, n = int(getattr(found, which).sum()), len(found)
    evidence = f"on {these} of {n} images {said}"
    return threshold_check(name, these / n, OF_IMAGES, evidence, advice, counts={"images": n, count: these})


GRADIENT_CHECKS: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check
    for check in (
        zero_gradient_coordinates, cross_entropy_underflow, gradient_cosine, local_linearity, promised_too_little, fell_short,
    )
}  # fmt: skip


def _gradient(attacks: MaskingAttacks, x: Tensor) -> Tensor:
    """Of the margin, at points (p, C, H, W) that belong to the probes."""
    with attacks.compute.autocast():
        return input_gradient(attacks.probe_net, x, attacks.probe_images[1], "margin")[2]


def _margin(attacks: MaskingAttacks, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(attacks.net), attacks.compute.autocast(), torch.no_grad():
        return widened(margin(attacks.probe_net(x), y))


def _share(of: Tensor, among: Tensor) -> float:
    return float((of & among).sum() / among.sum().clamp_min(1))
