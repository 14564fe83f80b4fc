"""First-order analysis: the drop that the gradient at an image promises against the drop that attacks really cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.attacks import FGSM, PGD, AttackResult, Ball, epsilon
from vizrobust.attacks.attack import input_gradient as finite_gradient
from vizrobust.attacks.attack import is_finite
from vizrobust.attacks.losses import LOSSES
from vizrobust.attacks.threat_models import dual_norm
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.intervals import wilson
from vizrobust.models import evaluating
from vizrobust.models.forward import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.evaluation import BATCH_SIZE
from vizrobust.spec import lookup

STEPS = 20
# A function that is linear over the ball never drops by more than the prediction, so 1 is the bound of a sound
# network without curvature. Twice as much means that on its path PGD met slopes at least twice as steep, on average,
# as the gradient admitted at the image. On the built-in sweep (margin loss, eps 0.05 to 0.3) no image reaches it.
UNDERESTIMATED_BEYOND = 2.0
# FGSM's own step is a straight line along the gradient: with less than half of what the gradient promised there,
# the slope has on average at least halved, and did so in the one direction that one-step training looks at.
FALLS_SHORT_BELOW = 0.5


@dataclass(frozen=True)
class FirstOrder:
    """Drops of n images that are classified correctly, in units of the loss: nats of log p ("ce") or logits ("margin").

    `first_order_drop` is eps times the dual norm of the gradient (for L-inf eps * sum |g_j|, the lecture's formula): the most
    that a linear function could lose in the ball. `linear` is what it would lose at FGSM's point, which is less, as
    pixels end at 0 and 1. `fgsm` and `pgd` are the drops at FGSM's point and at PGD's best one. `image` (n,) holds the
    indices of these images in the split; `n_all` counts the misclassified ones too. `undefined` (n,) bool are the images
    with outputs that are not finite at some point; such a point shows no drop.
    """

    ball: Ball
    loss: str
    steps: int
    n_all: int
    image: Tensor
    first_order_drop: Tensor
    linear: Tensor
    fgsm: Tensor
    pgd: Tensor
    undefined: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def gradient_underestimates(self) -> Tensor:
        """(n,) bool: PGD's drop is more than `UNDERESTIMATED_BEYOND` times the prediction, so the gradient hid it.

        Read it with the margin loss: cross entropy is flat where a network is confident, so with it every confident
        network looks masked.
        """
        return self.pgd > UNDERESTIMATED_BEYOND * self.first_order_drop

    @property
    def fgsm_falls_short(self) -> Tensor:
        """(n,) bool: FGSM's drop is below `FALLS_SHORT_BELOW` of what the gradient promised, though PGD's is not.

        This is the sign of overfitting to one-step attacks: the loss follows the gradient elsewhere, but not along one step.
        """
        promised = FALLS_SHORT_BELOW * self.linear
        return (self.fgsm < promised) & (self.pgd >= promised)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row an image: ``image, first_order_drop, linear, fgsm, pgd``."""
        names = ("image", "predicted", "linear", "fgsm", "pgd")
        columns = (self.image, self.first_order_drop, self.linear, self.fgsm, self.pgd)
        for values in zip(*(column.tolist() for column in columns), strict=True):
            yield dict(zip(names, values, strict=True))

    def summary(self) -> dict[str, Any]:
        """Medians of the drops and of their ratios, rank correlations with the prediction, and the two shares.

        A ratio or a correlation is None where it is not defined (no gradient at all, every image alike).
        """
        return {
            "loss": self.loss,
            "norm": type(self.ball).__name__,
            "eps": self.ball.eps,
            "steps": self.steps,
            "n": len(self),
            "n_all": self.n_all,
            "undefined": 0 if self.undefined is None else int(self.undefined.sum()),
            "predicted": _median(self.first_order_drop),
            **{name: _median(getattr(self, name)) for name in ("linear", "fgsm", "pgd")},
            "fgsm_over_linear": _median_ratio(self.fgsm, self.linear),
            "pgd_over_predicted": _median_ratio(self.pgd, self.first_order_drop),
            "fgsm_over_pgd": _median_ratio(self.fgsm, self.pgd),
            "rank_fgsm": _rank_correlation(self.first_order_drop, self.fgsm),
            "rank_pgd": _rank_correlation(self.first_order_drop, self.pgd),
            **_counted("hidden", self.gradient_underestimates),
            **_counted("short", self.fgsm_falls_short),
            "no_gradient": float((self.first_order_drop == 0).double().mean()),
        }


def first_order(
    net: nn.Module,
    images: Split,
    ball: Ball,
    compute: Compute,
    loss: str = "margin",
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> FirstOrder:
    """Predicted and real drops of the correctly classified images of a split (Steinhardt's lecture notes, §27.4).

    `loss` is "margin" or "ce", used for the gradient, for both attacks and for the drops: with "ce" the drops are those
    of log p(true class). One gradient, one FGSM and one PGD of `steps` steps an image. Raises ``ValueError`` where the
    network classifies no image correctly.

    >>> from vizrobust.attacks import Linf
    >>> from vizrobust.compute import Compute
    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.tensor([0.9, 0.1, 0.6, 0.5]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> found = first_order(nn.Flatten(), images, Linf(eps=0.1), Compute("cpu"))
    >>> found.first_order_drop.tolist(), found.pgd.round(decimals=4).tolist()
    ([0.2, 0.2], [0.2, 0.2])
    """
    lookup(LOSSES, loss, "loss")
    network = PerImageNoise(compute.place(net))
    parts = []
    for index, count in full_batches(len(images), batch_size):
        x, y = compute.images(images.take(index)), images.labels[index].to(compute.device)
        streams = Streams(seed, index.tolist(), "first order")
        network.noise_from(partial(streams.child, "noise of the network"))
        with compute.autocast(), seeded(seed, compute.device):
            drops = _drops(network, x, y, ball, streams, loss, steps)
        parts.append({name: value[:count].cpu() for name, value in {"image": index, **drops}.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    correct = whole.pop("correct", torch.zeros(0, dtype=torch.bool))
    if not correct.any():
        raise ValueError(f"the network classifies none of the {len(correct)} images correctly, so there is no drop to predict")
    return FirstOrder(ball, loss, steps, len(correct), **{name: value[correct] for name, value in whole.items()})


def input_gradient(net: nn.Module, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each image is classified correctly (N,), its loss (N,), and the loss's gradient (N, C, H, W).

    Images whose outputs are not finite are not classified correctly; gradient entries that are not finite are 0.
    """
    with evaluating(net):
        point = x.detach().requires_grad_()
        logits = net(point)
        value = lookup(LOSSES, loss, "loss")(logits, y)
        gradient = finite_gradient(value, point)
    return (logits.argmax(1) == y) & is_finite(logits), value.detach(), gradient


def _drops(net: nn.Module, x: Tensor, y: Tensor, ball: Ball, streams: Streams, loss: str, steps: int) -> dict[str, Tensor]:
    correct, before, gradient = input_gradient(net, x, y, loss)
    one = FGSM(ball=ball, loss=loss)(net, x, y, streams=streams.child("fgsm"))
    many = PGD(steps=steps, ball=ball, loss=loss)(net, x, y, streams=streams.child("pgd"))
    straight = (_exact(gradient) * _exact(one.x - x)).flatten(1).sum(1)
    return {
        "correct": correct,
        "first_order_drop": epsilon(ball) * dual_norm(ball, _exact(gradient)),
        "linear": straight,
        # A point whose outputs are not finite shows no drop.
        "undefined": _undefined(one) | _undefined(many),
        "fgsm": (_losses(one)[-1] - _exact(before)).nan_to_num(0.0, 0.0, 0.0),
        "pgd": (_losses(many).amax(0) - _exact(before)).nan_to_num(0.0, 0.0, 0.0),
    }


def _losses(found: AttackResult) -> Tensor:
    """(steps + 1, N): the loss at each point that an attack met."""
    if found.loss is None:
        raise ValueError("the attack returned no losses")
    return _exact(found.loss)


def _undefined(found: AttackResult) -> Tensor:
    """(N,) bool: outputs at some point that an attack met are not finite."""
    if found.undefined is None:
        raise ValueError("the attack returned no verdicts")
    return found.undefined.cpu()


def _exact(values: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has it."""
    return values.cpu().to(torch.float64)


def _median(values: Tensor) -> float:
    return float(values.quantile(0.5))


def _median_ratio(of: Tensor, to: Tensor) -> float | None:
    there = to > 0
    return _median(of[there] / to[there]) if there.any() else None


def _rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's."""
    from scipy.stats import spearmanr

    if len(a) < 3 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def _counted(name: str, hits: Tensor) -> dict[str, float]:
    low, high = wilson(int(hits.sum()), len(hits))
    return {name: float(hits.double().mean()), f"{name}_ci_low": low, f"{name}_ci_high": high}
