"""Checks on attack runs (Pintor et al. 2022) and on how the network computes (the checks of AutoAttack)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vizrobust.attacks.attack import input_gradient
from vizrobust.attacks.losses import LOSSES, margin
from vizrobust.attacks.threat_models import widened
from vizrobust.intervals import CONFIDENCE, mcnemar
from vizrobust.models import evaluating
from vizrobust.rng import seeded
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.findings import Check, skipped, threshold_check

# The indicators are signs of single images; a network shows one where more than a tenth of its images do (our choice,
# after the tenth of I2).
OF_IMAGES = 0.1
# I2: uniform noise of half the radius 8/255, and the mean relative change of the loss that it may cause.
NOISE = 4 / 255
NOISY_POINTS = 20  # a hundred in the paper; over a hundred images the mean settles well before
CHANGE = 0.1
# I4: the last steps, and how much of the loss's whole rise may still come in them.
LAST, STILL_RISING = 10, 0.05


def unavailable_gradients(attacks: MaskingAttacks) -> Check:
    """I1, and AutoAttack's zero gradient at the start: no gradient, or one of zeros, at unchanged images."""
    name, advice = "no gradient at the start", "replace what cannot be differentiated for the attack (BPDA, Athalye et al. 2018)"
    if attacks.gradient_error is not None:
        told = f"autograd refuses: {attacks.gradient_error}"
        return threshold_check(name, 1.0, 0, told, advice, counts={"images": len(attacks.probes), "without": len(attacks.probes)})
    without = {loss: int((_gradient(attacks, loss).flatten(1).abs().amax(1) == 0).sum()) for loss in ("margin", "ce")}
    n = len(attacks.probes)
    evidence = f"{without['margin']} of {n} images have no gradient at all ({without['ce']} under cross entropy)"
    counts = {"images": n, "without": without["margin"], "without under cross entropy": without["ce"]}
    return threshold_check(name, without["margin"] / n, 0, evidence, advice, counts=counts)


def unstable_predictions(attacks: MaskingAttacks) -> Check:
    """I2: small noise changes the loss a lot, so a gradient tells little about the neighbourhood."""
    x, y = attacks.probe_images
    streams = attacks.streams("unstable predictions")
    with evaluating(attacks.net), attacks.compute.autocast(), torch.no_grad():
        base = widened(margin(attacks.probe_net(x), y))
        changes = torch.zeros_like(base)
        for _ in range(NOISY_POINTS):
            noise = (2 * streams.uniform(*x.shape[1:]).to(x) - 1) * NOISE
            near = widened(margin(attacks.probe_net((x + noise).clamp(0, 1)), y))
            changes += ((near - base).abs() / base.abs().clamp_min(1e-12)).clamp_max(1).nan_to_num(1)
    value = float((changes / NOISY_POINTS).mean())
    evidence = f"noise of 4/255 changes the margin by {100 * value:.1f} % on average"
    advice = "smooth the loss: attack its mean over noise (EOT), and look at the loss along the attack's path"
    return threshold_check("unstable predictions", value, CHANGE, evidence, advice, counts={"images": len(x)})


def silent_success(attacks: MaskingAttacks) -> Check:
    """I3: an iterate was wrong and the last one is not, so an attack that returns its last point reports a failure."""
    correct, undefined = _correct(attacks), attacks.trajectory.undefined
    assert undefined is not None
    silent = int((~correct[1:].all(0) & correct[-1] & ~undefined).sum())
    evidence = f"{silent} of {correct.shape[1]} images are misclassified at some iterate and right at the last one"
    advice = "count an image as misclassified if any iterate is, as vizrobust does; judging the last one overstates accuracy"
    counts = {"images": correct.shape[1], "silent": silent}
    return threshold_check("silent success", silent / correct.shape[1], OF_IMAGES, evidence, advice, counts=counts)


def incomplete_optimisation(attacks: MaskingAttacks) -> Check:
    """I4: the loss still rises in the last steps on images where no iterate is misclassified: more steps would find more."""
    name, loss, alive = "stopped too early", attacks.trajectory.loss, _correct(attacks).all(0)
    assert loss is not None
    n, steps = int(alive.sum()), len(loss) - 1
    if not n:
        return skipped(name, f"PGD succeeded on all {len(alive)} images, so no loss was left to raise")
    best = widened(loss[:, alive]).cummax(0).values
    last = min(LAST, steps // 5)
    whole = best[-1] - widened(loss[:, alive]).amin(0)
    rising = int(((best[-1] - best[-1 - last]) > STILL_RISING * whole).sum())
    most = f"over {100 * STILL_RISING:.0f} % of the rise"
    evidence = f"on {rising} of {n} surviving images the last {last} of {steps} steps brought {most}"
    advice = f"use more steps than {steps}, or APGD, until the accuracy stops falling"
    return threshold_check(name, rising / n, OF_IMAGES, evidence, advice, counts={"images": n, "still rising": rising})


def judged_is_differentiated(attacks: MaskingAttacks) -> Check:
    """I5: the network gives other answers while it is differentiated, so the attack was on another network."""
    (x, y), adv = attacks.probe_images, attacks.trajectory.best
    assert adv is not None
    with evaluating(attacks.net), attacks.compute.autocast():
        with torch.no_grad():
            judged = attacks.probe_net(adv).argmax(1)
        differentiated = attacks.probe_net(adv.detach().requires_grad_()).detach().argmax(1)
    other = int((judged != differentiated).sum())
    evidence = f"{other} of {len(y)} adversarial images get another class when gradients are asked for"
    advice = "attack the network that is used: the same forward pass with and without gradients"
    return threshold_check(
        "attacked another network", other / len(x), 0, evidence, advice, counts={"images": len(x), "other": other}
    )


ATTACK_RUN_CHECKS: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check
    for check in (
        unavailable_gradients, unstable_predictions, silent_success, incomplete_optimisation, judged_is_differentiated,
    )
}  # fmt: skip


def _gradient(attacks: MaskingAttacks, loss: str) -> Tensor:
    x, y = attacks.probe_images
    with evaluating(attacks.net), attacks.compute.autocast():
        point = x.detach().requires_grad_()
        return input_gradient(LOSSES[loss](attacks.probe_net(point), y), point)


def _correct(attacks: MaskingAttacks) -> Tensor:
    """(steps + 1, p) bool: the verdicts along PGD's path."""
    assert attacks.trajectory.correct is not None
    return attacks.trajectory.correct


# AutoAttack warns where Square lowers the accuracy that its other members leave by more.
SQUARE = 0.002
# AutoAttack's bounds for a random network: so many passes, logits that differ by more (L2, per image).
PASSES, DIFFERENT = 5, 1e-4
# An image's logits may differ by so much with the other images in the batch: rounding.
OTHER_IMAGES = 1e-3
# Probabilities in half precision sum to 1 to about so much; a few logits may do so by chance, those of all images not.
SUMS_TO_ONE, MOST = 1e-2, 0.5


def square_beats_all_gradients(attacks: MaskingAttacks) -> Check:
    """Square breaks images that no gradient attack does, neither PGD on either loss nor APGD."""
    name = "Square beats all gradients"
    by_square = attacks.survives.get("square")
    if by_square is None:
        return skipped(name, f"Square has no perturbations for the {type(attacks.ball).__name__} ball")
    gradients = attacks.survives["pgd"] & attacks.survives["margin loss"] & attacks.survives["apgd"]
    test = mcnemar(gradients, gradients & by_square, confidence=2 * CONFIDENCE - 1)
    bounds = f"{100 * max(0.0, test.ci_low):.1f} to {100 * test.ci_high:.1f}"
    evidence = f"of {test.n} images it breaks {test.only_a} that PGD on two losses and APGD do not ({bounds})"
    advice = "gradients miss a few images: quote an ensemble that contains Square ({attack} standard)"
    counts = {"images": test.n, "newly broken": test.only_a}
    return threshold_check(name, test.difference, SQUARE, evidence, advice, counts=counts, unit="points", bound=test.ci_low)


def randomised(attacks: MaskingAttacks) -> Check:
    """The same images get other logits each time."""
    x = attacks.probe_images[0]
    with evaluating(attacks.net), attacks.compute.autocast(), torch.no_grad(), seeded(attacks.seed, attacks.compute.device):
        logits = torch.stack([widened(attacks.probe_net(x)) for _ in range(PASSES)])
    moved = (logits - logits[0]).norm(dim=2).amax(0)
    classes = int((logits.argmax(2) != logits[0].argmax(1)).any(0).sum())
    evidence = (
        f"in {PASSES} passes logits differ by up to {float(moved.max()):.2g}, and {classes} of {len(x)} images change class"
    )
    advice = "switch the randomness off, or attack its expectation: {attack} 'EOT(attack=PGD(), samples=20)'"
    counts = {"images": len(x), "other class": classes}
    return threshold_check("randomised", float(moved.max()), DIFFERENT, evidence, advice, counts=counts, unit="number")


def softmax_output(attacks: MaskingAttacks) -> Check:
    """The network returns probabilities in place of logits, on which cross entropy takes a second softmax."""
    x = attacks.probe_images[0]
    with evaluating(attacks.net), attacks.compute.autocast(), torch.no_grad():
        out = widened(attacks.probe_net(x))
    like = (out >= 0).all(1) & ((out.sum(1) - 1).abs() < SUMS_TO_ONE)
    evidence = f"the outputs of {int(like.sum())} of {len(x)} images are not negative and sum to 1"
    advice = "leave the softmax out of the network: attacks need its logits"
    value = float(like.float().mean())
    return threshold_check(
        "softmax output", value, MOST, evidence, advice, counts={"images": len(x), "probabilities": int(like.sum())}
    )


def optimisation_in_forward(attacks: MaskingAttacks) -> Check:
    """The forward pass takes gradients of its own (it purifies, or adapts at test time)."""
    recorded: list[Tensor] = []
    x = attacks.probe_images[0][:1]

    def keep(tensor: Tensor) -> Tensor:
        recorded.append(tensor)
        return tensor

    # Where nobody asks for gradients nothing is kept for them, unless the network itself asks.
    with (
        evaluating(attacks.net),
        attacks.compute.autocast(),
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, _same),
    ):
        attacks.net(x)
    kept = f"{len(recorded)} tensors are kept for gradients" if recorded else "nothing is kept for a gradient"
    evidence = f"{kept} when nobody outside the network asks for one"
    advice = "gradients through an inner optimisation mislead: attack the whole loop, or without gradients (Square), adaptively"
    counts = {"tensors": len(recorded)}
    return threshold_check("inner optimisation", len(recorded), 0, evidence, advice, counts=counts, unit="number")


def batch_norm_mode(attacks: MaskingAttacks) -> Check:
    """An image's logits depend on the other images in the batch, or the network was passed in training mode."""
    name, kinds = "statistics of the batch", (_BatchNorm, nn.modules.dropout._DropoutNd)
    training = [type(module).__name__ for module in attacks.net.modules() if isinstance(module, kinds) and module.training]
    x = attacks.probe_images[0]
    with evaluating(attacks.net), attacks.compute.autocast(), torch.no_grad(), seeded(attacks.seed, attacks.compute.device):
        # At one batch size, as kernels depend on it: the first image among itself, and among others.
        alone, among = attacks.net(x[:1].expand_as(x)), attacks.net(x)
        again = attacks.net(x[:1].expand_as(x))
    moved = float((alone[0] - among[0]).abs().max())
    if not training and not torch.equal(alone, again):
        return skipped(name, "the network is random, so its logits change for another reason too")
    evidence = f"an image's logits change by {moved:.2g} with the other images in the batch"
    if training:
        evidence += f"; passed in training mode: {', '.join(dict.fromkeys(training))} (attacked in evaluation mode)"
    advice = "call net.eval() and use running statistics: an attack on a batch attacks its statistics, not an image"
    value, threshold = (float(len(training)), 0) if training else (moved, OTHER_IMAGES)
    counts = {"images": len(x), "layers in training mode": len(training)}
    return threshold_check(name, value, threshold, evidence, advice, counts=counts, unit="number")


def nonfinite_values(attacks: MaskingAttacks) -> Check:
    """Outputs or image gradients are NaN or infinite, unchanged or at a point that an attack visited."""
    attacks.survives["all"]  # all attacks have been run then
    n, undefined, gradients = attacks.n, attacks.undefined, attacks.nonfinite_gradients
    evidence = "outputs and gradients are finite at all points that attacks visited"
    if bool((undefined | gradients).any()):
        evidence = (
            f"outputs are not finite at some point on {int(undefined.sum())} of {n} images, which are neither misclassified nor "
            f"robust; gradients on {int(gradients.sum())}, where such entries count as 0"
        )
    advice = (
        "look for a square root, logarithm, norm or division that meets 0, and for overflow in the forward pass; keep "
        "their arguments away from 0"
    )
    counts = {"images": n, "outputs": int(undefined.sum()), "gradients": int(gradients.sum())}
    return threshold_check("values not finite", float((undefined | gradients).float().mean()), 0, evidence, advice, counts=counts)


NETWORK_CHECKS: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check
    for check in (
        square_beats_all_gradients, randomised, softmax_output, optimisation_in_forward, batch_norm_mode, nonfinite_values,
    )
}  # fmt: skip


def _same(tensor: Any) -> Any:
    return tensor
