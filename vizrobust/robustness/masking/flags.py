"""Checks on how the network computes: AutoAttack's flags (Croce & Hein 2020), and whose statistics it uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vizrobust.models import borrowed
from vizrobust.rng import seeded
from vizrobust.robustness.accuracy import CONFIDENCE
from vizrobust.robustness.masking.check import Check, held, not_run
from vizrobust.robustness.masking.context import Context
from vizrobust.robustness.statistics import mcnemar

# AutoAttack warns where Square lowers the accuracy that its other members leave by more.
SQUARE = 0.002
# AutoAttack's bounds for a random network: so many passes, logits that differ by more (L2, per image).
PASSES, DIFFERENT = 5, 1e-4
# A network that looks at one image at a time gives it the same logits whoever its mates are, but for rounding.
MATES = 1e-3
# Probabilities in half precision sum to 1 to about so much; a few logits may do so by chance, those of all images not.
SUMS_TO_ONE, MOST = 1e-2, 0.5


def square_beats_all_gradients(context: Context) -> Check:
    """Square breaks images that no gradient attack does, neither PGD on either loss nor APGD."""
    name = "Square beats all gradients"
    if context.by_square is None:
        return not_run(name, f"Square has no windows for the {type(context.ball).__name__} ball")
    gradients = context.by_gradients & context.by_margin & context.by_apgd
    test = mcnemar(gradients, gradients & context.by_square, confidence=2 * CONFIDENCE - 1)
    bounds = f"{100 * max(0.0, test.ci_low):.1f} to {100 * test.ci_high:.1f}"
    evidence = f"of {test.n} images it breaks {test.only_a} that PGD on two losses and APGD do not ({bounds})"
    advice = "the gradients are not to be trusted to the last point: quote an ensemble with Square in it (--attack standard)"
    counts = {"images": test.n, "newly broken": test.only_a}
    return held(name, test.difference, SQUARE, evidence, advice, counts=counts, unit="points", bound=test.ci_low)


def randomised(context: Context) -> Check:
    """The same images get other logits each time."""
    x = context.probe_images[0]
    with borrowed(context.net), context.compute.autocast(), torch.no_grad(), seeded(context.seed, context.compute.device):
        logits = torch.stack([context.net(x).double() for _ in range(PASSES)])
    moved = (logits - logits[0]).norm(dim=2).amax(0)
    classes = int((logits.argmax(2) != logits[0].argmax(1)).any(0).sum())
    evidence = (
        f"in {PASSES} passes logits differ by up to {float(moved.max()):.2g}, and {classes} of {len(x)} images change class"
    )
    advice = "switch the randomness off or attack its expectation: --attack 'EoT(attack=PGD(), samples=20)'"
    counts = {"images": len(x), "other class": classes}
    return held("randomised", float(moved.max()), DIFFERENT, evidence, advice, counts=counts, unit="number")


def softmax_output(context: Context) -> Check:
    """The network returns probabilities in place of logits, on which cross entropy takes a second softmax."""
    x = context.probe_images[0]
    with borrowed(context.net), context.compute.autocast(), torch.no_grad():
        out = context.net(x).double()
    like = (out >= 0).all(1) & ((out.sum(1) - 1).abs() < SUMS_TO_ONE)
    evidence = f"the outputs of {int(like.sum())} of {len(x)} images are not negative and sum to 1"
    advice = "leave the softmax out of the network: attacks need its logits"
    value = float(like.double().mean())
    return held("softmax output", value, MOST, evidence, advice, counts={"images": len(x), "probabilities": int(like.sum())})


def optimisation_in_forward(context: Context) -> Check:
    """The forward pass takes gradients of its own (it purifies, or adapts at test time)."""
    recorded: list[Tensor] = []
    x = context.probe_images[0][:1]

    def keep(tensor: Tensor) -> Tensor:
        recorded.append(tensor)
        return tensor

    # Where nobody asks for gradients nothing is kept for them, unless the network itself asks.
    with (
        borrowed(context.net),
        context.compute.autocast(),
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, _same),
    ):
        context.net(x)
    kept = f"{len(recorded)} tensors are kept for gradients" if recorded else "nothing is kept for a gradient"
    evidence = f"{kept} when nobody outside the network asks for one"
    advice = "gradients through an inner optimisation mislead: attack the whole loop, or without gradients (Square), adaptively"
    counts = {"tensors": len(recorded)}
    return held("inner optimisation", len(recorded), 0, evidence, advice, counts=counts, unit="number")


def batch_norm_mode(context: Context) -> Check:
    """An image's logits depend on its mates, or the network was handed over in training mode."""
    name, kinds = "statistics of the batch", (_BatchNorm, nn.modules.dropout._DropoutNd)
    training = [type(module).__name__ for module in context.net.modules() if isinstance(module, kinds) and module.training]
    x = context.probe_images[0]
    with borrowed(context.net), context.compute.autocast(), torch.no_grad(), seeded(context.seed, context.compute.device):
        # At one batch size, as kernels depend on it: the first image among itself, and among others.
        alone, among = context.net(x[:1].expand_as(x)), context.net(x)
        again = context.net(x[:1].expand_as(x))
    moved = float((alone[0] - among[0]).abs().max())
    if not training and not torch.equal(alone, again):
        return not_run(name, "the network is random, so it cannot be told whose mates moved it")
    evidence = f"an image's logits move by {moved:.2g} with its mates"
    if training:
        evidence += f"; handed over in training mode: {', '.join(dict.fromkeys(training))} (attacked in evaluation mode)"
    advice = "call net.eval() and use running statistics: an attack on a batch attacks its statistics, not an image"
    value, limit = (float(len(training)), 0) if training else (moved, MATES)
    counts = {"images": len(x), "layers in training mode": len(training)}
    return held(name, value, limit, evidence, advice, counts=counts, unit="number")


FLAGS: dict[str, Callable[[Context], Check]] = {
    check.__name__: check
    for check in (square_beats_all_gradients, randomised, softmax_output, optimisation_in_forward, batch_norm_mode)
}


def _same(tensor: Any) -> Any:
    return tensor
