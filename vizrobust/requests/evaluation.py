"""Requests of the commands that evaluate checkpoints: attack, masking, first-order, dimension, calibrate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import OnImages, ParameterError, Seeded, param
from vizrobust.spec import spec

CURVES = ("eps", "steps", "training-steps")
SUITES = ("unforeseen", "corruptions")
# The margin first: the shares that it gives can be believed, and its drops are drawn.
LOSSES = ("margin", "ce")
# A slope through two sizes has no interval that would say what it is worth.
FEWEST_SIDES = 3


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
    vizrobust attack mnist-k0 mnist-k8 --minimal --norm L2 --plot smallest.png
    vizrobust attack mnist-k0 mnist-k8 --curve eps --plot curve.png
    vizrobust attack mnist-k8 --suite unforeseen
    """

    attacks: tuple[Any, ...] = param(
        (), "fgsm, pgd, standard (AutoAttack) or a whole spec (vizrobust list attacks); several allowed [pgd].",
        kind="attack", role="grows", flag="--attack", metavar="SPEC",
    )  # fmt: skip
    steps: int | None = param(None, "Gradient steps, for attacks that have them.", role="grows")
    minimal: bool = param(
        False, "Each image's minimal perturbation: the smallest eps that changes its class; by default by a set of attacks.",
        role="view",
    )  # fmt: skip
    curve: str | None = param(
        None, "Accuracy over eps, over attack steps, or over training steps K.", role="view", choices=CURVES
    )
    suite: str | None = param(None, "Attacks that training has not used, or common corruptions.", role="view", choices=SUITES)
    calibration: str | None = param(
        None, "With --suite unforeseen: a run of vizrobust calibrate.", kind="folder", role="grows", metavar="DIR"
    )
    until_width: float | None = param(
        None, "Stop as soon as the 95 % interval is at most ± P points; --images is the most that are attacked.", role="view",
        metavar="P",
    )  # fmt: skip
    exact: bool = param(
        False, "Networks as they are; else, in fp32, BatchNorm is folded into the layer before it: equal up to rounding, faster."
    )
    per_class: bool = param(False, "Accuracy for each class, the worst first.", role="view")
    plot: str | None = param(
        None, "Draw the curve, or the minimal perturbations, to a .png, .svg or .pdf.", kind="figure", role="view"
    )
    show: str | None = param(None, "Draw clean image, perturbation and adversarial image.", kind="figure", role="view")

    save: str | None = param(
        None, "Keep adversarial images, labels and predictions in a .npz, which --data npz:FILE reads.", kind="file", role="view",
        metavar="FILE",
    )  # fmt: skip
    save_png: str | None = param(
        None, "Keep them as 8-bit PNGs inside the ball, and show the accuracy on those.", kind="file", role="view", metavar="DIR"
    )
    from_file: str | None = param(
        None, "No attack: judge the images of such a file, and name those outside the ball around the data set's.", kind="file",
        flag="--from", role="view", metavar="FILE",
    )  # fmt: skip

    def check(self) -> None:
        modes = [
            name
            for name, given in (
                ("{minimal}", self.minimal), (f"{{curve}} {self.curve}", self.curve), (f"{{suite}} {self.suite}", self.suite),
                ("{from_file}", self.from_file),
            )
            if given
        ]  # fmt: skip
        super().check()
        if len(modes) > 1:
            raise ParameterError(f"{' and '.join(modes)} answer different questions; give one of them")
        if self.suite == "corruptions" and self.attacks:
            raise ParameterError("{suite} corruptions has no attack; leave {attacks} out")
        if (self.per_class or self.show) and modes and self.curve != "steps":
            raise ParameterError(f"{{per_class}} and {{show}} go with plain accuracies, not with {modes[0]}")
        if self.until_width is not None:
            if modes:
                raise ParameterError(f"{{until_width}} goes with plain accuracies, not with {modes[0]}")
            if not 0 < self.until_width < 50:
                raise ParameterError("{until_width} must be more than 0 and less than 50 points, got %g", self.until_width)
        if self.save or self.save_png:
            if modes:
                raise ParameterError(f"{{save}} and {{save_png}} go with plain accuracies, not with {modes[0]}")
            if len(self.models) > 1 or len(self.attacks) > 1:
                raise ParameterError("{save} and {save_png} keep the images of one checkpoint under one attack; give one of each")
        if self.from_file and (self.attacks or self.plot):
            raise ParameterError("{from_file} judges images as they are; leave {attacks} and {plot} out")
        if self.plot and not modes:
            raise ParameterError(
                "{plot} needs something to draw: {curve} eps, {curve} steps, {curve} training-steps or {minimal}"
            )

    @property
    def every_step(self) -> bool:
        """Whether all runs of an attack see all images, as a curve over attack steps needs."""
        return self.curve == "steps"


@spec
@dataclass(frozen=True, kw_only=True)
class MaskingRequest(OnImages):
    """Say whether checkpoints mask their gradients: checks with their evidence, and a verdict in one sentence.

    Where the first images leave the verdict undecided, more are taken. The exit code is 0 if all are sound (also those
    that are not robust), 3 if any is masked, and 4 if none is but some are undecided. Attacks already run are kept in the
    run folder.

    \b
    vizrobust masking mnist-k0 mnist-k1 mnist-k8
    vizrobust masking mnist-k8 --images 1000 --transfer-from mnist-k4
    vizrobust masking theirs.safetensors --eps 8/255 --trained-with 'PGD(steps=10)' --json
    """

    images: int = param(500, "Use the first N images of the split.", role="grows", least=1)
    most_images: int | None = param(
        None, "Where the verdict depends on it, take up to N images; default: five times as many as --images.", role="grows",
        least=1,
    )  # fmt: skip
    eps: float | None = param(
        None, "Radius of the ball; default: that of training, else the data set's.", kind="fraction", role="grows"
    )
    transfer_from: str | None = param(None, "Transfer attacks from this checkpoint too.", kind="model", role="grows")
    trained_with: Any = param(
        None, "The training attack of checkpoints that do not record it.", kind="attack", role="grows", metavar="SPEC|none"
    )
    effort: Any = param(
        None,
        "How hard attacks try "
        "[AttackBudget(steps=50, restarts=3, confirm_restarts=10, queries=1000, noise_samples=100, probes=100, "
        "decision_images=50)].",
        role="grows", metavar="SPEC",
    )  # fmt: skip
    thorough: bool = param(False, "The standard ensemble (AutoAttack) counts among the attacks; slow.", role="grows")

    def check(self) -> None:
        super().check()
        if self.most_images is not None and self.most_images < self.images:
            raise ParameterError("{most_images} %s is less than {images} %s; leave it out", self.most_images, self.images)


class OfLosses:
    """What requests with a `loss` share, which ``both`` may stand for."""

    loss: str

    @property
    def losses(self) -> tuple[str, ...]:
        return LOSSES if self.loss == "both" else (self.loss,)


@spec
@dataclass(frozen=True, kw_only=True)
class FirstOrderRequest(OfLosses, OnImages):
    """Compare the drop that the gradient promises, eps times its dual norm, with the drops under FGSM and PGD.

    A network that has overfitted to one-step attacks, or whose gradient hides attacks, shows itself here in seconds;
    `vizrobust masking` then gives a verdict.

    \b
    vizrobust first-order mnist-k0 mnist-k1 mnist-k8
    vizrobust first-order mnist-k1 mnist-k8 --loss margin --plot drops.png
    vizrobust first-order mnist-k8 --norm L2 --eps 2 --images 200
    """

    steps: int = param(20, "Steps of PGD.", least=1)
    loss: str = param("both", "The loss whose drops are measured.", choices=(*LOSSES, "both"), role="view")
    plot: str | None = param(None, "Draw each image's drops to a .png, .svg or .pdf.", kind="figure", role="view")

    def check(self) -> None:
        super().check()
        if self.eps == 0:
            raise ParameterError("{eps} 0 leaves nothing to attack; give a positive radius")


@spec
@dataclass(frozen=True, kw_only=True)
class Experiment(Seeded):
    """A request that trains networks in order to measure."""

    data: Any = param(kind="data", help="Data set (vizrobust list data).")
    arch: str = param("small_cnn", "Architecture (vizrobust list archs), or path/to/file.py:callable.", metavar="REF")
    epochs: int = param(8, "Of each training.")
    batch_size: int = param(100, "Images in a training batch.")
    lr: float = param(2e-3, "Peak of the one-cycle learning rate.")


@spec
@dataclass(frozen=True, kw_only=True)
class DimensionRequest(OfLosses, Experiment):
    """Train one network at several image sizes and print how the L1 norm of its gradient grows with d, their pixels.

    The lecture's argument for adversarial examples: the drop that an L-inf step of eps promises is eps times this norm,
    and it grows as sqrt(d). Smaller images are means over areas, larger ones repeat pixels. The same command goes on
    where it stopped, also with more --sides or --seeds.

    \b
    vizrobust dimension --data mnist5k --sides 7,14,28,56 --plot growth.png --out runs/dimension
    vizrobust dimension --data mnist5k --sides 7,14,28 --seeds 5 --steps 8 --epochs 20 --out runs/dimension-k8
    """

    sides: tuple[int, ...] = param(kind="sides", help="Shorter sides in pixels, e.g. 7,14,28,56.", role="grows", metavar="LIST")
    seeds: int = param(3, "Networks at each size.", role="grows", least=1)
    steps: int = param(0, "K: attack steps for each training example; 0: standard training.")
    eps: float | None = param(None, "Radius of training's attack, with --steps; default: the data set's.", kind="fraction")
    images: int = param(1000, "Gradients at the first N test images.", least=1)
    loss: str = param("both", "The loss whose gradient is taken.", choices=(*LOSSES, "both"), role="view")
    plot: str | None = param(None, "Draw the growth to a .png, .svg or .pdf.", kind="figure", role="view")

    def check(self) -> None:
        if self.steps < 0 or (self.steps == 0 and self.eps is not None):
            raise ParameterError(
                "{steps} %s with {eps} %s: training against an attack needs {steps} of at least 1", self.steps, self.eps
            )
        if len(set(self.sides)) < FEWEST_SIDES:
            raise ParameterError(
                "{sides} has %s different sides; a slope with an interval needs %s or more", len(set(self.sides)), FEWEST_SIDES
            )


@spec
@dataclass(frozen=True, kw_only=True)
class CalibrateRequest(Experiment):
    """Calibrate UAR: train a network against every attack at every size, and find six sizes that are equally hard.

    The result is a file for each attack in the run folder; an interrupted run goes on where it stopped.

    \b
    vizrobust calibrate --data mnist5k --attack L2 --attack L1 --attack Elastic --attack JPEG --out runs/uar
    vizrobust calibrate --data cifar10 --arch resnet18 --steps 10 --epochs 30 --attack 'L2(eps=10)' --out runs/uar
    """

    attacks: tuple[Any, ...] = param(
        kind="attack", flag="--attack", metavar="SPEC", role="grows",
        help="A norm (L2) or an attack (Elastic); with eps, as in 'L2(eps=8)', that is the largest candidate.",
    )  # fmt: skip
    anchor: Any = param("Linf", "The attack whose six sizes the others match.", kind="attack", metavar="SPEC")
    steps: int = param(5, "K: attack steps in training; UAR takes 10.", least=1)
    eps_ramp: int | None = param(None, "Epochs over which eps rises from 0; default: half of them.")
    candidates: int = param(7, "Radii per attack, each twice the one before; six are chosen.")
    test_steps: int = param(50, "Attack steps in testing; UAR takes 200.", least=1)
    images: int = param(500, "Test on the first N test images.", least=1)
