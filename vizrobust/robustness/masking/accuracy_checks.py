"""Checks on accuracies: symptoms (Athalye et al. 2018, section 3.1) and the criteria that decide the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from vizrobust.intervals import CONFIDENCE, McNemar, mcnemar, share
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.check import Check, Unit, skipped, threshold_check
from vizrobust.robustness.masking.gradient_checks import cross_entropy_underflow
from vizrobust.robustness.masking.verdict import Criterion, hiding, overfitting, unbounded, underflow


def training_gap(context: MaskingAttacks) -> Criterion | None:
    """How much more the attack of training leaves than the strongest one found; None for standard training."""
    under_training, attacks = context.by_training_attacks, " and ".join(map(repr, context.training_attacks))
    if under_training is None:
        return None
    found = context.by_everything
    fall = f"from {100 * share(under_training):.1f} % under {attacks} to {100 * share(found):.1f} % under the strongest attack"
    what = f"the fall {fall}"
    return replace(overfitting(under_training, context.by_gradients, found), what=what)


def missed(context: MaskingAttacks, verdicts: Tensor | None, by: str) -> Criterion | None:
    """The images that survive PGD, also with more restarts, and not another attack; None where that was not run."""
    if verdicts is None:
        return None
    return replace(hiding(context.by_retries, verdicts), what=f"the share that {by} breaks and PGD with cross entropy does not")


def missed_by_loss(context: MaskingAttacks) -> Criterion | None:
    return missed(context, context.by_margin, "the margin loss")


def missed_by_square(context: MaskingAttacks) -> Criterion | None:
    return missed(context, context.by_square, "Square (a search without gradients)")


def missed_by_noise(context: MaskingAttacks) -> Criterion | None:
    return missed(context, context.by_noise, "random noise")


def missed_by_transfer(context: MaskingAttacks) -> Criterion | None:
    return missed(context, context.by_transfer, f"transfer from {context.subject.source}")


def left_by_plain_loss(context: MaskingAttacks) -> Criterion | None:
    """What logits that are too far apart for plain cross entropy keep from other tools' attacks; None where there are none."""
    if not cross_entropy_underflow(context).value:
        return None
    what = "the share that PGD on plain cross entropy, as other tools run it, leaves and PGD here breaks"
    return replace(underflow(context.by_plain_loss, context.by_gradients), what=what)


def left_over(context: MaskingAttacks) -> Criterion:
    """What an attack leaves that may change every pixel at will."""
    what = "the share left by an attack that may change every pixel at will"
    return replace(unbounded(context.by_unbounded, context.classes), what=what)


def criteria(context: MaskingAttacks) -> Iterator[Criterion]:
    """All that apply to the network."""
    missed_by = (missed_by_loss, missed_by_square, missed_by_noise, missed_by_transfer)
    for measure in (training_gap, *missed_by, left_by_plain_loss, left_over):
        criterion = measure(context)
        if criterion is not None:
            yield criterion


# The first eps below, at which one step should break less than at the whole eps (Kim et al. 2021, on networks that
# overfit to one step: they are weaker *inside* the ball than at its edge).
EPS_STEPS = (0.25, 0.5, 0.75, 1.0)
BEYOND = 2.0
ADAPT = "attack it on the margin loss, with Square and with --thorough; quote the worst case only"


def training_attack_gap(context: MaskingAttacks) -> Check:
    """Accuracy under the attack of training minus that under the strongest attack found."""
    name, criterion = "training attack beaten", training_gap(context)
    if criterion is None:
        seen = ", ".join(map(repr, context.subject.trained or ()))
        why = f"trained against {seen}, which has no ball or looks for nothing" if seen else "not adversarially trained"
        return skipped(name, f"{why}, so there is no attack to have overfitted to")
    unknown = "" if context.subject.trained is not None else " (training unknown: one step in its place)"
    advice = "train with more steps, or with a random start and smaller steps; never quote the training attack's accuracy"
    return _criterion(name, criterion, f"{criterion.what}{unknown}", advice, "beyond the training attack", "points")


def one_step_beats_many(context: MaskingAttacks) -> Check:
    """FGSM breaks more images than PGD of the same eps does."""
    test = _paired(context.by_gradients, context.by_one_step)
    found = f"FGSM leaves {_percent(context.by_one_step)}, PGD {_percent(context.by_gradients)}"
    evidence = f"{found} ({_bounds(test.ci_low, test.ci_high)})"
    advice = "PGD gets stuck: try other losses, step sizes and restarts before believing its accuracy"
    counts = {"images": test.n, "only FGSM breaks": test.only_a, "only PGD breaks": test.only_b}
    return threshold_check(
        "one step beats many", test.difference, 0, evidence, advice, counts=counts, unit="points", bound=test.ci_low
    )


def margin_loss_finds_more(context: MaskingAttacks) -> Check:
    """The same PGD on another loss breaks images that cross entropy misses: its gradient had vanished."""
    advice = 'cross entropy saturates here: attack with loss="margin" or "dlr" (vizrobust attack --attack \'APGD(loss="dlr")\')'
    return _newly("margin loss finds more", context, missed_by_loss(context), advice)


def black_box_beats_white_box(context: MaskingAttacks) -> Check:
    """Square, which sees only logits, breaks images that PGD misses."""
    criterion = missed_by_square(context)
    if criterion is None:
        return skipped("black box beats white box", f"Square has no windows for the {type(context.ball).__name__} ball")
    return _newly("black box beats white box", context, criterion, ADAPT)


def random_noise_finds_more(context: MaskingAttacks) -> Check:
    """Points drawn blindly in the ball break images that PGD misses."""
    return _newly("random noise finds more", context, missed_by_noise(context), ADAPT)


def transfer_finds_more(context: MaskingAttacks) -> Check:
    """Images made on another network break images that PGD on this one misses."""
    criterion = missed_by_transfer(context)
    if criterion is None:
        return skipped("transfer finds more", "needs a second network of the same data: --transfer-from REF")
    return _newly("transfer finds more", context, criterion, ADAPT)


def plain_cross_entropy_fails(context: MaskingAttacks) -> Check:
    """PGD on cross entropy as other tools compute it leaves images, for it has no slope (Carlini & Wagner 2017, section V)."""
    name, criterion = "plain cross entropy fails", left_by_plain_loss(context)
    if criterion is None:
        return skipped(name, "plain cross entropy has a slope at all images that were looked at")
    evidence = (
        f"PGD on plain cross entropy, as other tools run it, leaves {_percent(context.by_plain_loss | context.by_gradients)} "
        f"and PGD here {_percent(context.by_gradients)}"
    )
    advice = "the logits are too far apart (distillation does that): divide them, or attack the margin or DLR loss"
    return _criterion(name, criterion, evidence, advice, "left by it alone", "points")


def unbounded_attack_fails(context: MaskingAttacks) -> Check:
    """PGD that may change every pixel at will leaves images (also indicator I6 of Pintor et al. 2022)."""
    criterion = left_over(context)
    left = _percent(context.by_unbounded)
    evidence = (
        f"PGD with every pixel free leaves {left}; none should be left, and guessing gets {100 * criterion.threshold:.1f} %"
    )
    advice = "the gradient does not lead out of the class at all: look for clamps, rounding or saturation in the forward pass"
    return _criterion("unbounded attack fails", criterion, evidence, advice, "left", "share")


def larger_eps_helps(context: MaskingAttacks) -> Check:
    """Accuracy rises with eps, for one step up to the evaluation eps or for PGD beyond it."""
    one_step = [(by, context.at(by, 0)) for by in EPS_STEPS]
    # Restarts can only break more, so one will do to see a rise.
    many = [(1.0, context.by_gradients), (BEYOND, context.at(BEYOND, context.effort.steps))]
    ladders = {"FGSM": one_step, "PGD": many}
    rises = [
        (_paired(above, below), attack, smaller, larger)
        for attack, rungs in ladders.items()
        for (smaller, below), (larger, above) in pairwise(rungs)
    ]
    test, attack, smaller, larger = max(rises, key=lambda rise: rise[0].ci_low)
    told = "; ".join(
        f"{attack} " + ", ".join(f"{_percent(alive)} at {by:g} eps" for by, alive in rungs) for attack, rungs in ladders.items()
    )
    told += f" ({attack} {smaller:g} to {larger:g}: {_bounds(test.ci_low, test.ci_high)})"
    where = f"{attack}, {smaller:g} to {larger:g} eps"
    advice = f"the network is weaker inside the ball than at its edge ({where}): attack at smaller eps too"
    counts = {"images": test.n, "broken only at the smaller eps": test.only_a, "broken only at the larger": test.only_b}
    return threshold_check("larger eps helps", test.difference, 0, told, advice, counts=counts, unit="points", bound=test.ci_low)


# These decide the verdict: each measures one of its criteria.
DECIDING: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check
    for check in (
        training_attack_gap, margin_loss_finds_more, black_box_beats_white_box, random_noise_finds_more,
        transfer_finds_more, plain_cross_entropy_fails, unbounded_attack_fails,
    )
}  # fmt: skip
ACCURACY_CHECKS: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check for check in (one_step_beats_many, larger_eps_helps)
}


def _newly(name: str, context: MaskingAttacks, criterion: Criterion | None, advice: str) -> Check:
    assert criterion is not None
    newly, restarts = round(criterion.value * criterion.n), max(context.effort.confirm_restarts, context.effort.restarts)
    return _criterion(
        name,
        criterion,
        f"of {criterion.n} images it breaks {newly} that PGD does not, with {restarts} restarts",
        advice,
        "newly broken",
        "points",
    )


def _criterion(name: str, criterion: Criterion, evidence: str, advice: str, counted: str, unit: Unit) -> Check:
    """A check that decides the verdict: its lower bound is what counts."""
    counts = {"images": criterion.n, counted: round(criterion.value * criterion.n)}
    evidence = f"{evidence} ({_bounds(max(0.0, criterion.low), criterion.high)})"
    return threshold_check(
        name, criterion.value, criterion.threshold, evidence, advice, counts=counts, unit=unit, bound=criterion.low
    )


def _paired(a: Tensor, b: Tensor) -> McNemar:
    return mcnemar(a, b, confidence=2 * CONFIDENCE - 1)


def _percent(alive: Tensor) -> str:
    return f"{100 * share(alive):.1f} %"


def _bounds(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
