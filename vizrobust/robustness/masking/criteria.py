"""The differences of accuracies that decide the verdict, measured on one network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from vizrobust.robustness.accuracy import share
from vizrobust.robustness.masking.context import Context
from vizrobust.robustness.masking.slopes import cross_entropy_underflow
from vizrobust.robustness.masking.verdict import Criterion, hiding, overfitting, unbounded, underflow


def training_gap(context: Context) -> Criterion | None:
    """How much more the attack of training leaves than the strongest one found; None for standard training."""
    under_training, attacks = context.by_training_attacks, " and ".join(map(repr, context.training_attacks))
    if under_training is None:
        return None
    found = context.by_everything
    fall = f"from {100 * share(under_training):.1f} % under {attacks} to {100 * share(found):.1f} % under the strongest attack"
    what = f"the fall {fall}"
    return replace(overfitting(under_training, context.by_gradients, found), what=what)


def missed(context: Context, verdicts: Tensor | None, by: str) -> Criterion | None:
    """The images that survive PGD, also with more restarts, and not another attack; None where that was not run."""
    if verdicts is None:
        return None
    return replace(hiding(context.by_retries, verdicts), what=f"the share that {by} breaks and PGD with cross entropy does not")


def missed_by_loss(context: Context) -> Criterion | None:
    return missed(context, context.by_margin, "the margin loss")


def missed_by_square(context: Context) -> Criterion | None:
    return missed(context, context.by_square, "Square (a search without gradients)")


def missed_by_noise(context: Context) -> Criterion | None:
    return missed(context, context.by_noise, "random noise")


def missed_by_transfer(context: Context) -> Criterion | None:
    return missed(context, context.by_transfer, f"transfer from {context.subject.source}")


def left_by_plain_loss(context: Context) -> Criterion | None:
    """What logits that are too far apart for plain cross entropy keep from other tools' attacks; None where there are none."""
    if not cross_entropy_underflow(context).value:
        return None
    what = "the share that PGD on plain cross entropy, as other tools run it, leaves and PGD here breaks"
    return replace(underflow(context.by_plain_loss, context.by_gradients), what=what)


def left_over(context: Context) -> Criterion:
    """What an attack leaves that may change every pixel at will."""
    what = "the share left by an attack that may change every pixel at will"
    return replace(unbounded(context.by_unbounded, context.classes), what=what)


def criteria(context: Context) -> Iterator[Criterion]:
    """All that apply to the network."""
    missed_by = (missed_by_loss, missed_by_square, missed_by_noise, missed_by_transfer)
    for measure in (training_gap, *missed_by, left_by_plain_loss, left_over):
        criterion = measure(context)
        if criterion is not None:
            yield criterion
