"""Training methods: how one batch becomes weight steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import FGSM, PGD, Attack, Ball, ball_of, epsilon
from vizrobust.attacks.attack import input_gradient
from vizrobust.attacks.losses import kl, log_probabilities
from vizrobust.models import evaluating
from vizrobust.rng import Streams
from vizrobust.spec import named, spec, vary
from vizrobust.training.examples import MultiAttack
from vizrobust.training.train_state import StepResult, TrainState


class Fields(Protocol):
    """The fields of a recipe that methods look at."""

    @property
    def attack(self) -> Attack | MultiAttack | None: ...
    @property
    def clean_weight(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def compile(self) -> bool: ...


@runtime_checkable
class Method(Protocol):
    """A way to learn from a batch. It is frozen: what it keeps from batch to batch lives in the `TrainState`.

    `minibatch_replays` is how many weight steps it makes of each batch; `stages` how often it trains all epochs, each time a new
    network with the one before as its teacher. `default_attack` is the attack that it is meant for.
    """

    @property
    def minibatch_replays(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def default_attack(self) -> Attack | None: ...

    def check(self, fields: Fields) -> None:
        """``ValueError`` where the recipe's other fields and this method exclude each other."""

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        """Images (N, C, H, W), labels (N,) -> `minibatch_replays` weight steps; `attack` has this epoch's eps."""


def needs(method: object, fields: Fields, kind: type[Any], example: str) -> None:
    """``ValueError`` unless the recipe's attack is of this kind."""
    if not isinstance(fields.attack, kind):
        got = "none" if fields.attack is None else repr(fields.attack)
        raise ValueError(f"{type(method).__name__} needs a recipe whose attack is {example}, got {got}")


def excludes(method: object, fields: Fields, name: str, why: str) -> None:
    """``ValueError`` if the recipe sets the field called `name`, which this method has no use for."""
    value = getattr(fields, name)
    if value:
        raise ValueError(f"{type(method).__name__} and {name}={value} exclude each other: {why}; leave one of them out")


@dataclass(frozen=True)
class Adversarial:
    """Learn from the attack's examples: what a recipe without a `method` does."""

    minibatch_replays = stages = 1
    default_attack = None

    def check(self, fields: Fields) -> None:
        """Every recipe can be trained so."""

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        adv = state.attacked(attack, x, y, streams)
        return StepResult(adv, state.update(lambda net: state.mixed(net, x, adv, y)))


@spec
@dataclass(frozen=True)
class Distillation:
    """Two stages at `temperature` T: a teacher on the labels, then a new network on the teacher's probabilities.

    Used at temperature 1 the student's logits are T times as far apart as a softmax can tell, its cross entropy is flat
    and its gradient vanishes: FGSM and PGD on it fail, C&W does not (Carlini & Wagner 2017, section V).

    >>> Distillation(temperature=100.0)
    Distillation()
    """

    temperature: float = 100.0

    minibatch_replays = 1
    stages = 2
    default_attack = None

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"Distillation: temperature must be positive, got {self.temperature:g}")

    def check(self, fields: Fields) -> None:
        for name in ("attack", "clean_weight"):
            excludes(self, fields, name, "distillation learns from the clean images alone")
        excludes(self, fields, "label_smoothing", "the student has no labels to smooth")

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        truth = y
        if state.teacher is not None:
            with torch.no_grad(), state.compute.autocast():
                truth = (state.teacher(x).float() / self.temperature).softmax(1)

        def loss(net: nn.Module) -> Tensor:
            return F.cross_entropy(net(x) / self.temperature, truth)

        return StepResult(x, state.update(loss))


@spec
@dataclass(frozen=True)
class Free:
    """Each batch is learnt from `replays` times; the perturbation takes an FGSM step each time (algorithm 1).

    It goes on from one batch to the next, as in the paper. An epoch is `replays` weight steps a batch, so divide the
    epochs by `replays` to compare at equal cost. BatchNorm sees each replay, for each is a weight step of its own.

    >>> Free(replays=4)
    Free(replays=4)
    """

    replays: int = 8

    stages = 1
    default_attack = FGSM()

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"Free: replays must be at least 1, got {self.replays}")

    @property
    def minibatch_replays(self) -> int:
        return self.replays

    def check(self, fields: Fields) -> None:
        needs(self, fields, FGSM, "FGSM()")
        excludes(self, fields, "clean_weight", "every gradient of its pass is at the perturbed images")

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        assert isinstance(attack, FGSM)
        ball, eps, persistent_delta = attack.ball, epsilon(attack.ball), _persistent_delta(state, x)
        losses = []
        for _ in range(self.replays):
            adv = ball.project_image(x, x + persistent_delta[: len(x)]).requires_grad_()
            losses.append(state.update(lambda net, adv=adv: state.cross_entropy(net(adv), y)))  # type: ignore[misc]
            grad, adv = adv.grad, adv.detach()
            assert grad is not None
            direction = ball.steepest_direction(grad.nan_to_num(0.0, 0.0, 0.0), adv)
            persistent_delta[: len(x)] = ball.project(adv - x + eps * direction)
        return StepResult(adv, torch.stack(losses).mean())


def _persistent_delta(state: TrainState, x: Tensor) -> Tensor:
    """The perturbation that the state carries, with a slot for every image of `x`; new slots begin at 0."""
    old = state.persistent_delta
    if old is None or old.shape[1:] != x.shape[1:]:
        old = x[:0]
    if len(old) < len(x):
        state.persistent_delta = old = torch.cat((old, torch.zeros_like(x[len(old) :])))
    return old


# Gradients of a network that is sure of its images are far below cosine_similarity's own 1e-8.
TINY = 1e-20


@spec
@dataclass(frozen=True)
class GradAlign:
    """`weight` times 1 - the cosine between the input gradients at the image and at a random point of the ball (eq. 7).

    It is added to the loss on the examples of the recipe's attack, whose ball it uses; meant for ``FGSM()``. The authors'
    weights on CIFAR-10 are 0.2 at 8/255 and 2.0 at 16/255. Both gradients are taken in evaluation mode, so that
    BatchNorm sees the batch once. It costs about twice the passes that it counts, for it goes back through them.

    >>> GradAlign(weight=2.0)
    GradAlign(weight=2.0)
    """

    weight: float = 0.2

    minibatch_replays = stages = 1
    default_attack = FGSM()

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"GradAlign: weight must not be negative, got {self.weight:g}")

    def check(self, fields: Fields) -> None:
        if fields.attack is None or isinstance(fields.attack, MultiAttack) or ball_of(fields.attack) is None:
            got = "none" if fields.attack is None else repr(fields.attack)
            raise ValueError(f"GradAlign needs a recipe whose attack has a ball, such as FGSM(), got {got}")
        excludes(self, fields, "compile", "torch.compile's networks have no gradient of a gradient")

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        assert attack is not None and not isinstance(attack, MultiAttack)  # noqa: PT018
        adv = state.attacked(attack, x, y, streams)
        ball = ball_of(attack)
        assert ball is not None
        near = _near(ball, x, streams.child("gradalign"))

        def loss(net: nn.Module) -> Tensor:
            return state.mixed(net, x, adv, y) + self.weight * (1 - alignment(net, x, near, y)).mean()

        return StepResult(adv, state.update(loss))


def alignment(net: nn.Module, x: Tensor, near: Tensor, y: Tensor) -> Tensor:
    """Cosine between the loss gradients at `x` and at `near`, both (N, C, H, W): (N,), with a graph to the weights.

    1 for an image whose gradients are not finite: going back through them would make the weights NaN.
    """
    with evaluating(net):
        here, there = (_gradient(net, point, y).flatten(1) for point in (x, near))
        finite = (here.isfinite() & there.isfinite()).all(1)
        if not finite.all():
            cosine = torch.ones_like(here[:, 0])
            if finite.any():
                cosine[finite] = alignment(net, x[finite], near[finite], y[finite])
            return cosine
    return F.cosine_similarity(here, there, eps=TINY)


def _gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x, create_graph=True)
    return grad


def _near(ball: Ball, x: Tensor, streams: Streams) -> Tensor:
    return (x + ball.sample(x, streams)).clamp_(0, 1)


@spec
@dataclass(frozen=True)
class NFGSM:
    """A step of `step` radii from uniform noise of `noise` radii, clipped to [0, 1] and not to the ball.

    The examples lie up to (noise + step) eps away, so it is a way to train and no attack at eps.

    >>> NFGSM(noise=2.0, step=1.0)
    NFGSM()
    """

    noise: float = 2.0
    step: float = 1.0

    minibatch_replays = stages = 1
    default_attack = FGSM()

    def __post_init__(self) -> None:
        if self.noise < 0 or self.step < 0:
            raise ValueError(f"NFGSM: noise and step must not be negative, got {self.noise:g} and {self.step:g}")

    def check(self, fields: Fields) -> None:
        needs(self, fields, FGSM, "FGSM()")

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        assert isinstance(attack, FGSM)
        with state.compute.autocast(), evaluating(state.compiled) as net:
            eps = epsilon(attack.ball)
            start = (x + vary(attack.ball, eps=self.noise * eps).sample(x, streams.child("noise"))).clamp_(0, 1)
            point = start.clone().requires_grad_()
            grad = input_gradient(F.cross_entropy(net(point), y, reduction="none"), point)
            adv = (start + self.step * eps * attack.ball.steepest_direction(grad, start)).clamp_(0, 1)
        return StepResult(adv, state.update(lambda net: state.mixed(net, x, adv, y)))


@spec
@dataclass(frozen=True)
class TRADES:
    """Cross entropy on the images plus `beta` times the divergence of the prediction on the examples (eq. 5).

    The examples climb that divergence, not the loss of the label: the recipe's PGD with ``loss="kl"``, from its uniform
    random start (the paper starts at Gaussian noise of deviation .001). Images and examples share one pass.

    >>> TRADES(beta=6)
    TRADES()
    """

    beta: float = 6.0

    minibatch_replays = stages = 1
    default_attack = PGD(steps=10)

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"TRADES: beta must not be negative, got {self.beta:g}")

    def check(self, fields: Fields) -> None:
        needs(self, fields, PGD, "PGD, such as PGD(steps=10)")
        excludes(self, fields, "clean_weight", "its loss has a clean part of weight 1 already")
        vary(fields.attack, loss="kl")

    def train_step(
        self, state: TrainState, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams
    ) -> StepResult:
        adv = state.attacked(vary(attack, loss="kl"), x, y, streams)

        def loss(net: nn.Module) -> Tensor:
            on_clean, on_adv = net(torch.cat((x, adv))).chunk(2)
            return state.cross_entropy(on_clean, y) + self.beta * kl(on_adv, log_probabilities(on_clean)).mean()

        return StepResult(adv, state.update(loss))


METHODS = named(TRADES, Free, NFGSM, GradAlign, Distillation)

__all__ = ["METHODS", "NFGSM", "TRADES", "Adversarial", "Distillation", "Free", "GradAlign", "Method"]
