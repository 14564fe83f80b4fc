"""Accuracy while training goes on, on a slice of the validation images, and its collapse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vizrobust.attacks import FGSM, ISM, PGD, Attack, Linf, ball_of
from vizrobust.compute import Compute
from vizrobust.data import DataSet, first
from vizrobust.robustness import evaluate, gather, share
from vizrobust.spec import vary
from vizrobust.training.mix import Mix, members

WATCHED_STEPS = 10
# Robust accuracy has collapsed when it is so far below its best; Wong et al. (2020) stop at the same fall.
FALL = 0.2
# And it was never there when the training attack leaves so much more.
GAP = 0.3

Row = dict[str, Any]


def accuracies(net: nn.Module, attack: Attack | Mix | None, data: DataSet, compute: Compute, images: int) -> Row:
    """Clean and robust accuracy in evaluation mode and fp32, under what `watched` says; no random state is touched.

    Of several attacks the image must survive each; what each leaves by itself is ``val_robust_each``. Of a single attack by
    gradients ``val_attack`` is what it leaves itself: far above ``val_robust``, the network has learnt to fool it.
    """
    split, compute = first(data.val, images), compute.in_fp32()
    found = [gather(one, list(evaluate(net, one, split, compute))) for one in watched(attack, data.eps)]
    robust = torch.stack([one.robust for one in found])
    row: Row = {"val_clean": share(found[0].clean), "val_robust": share(robust.all(0))}
    if len(found) > 1:
        row["val_robust_each"] = [share(one) for one in robust]
    if isinstance(attack, FGSM | ISM | PGD):
        row["val_attack"] = share(gather(attack, list(evaluate(net, attack, split, compute))).robust)
    return row


def watched(attack: Attack | Mix | None, eps: float) -> tuple[Attack, ...]:
    """What is measured while training goes on: a short PGD in each attack's ball, or a short run of one without a ball.

    Standard training, and a ball without a radius, are watched in the L-inf ball of radius `eps`.
    """
    short = []
    for one in members(attack) or (PGD(),):
        ball = ball_of(one)
        if ball is None:
            short.append(vary(one, steps=WATCHED_STEPS))
        else:
            short.append(PGD(steps=WATCHED_STEPS, ball=ball if ball.eps is not None else Linf(eps=eps)))
    return tuple(dict.fromkeys(short))


def is_fooled(row: Row) -> bool:
    """Whether a network holds out against its training attack alone: 30 points or more above what a short PGD leaves.

    >>> is_fooled({"val_attack": 0.9, "val_robust": 0.1}), is_fooled({"val_robust": 0.1})
    (True, False)
    """
    return bool(round(row.get("val_attack", 0.0) - row["val_robust"], 6) >= GAP)


def collapse(rows: Sequence[Row]) -> Row | None:
    """Whether the last of these epochs is a catastrophic overfitting (Wong et al. 2020): what fell, or None.

    Robust accuracy is 20 points or more below its best epoch, and clean accuracy fell by less than half as much: where
    both fall, the learning rate was too high.

    >>> rows = [{"epoch": 1, "val_clean": 0.6, "val_robust": 0.4}, {"epoch": 2, "val_clean": 0.7, "val_robust": 0.05}]
    >>> collapse(rows)
    {'epoch': 2, 'best_epoch': 1, 'before': 0.4, 'after': 0.05}
    """
    *earlier, last = rows
    if not earlier:
        return None
    best = max(earlier, key=lambda row: float(row["val_robust"]))
    fall = round(best["val_robust"] - last["val_robust"], 6)
    if fall < FALL or best["val_clean"] - last["val_clean"] >= fall / 2:
        return None
    return {"epoch": last["epoch"], "best_epoch": best["epoch"], "before": best["val_robust"], "after": last["val_robust"]}
