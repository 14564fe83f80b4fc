"""Checks on accuracies (Athalye et al. 2018, section 3.1), and the criteria that decide the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

from torch import Tensor

from vizrobust.intervals import CONFIDENCE, McNemar, mcnemar, share
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.findings import (
    Check,
    Criterion,
    Unit,
    hiding,
    overfitting,
    skipped,
    threshold_check,
    unbounded,
    underflow,
)
from vizrobust.robustness.masking.gradient_checks import cross_entropy_underflow

# No check looks at more images than the others.
NOTHING: Mapping[str, MaskingAttacks] = MappingProxyType({})


def training_gap(attacks: MaskingAttacks) -> Criterion | None:
    """How many more images survive the attack of training than the strongest one found; None for standard training."""
    under_training, trained = attacks.survives.get("training attacks"), " and ".join(map(repr, attacks.training_attacks))
    if under_training is None:
        return None
    found = attacks.survives["all"]
    # Where outputs are not finite nobody can say who survives, on either side.
    under_training, under_pgd = under_training & ~attacks.undefined, attacks.survives["pgd"] & ~attacks.undefined
    fall = f"from {100 * share(under_training):.1f} % under {trained} to {100 * share(found):.1f} % under the strongest attack"
    what = f"the fall {fall}"
    return replace(overfitting(under_training, under_pgd, found, attacks.confidence), what=what)


# Attacks that could find what PGD misses, in words.
OTHERS = {
    "margin loss": "the margin loss",
    "square": "Square (a search without gradients)",
    "noise": "random noise",
    "transfer": "transfer from {source}",
    "hopskipjump": "HopSkipJump (a search that sees predicted classes alone)",
}


def missed(attacks: MaskingAttacks, name: str, first: int | None = None) -> Criterion | None:
    """Those of the `first` images (None: of all) that survive PGD, also with more restarts, and not attack `name`.

    None where it does not apply.
    """
    survivors = attacks.survives.get(name)
    if survivors is None:
        return None
    by = OTHERS[name].format(source=attacks.network.source)
    criterion = hiding(attacks.survives["pgd, more restarts"][:first], survivors[:first], attacks.confidence)
    return replace(criterion, what=f"the share that {by} breaks and PGD with cross entropy does not")


def missed_by_decisions(attacks: MaskingAttacks) -> Criterion | None:
    """As `missed`, of HopSkipJump on the few images that it meets."""
    return missed(attacks, "hopskipjump", attacks.budget.decision_images)


def only_if_above(criterion: Criterion | None) -> Criterion | None:
    """A criterion of so few images that it can show masking and not rule it out: it counts only where it is above its limit."""
    return criterion if criterion is not None and criterion.side == "above" else None


def left_by_plain_loss(attacks: MaskingAttacks) -> Criterion | None:
    """The images that other tools' attacks miss because plain cross entropy has no slope; None where it has one everywhere."""
    if not cross_entropy_underflow(attacks).value:
        return None
    what = "the share that PGD on plain cross entropy, as other tools run it, leaves and PGD here breaks"
    criterion = underflow(attacks.survives["plain loss"], attacks.survives["pgd"], attacks.confidence)
    return replace(criterion, what=what)


def left_over(attacks: MaskingAttacks) -> Criterion:
    """The images that survive an attack which may change every pixel at will."""
    what = "the share left by an attack that may change every pixel at will"
    return replace(unbounded(attacks.survives["unbounded"], attacks.classes, attacks.confidence), what=what)


def criteria(attacks: MaskingAttacks, extended: Mapping[str, MaskingAttacks] = NOTHING) -> dict[str, Criterion]:
    """All that apply to the network, by the name of their check; those of `extended` on its attacks, of more images."""
    measured = {name: criterion(extended.get(name, attacks)) for name, criterion in CRITERIA.items()}
    return {name: criterion for name, criterion in measured.items() if criterion is not None}


# Shares of eps at which one step should succeed less often than at the whole eps (Kim et al. 2021: networks that
# overfit to one step are weaker *inside* the ball than at its edge).
EPS_STEPS = (0.25, 0.5, 0.75, 1.0)
BEYOND = 2.0
ADAPT = "attack it on the margin loss and with Square, set {thorough}, and quote the worst case only"


def training_attack_gap(attacks: MaskingAttacks) -> Check:
    """Accuracy under the attack of training minus that under the strongest attack found."""
    name, criterion = "training attack beaten", training_gap(attacks)
    if criterion is None:
        seen = ", ".join(map(repr, attacks.network.trained or ()))
        why = f"trained against {seen}, which has no ball or searches for nothing" if seen else "not adversarially trained"
        return skipped(name, f"{why}, so there is no attack to have overfitted to")
    unknown = "" if attacks.network.trained is not None else " (training unknown: FGSM takes its place)"
    advice = "train with more steps, or with a random start and smaller steps; never quote the training attack's accuracy"
    return _criterion(name, criterion, f"{criterion.what}{unknown}", advice, "beyond the training attack", "points")


def one_step_beats_many(attacks: MaskingAttacks) -> Check:
    """FGSM breaks more images than PGD of the same eps does."""
    test = _paired(attacks.survives["pgd"], attacks.survives["fgsm"])
    found = f"FGSM leaves {_percent(attacks.survives['fgsm'])}, PGD {_percent(attacks.survives['pgd'])}"
    evidence = f"{found} ({_bounds(test.ci_low, test.ci_high)})"
    advice = "PGD gets stuck: try other losses, step sizes and restarts before believing its accuracy"
    counts = {"images": test.n, "only FGSM breaks": test.only_a, "only PGD breaks": test.only_b}
    return threshold_check(
        "one step beats many", test.difference, 0, evidence, advice, counts=counts, unit="points", bound=test.ci_low
    )


def margin_loss_finds_more(attacks: MaskingAttacks) -> Check:
    """The same PGD on another loss breaks images that cross entropy misses: its gradient had vanished."""
    advice = "cross entropy saturates here: attack on the margin or the DLR loss, such as {attack} 'APGD(loss=\"dlr\")'"
    return _newly("margin loss finds more", attacks, missed(attacks, "margin loss"), advice)


def black_box_beats_white_box(attacks: MaskingAttacks) -> Check:
    """Square, which sees only logits, breaks images that PGD misses."""
    criterion = missed(attacks, "square")
    if criterion is None:
        return skipped("black box beats white box", f"Square has no perturbations for the {type(attacks.ball).__name__} ball")
    return _newly("black box beats white box", attacks, criterion, ADAPT)


def random_noise_finds_more(attacks: MaskingAttacks) -> Check:
    """Random points of the ball are misclassified on images where PGD finds nothing."""
    return _newly("random noise finds more", attacks, missed(attacks, "noise"), ADAPT)


def transfer_finds_more(attacks: MaskingAttacks) -> Check:
    """Images made on another network break images that PGD on this one misses."""
    criterion = missed(attacks, "transfer")
    if criterion is None:
        return skipped("transfer finds more", "it needs a second network of the same data set", "name one with {transfer_from}")
    return _newly("transfer finds more", attacks, criterion, ADAPT)


def decision_attack_finds_more(attacks: MaskingAttacks) -> Check:
    """HopSkipJump, which sees predicted classes alone, breaks images that PGD misses; it attacks too few to rule that out."""
    name, criterion = "decision attack finds more", missed_by_decisions(attacks)
    if criterion is None:
        ball = type(attacks.ball).__name__
        given = f"HopSkipJump does not know the {ball} ball" if attacks.budget.decision_images else "HopSkipJump meets no images"
        return skipped(name, given)
    return _newly(name, attacks, criterion, ADAPT)


def plain_cross_entropy_fails(attacks: MaskingAttacks) -> Check:
    """PGD on cross entropy as other tools compute it leaves images, for it has no slope (Carlini & Wagner 2017, section V)."""
    name, criterion = "plain cross entropy fails", left_by_plain_loss(attacks)
    if criterion is None:
        return skipped(name, "plain cross entropy has a slope at all images that were looked at")
    under_pgd = attacks.survives["pgd"]
    left = _percent(attacks.survives["plain loss"] | under_pgd)
    evidence = f"PGD on plain cross entropy, as other tools run it, leaves {left} and PGD here {_percent(under_pgd)}"
    advice = "the logits are too far apart (distillation does that): divide them, or attack the margin or DLR loss"
    return _criterion(name, criterion, evidence, advice, "left by it alone", "points")


def unbounded_attack_fails(attacks: MaskingAttacks) -> Check:
    """PGD that may change every pixel at will leaves images (also indicator I6 of Pintor et al. 2022)."""
    criterion = left_over(attacks)
    left = _percent(attacks.survives["unbounded"])
    evidence = (
        f"PGD with every pixel free leaves {left}; none should be left, and guessing gets {100 * criterion.threshold:.1f} %"
    )
    advice = "the gradient never leads out of the class: look for clamps, rounding or saturation in the forward pass"
    return _criterion("unbounded attack fails", criterion, evidence, advice, "left", "share")


def larger_eps_helps(attacks: MaskingAttacks) -> Check:
    """Accuracy rises with eps, for one step up to the evaluation eps or for PGD beyond it."""
    one_step = [(by, attacks.at(by, 0)) for by in EPS_STEPS]
    # Restarts can only break more, so one will do to see a rise.
    many = [(1.0, attacks.survives["pgd"]), (BEYOND, attacks.at(BEYOND, attacks.budget.steps))]
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


# What each of the checks that decide the verdict measures, and the attack after which PGD meets images again.
CRITERIA: dict[str, Callable[[MaskingAttacks], Criterion | None]] = {
    "training_attack_gap": training_gap,
    "margin_loss_finds_more": lambda attacks: missed(attacks, "margin loss"),
    "black_box_beats_white_box": lambda attacks: missed(attacks, "square"),
    "random_noise_finds_more": lambda attacks: missed(attacks, "noise"),
    "transfer_finds_more": lambda attacks: missed(attacks, "transfer"),
    "decision_attack_finds_more": lambda attacks: only_if_above(missed_by_decisions(attacks)),
    "plain_cross_entropy_fails": left_by_plain_loss,
    "unbounded_attack_fails": left_over,
}
CLAIMS = {
    "margin_loss_finds_more": "margin loss", "black_box_beats_white_box": "square", "random_noise_finds_more": "noise",
    "transfer_finds_more": "transfer", "decision_attack_finds_more": "hopskipjump",
}  # fmt: skip


def claims_of(checks: Iterable[str]) -> tuple[str, ...]:
    """The attacks whose success PGD must be given a second chance against, for these checks; all for the training gap.

    >>> claims_of(["random_noise_finds_more", "unbounded_attack_fails"])
    ('noise',)
    """
    wanted = set(checks)
    return tuple(claim for check, claim in CLAIMS.items() if check in wanted or "training_attack_gap" in wanted)


# These decide the verdict: each measures one of its criteria.
DECIDING: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check
    for check in (
        training_attack_gap, margin_loss_finds_more, black_box_beats_white_box, random_noise_finds_more,
        transfer_finds_more, decision_attack_finds_more, plain_cross_entropy_fails, unbounded_attack_fails,
    )
}  # fmt: skip
ACCURACY_CHECKS: dict[str, Callable[[MaskingAttacks], Check]] = {
    check.__name__: check for check in (one_step_beats_many, larger_eps_helps)
}


def _newly(name: str, attacks: MaskingAttacks, criterion: Criterion | None, advice: str) -> Check:
    assert criterion is not None
    newly, restarts = round(criterion.value * criterion.n), max(attacks.budget.confirm_restarts, attacks.budget.restarts)
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
