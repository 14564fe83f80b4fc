"""Requests of the commands that evaluate checkpoints: attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import OnImages, ParameterError, param
from vizrobust.spec import spec

CURVES = ("eps", "steps", "training-steps")
SUITES = ("unforeseen", "corruptions")


@spec
@dataclass(frozen=True, kw_only=True)
class AttackRequest(OnImages):
    """Attack checkpoints and report their accuracy with Wilson 95 % intervals.

    An image counts as robust if the network is right on it unchanged and at every point that the attack visits. Images
    that are no longer robust leave the batch. Verdicts are kept in the run folder: an interrupted evaluation continues
    where it stopped.

    \b
    vizrobust attack mnist-k8 runs/k8 --attack fgsm --attack bim --attack pgd --steps 40 --eps 0.3
    vizrobust attack mnist-k8 --attack standard --images 200
    vizrobust attack mnist-k0 mnist-k8 --minimal --plot smallest.png
    vizrobust attack mnist-k0 mnist-k8 --curve eps --plot curve.png
    vizrobust attack mnist-k8 --suite unforeseen
    """

    attacks: tuple[Any, ...] = param(
        (), "fgsm, pgd, standard (AutoAttack) or a whole spec (vizrobust list attacks); several allowed [pgd].",
        kind="attack", role="grows", flag="--attack", metavar="SPEC",
    )  # fmt: skip
    steps: int | None = param(None, "Gradient steps, for attacks that have them.", role="grows")
    minimal: bool = param(False, "Each image's minimal perturbation: the smallest eps that changes its class.", role="view")
    curve: str | None = param(
        None, "Accuracy over eps, over attack steps, or over training steps K.", role="view", choices=CURVES
    )
    suite: str | None = param(None, "Attacks that training has not used, or common corruptions.", role="view", choices=SUITES)
    calibration: str | None = param(
        None, "With --suite unforeseen: a run of vizrobust calibrate.", kind="folder", role="grows", metavar="DIR"
    )
    per_class: bool = param(False, "Accuracy for each class, the worst first.", role="view")
    plot: str | None = param(
        None, "Draw the curve, or the minimal perturbations, to a .png, .svg or .pdf.", kind="file", role="view", metavar="FILE"
    )
    show: str | None = param(
        None, "Draw clean image, perturbation and adversarial image.", kind="file", role="view", metavar="FILE"
    )

    def check(self) -> None:
        modes = [
            name
            for name, given in (
                ("{minimal}", self.minimal), (f"{{curve}} {self.curve}", self.curve), (f"{{suite}} {self.suite}", self.suite),
            )
            if given
        ]  # fmt: skip
        if not self.models:
            raise ParameterError("{models} is empty; give at least one checkpoint")
        if len(modes) > 1:
            raise ParameterError(f"{' and '.join(modes)} answer different questions; give one of them")
        if self.suite == "corruptions" and self.attacks:
            raise ParameterError("{suite} corruptions has no attack; leave {attacks} out")
        if (self.per_class or self.show) and modes and self.curve != "steps":
            raise ParameterError(f"{{per_class}} and {{show}} go with plain accuracies, not with {modes[0]}")
        if self.plot and not modes:
            raise ParameterError(
                "{plot} needs something to draw: {curve} eps, {curve} steps, {curve} training-steps or {minimal}"
            )

    @property
    def every_step(self) -> bool:
        """Whether all runs of an attack see all images, as a curve over attack steps needs."""
        return self.curve == "steps"
