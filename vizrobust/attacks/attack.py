"""What an attack is: its runs, the state that each image has in a run, and the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vizrobust.attacks.losses import fallback
from vizrobust.attacks.threat_models import Ball, Linf, ball_from, epsilon, per_image
from vizrobust.data import check_images
from vizrobust.models import evaluating
from vizrobust.models.forward import Logits, Normalized, PerImageNoise
from vizrobust.rng import Streams

# Everything an attack knows of N images: each tensor's row i belongs to image i alone. `initial_state` lists what all share.
State = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class AttackResult:
    """What an attack found for N images.

    `x` (N, C, H, W) is the K-th iterate, which training uses; `best` is a misclassified iterate if there was one, else the
    iterate of highest loss. `loss` and `correct` (K + 1, N) follow the iterates from the start point on; with several runs
    they are the worst over them. A point where the network's outputs are not finite is not correct and breaks nothing:
    `undefined` (N,) marks the images that met one and no misclassified point, `nonfinite_gradient` (N,) those with gradient
    entries that were not finite and counted as 0. With ``evaluate=False`` only `x` is filled.

    >>> from vizrobust.attacks import PGD
    >>> PGD(eps=0.1, steps=2)(nn.Flatten(), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    AttackResult(3 images, 3 evaluated points each)
    """

    x: Tensor
    best: Tensor | None = None
    loss: Tensor | None = None
    correct: Tensor | None = None
    undefined: Tensor | None = None
    nonfinite_gradient: Tensor | None = None

    @property
    def robust(self) -> Tensor:
        """(N,) bool: the images that are classified correctly at every iterate. Without verdicts a ``ValueError``."""
        if self.correct is None:
            raise ValueError("the attack ran with evaluate=False, so nothing is known about its iterates; leave that out")
        return self.correct.all(0)

    def __repr__(self) -> str:
        points = "not evaluated" if self.correct is None else f"{len(self.correct)} evaluated points each"
        return f"AttackResult({len(self.x)} images, {points})"


@runtime_checkable
class AttackRun(Protocol):
    """One run of an attack from one start point, for example one restart or one target class.

    Two attributes are optional: ``minimum_norm = True`` if it looks for the smallest perturbation, ``leaves_ball = True``
    if it does not stay in its ball (then all its steps are made, to report how far it went).

    The three methods change the state they are given and see batches of one size. They must not mix images, and every
    random number comes from `step_streams` (or, in `start`, from `streams`).
    """

    @property
    def name(self) -> str:
        """Its own name within the attack, such as ``APGD-T 3``."""

    @property
    def component(self) -> str:
        """The part of the attack it belongs to, such as ``APGD-T``, under which tables count."""

    @property
    def steps(self) -> int:
        """K: how often `step` is called; with the last `evaluate` there are K + 1 verdicts."""

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        """The state (see `initial_state`) at the start point."""

    def step(self, net: nn.Module, state: State) -> None:
        """Evaluate the current iterate with `record`, then move to the next one."""

    def evaluate(self, net: nn.Module, state: State) -> None:
        """Evaluate the current iterate alone, without a gradient."""


class Attack(ABC):
    """``attack(model, x, y)``: images (N, C, H, W) in [0, 1], true labels (N,) -> `AttackResult`.

    A subclass is a frozen dataclass with ``@spec``, has the method `runs`, and either a `ball`, an inner `attack` or an
    `eps` in units of its own. Where it has a `ball`, its constructor also takes ``eps=`` and ``norm=`` in place of it.

    >>> from vizrobust.attacks import PGD
    >>> PGD(eps=8 / 255, steps=10), PGD(eps=0.5, norm="L2")
    (PGD(steps=10, ball=Linf(eps=8/255)), PGD(ball=L2(eps=0.5)))
    """

    # Whether it looks for the smallest perturbation, so that it needs no eps.
    minimum_norm: ClassVar[bool] = False
    # The balls that it works in (all, if none is named), and the smallest values of its fields.
    balls: ClassVar[tuple[type, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        if self.balls:
            check_ball(self, *self.balls)
        check_least(self, **self.least)

    @abstractmethod
    def runs(self, model: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        """The attack as runs, one after the other, for callers that stop early or continue later."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, streams: Streams | None = None, evaluate: bool = True
    ) -> AttackResult:
        """Attack every image with all steps of every run; per image the worst of the runs counts.

        Image i draws its random numbers from the stream ``(seed, i, "attack")``, or from `streams`. ``evaluate=False``
        leaves out the last forward pass and all verdicts, for training. The network's training flags, gradients and hooks
        are left as they were. Raises ``ValueError`` if images are not floating point, finite and in [0, 1].
        """
        check_images(x)
        # The library's own networks return logits already.
        model = model if isinstance(model, Normalized | PerImageNoise) else Logits(model)
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(f"labels must be {len(x)} whole numbers, one per image, got {y.dtype} of shape {tuple(y.shape)}")
        streams = Streams(seed, range(len(x)), "attack") if streams is None else streams
        found: tuple[AttackResult, State] | None = None
        runs = self.runs(model, x)
        for run in runs:
            # Only verdicts tell which of several runs is the worst, so they are needed then in any case.
            new = _finished(run, model, x, y, streams, evaluate or len(runs) > 1)
            found = new if found is None else _worse(found, new)
        if found is None:
            raise ValueError(f"{type(self).__name__} has no runs; an attack needs at least one")
        return found[0] if evaluate else AttackResult(found[0].x)

    def threat_model(self) -> tuple[str, float | None]:
        """Its name and radius, such as ``("Linf", 0.3)``, or the attack's own: ``("Elastic", 2.0)``."""
        if ball := ball_of(self):
            return type(ball).__name__, ball.eps
        # A wrapper (transfer, expectation over transformation) may do what the attack inside may do.
        inner = inner_attack(self)
        return (type(self).__name__, getattr(self, "eps", None)) if inner is None else inner.threat_model()

    def notes(self, classes: int) -> tuple[str, ...]:
        """One sentence for each thing that the attack does differently on a network with so many classes."""
        inner, loss = inner_attack(self), getattr(self, "loss", None)
        if inner is not None:
            return inner.notes(classes)
        said = fallback(loss, classes) if isinstance(loss, str) else None
        return () if said is None else (said,)

    @classmethod
    def spell_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a call in which `eps` and `norm` may stand in place of the `ball`; used by ``@spec``."""
        given = dict(values)
        own = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
        if "ball" not in own or not given.keys() & {"eps", "norm"} - own.keys():
            return given
        default = own["ball"].default
        usual = Linf() if default is MISSING else default
        ball = ball_from(cls.__name__, given.get("ball"), given.pop("eps", None), given.pop("norm", None), usual)
        return {**given, "ball": ball}


def inner_attack(attack: Attack) -> Attack | None:
    """The attack that a wrapper is made around; None for all others."""
    inner = getattr(attack, "attack", None)
    return inner if isinstance(inner, Attack) else None


def initial_state(x: Tensor, y: Tensor, start: Tensor, streams: Streams) -> State:
    """The part of a state that all runs share.

    ``x`` the clean images, ``y`` their labels, ``adv`` the current iterates, ``step`` (N,) how many points were evaluated,
    ``keys`` (N,) the names of the random streams. Of the last point: whether its outputs were ``finite`` and ``correct``,
    and its ``loss``. Of all points so far: whether one was ``misclassified``, whether one was ``undefined`` (its outputs
    not finite), whether one had a ``nonfinite_gradient``, the ``best`` of them and its ``best_loss``.
    """
    n = len(x)

    def flags(value: bool) -> Tensor:
        return torch.full((n,), value, dtype=torch.bool, device=x.device)

    return {
        "x": x,
        "y": y,
        "adv": start,
        "step": torch.zeros(n, dtype=torch.int64, device=x.device),
        "keys": streams.keys.to(x.device),
        "finite": flags(True),
        "correct": flags(True),
        "loss": torch.full((n,), -torch.inf, device=x.device, dtype=x.dtype),
        "misclassified": flags(False),
        "undefined": flags(False),
        "nonfinite_gradient": flags(False),
        "best": start,
        "best_loss": torch.full((n,), -torch.inf, device=x.device, dtype=x.dtype),
    }


def step_streams(state: State, purpose: str) -> Streams:
    """Random streams for this step of a run: a function of the image, the step and the purpose alone."""
    return Streams.of(state["keys"].cpu(), state["step"].cpu()).child(purpose)


def is_finite(logits: Tensor) -> Tensor:
    """(N, classes) -> (N,) bool: whether all outputs for an image are finite. Others decide nothing about it."""
    return logits.isfinite().all(1)


def input_gradient(value: Tensor, point: Tensor, state: State | None = None, *, retain_graph: bool = False) -> Tensor:
    """The gradient of ``value`` (N,), summed, at `point` (N, ...), where entries that are not finite are 0.

    No weight gradient is computed and no image affects another. A square root or a logarithm at 0 gives infinite or
    undefined entries; with them a whole image would turn into NaN, without them the other pixels still move. The images
    with such entries are marked in the `state` of the run. Raises ``ValueError`` where there is no gradient at all.

    >>> x = torch.tensor([[0.0, 0.25]], requires_grad=True)
    >>> input_gradient(x.sqrt().sum(1), x)
    tensor([[0., 1.]])
    """
    found = torch.autograd.grad(value.sum(), point, retain_graph=retain_graph, allow_unused=True) if value.requires_grad else ()
    gradient = found[0] if found else None
    if gradient is None:
        raise ValueError(
            "the network's outputs have no gradient with respect to the image; attack it with Square or HopSkipJump, which "
            "ask for none"
        )
    if state is not None:
        # A sum is finite only if its terms are, and reads them once.
        state["nonfinite_gradient"] = state["nonfinite_gradient"] | ~gradient.flatten(1).sum(1).isfinite()
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def record(state: State, logits: Tensor, loss: Tensor, inside: Tensor | None = None, point: Tensor | None = None) -> None:
    """Enter a point's verdict and loss (N,), larger = better for the attacker; a point not `inside` breaks nothing.

    `point` is the iterate unless the run evaluates another one. Where outputs are not finite the point is neither correct
    nor misclassified. In training nobody asks, and nothing is kept.
    """
    state["step"] = state["step"] + 1
    if "best" not in state:
        return
    point = state["adv"] if point is None else point
    finite, correct = is_finite(logits), logits.argmax(1) == state["y"]
    if inside is not None:
        finite, correct = finite | ~inside, correct | ~inside
    loss = loss.detach().to(state["best_loss"].dtype)
    loss = torch.where(finite & ~loss.isnan(), loss, -torch.inf)
    misclassified = finite & ~correct
    better = is_better(misclassified, loss, state["misclassified"], state["best_loss"])
    state["finite"], state["correct"], state["loss"] = finite, finite & correct, loss
    state["best"] = torch.where(per_image(better, point), point, state["best"])
    state["best_loss"] = torch.where(better, loss, state["best_loss"])
    state["misclassified"] = state["misclassified"] | misclassified
    state["undefined"] = state["undefined"] | ~finite


def is_better(misclassified: Tensor, loss: Tensor, than_misclassified: Tensor, than_loss: Tensor) -> Tensor:
    """Whether a point is the better example: a misclassified one before another, then the higher loss. All (N,)."""
    return (misclassified & ~than_misclassified) | ((misclassified == than_misclassified) & (loss > than_loss))


def num_classes(net: nn.Module, x: Tensor) -> int:
    """How many classes the network distinguishes."""
    with evaluating(net), torch.no_grad():
        return net(x[:1]).shape[1]


def _finished(
    run: AttackRun, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, evaluate: bool
) -> tuple[AttackResult, State]:
    """One run with all its steps."""
    losses, corrects = [], []
    with evaluating(net):
        state = run.start(net, x.detach(), y, streams)
        if not evaluate:
            del state["best"]
        for _ in range(run.steps):
            run.step(net, state)
            losses.append(state["loss"])
            corrects.append(state["correct"])
        if not evaluate:
            return AttackResult(state["adv"]), state
        with torch.no_grad():
            run.evaluate(net, state)
    losses.append(state["loss"])
    corrects.append(state["correct"])
    undefined = state["undefined"] & ~state["misclassified"]
    result = AttackResult(
        state["adv"], state["best"], torch.stack(losses), torch.stack(corrects), undefined, state["nonfinite_gradient"]
    )
    return result, state


def _worse(a: tuple[AttackResult, State], b: tuple[AttackResult, State]) -> tuple[AttackResult, State]:
    """Two runs as one; the shorter one's last verdicts stand for the steps it did not take."""
    (old, before), (new, after) = a, b
    wrong_before, wrong_after = (one["finite"] & ~one["correct"] for one in (before, after))
    last = is_better(wrong_after, after["loss"], wrong_before, before["loss"])
    best = is_better(after["misclassified"], after["best_loss"], before["misclassified"], before["best_loss"])
    state = {key: torch.where(last, after[key], before[key]) for key in ("correct", "loss", "finite")}
    for key in ("misclassified", "undefined", "nonfinite_gradient"):
        state[key] = before[key] | after[key]
    state["best_loss"] = torch.where(best, after["best_loss"], before["best_loss"])
    assert old.best is not None and new.best is not None and old.loss is not None and new.loss is not None  # noqa: PT018
    assert old.correct is not None and new.correct is not None  # noqa: PT018
    length = max(len(old.loss), len(new.loss))
    result = AttackResult(
        torch.where(per_image(last, old.x), new.x, old.x),
        torch.where(per_image(best, old.best), new.best, old.best),
        torch.maximum(_stretched(old.loss, length), _stretched(new.loss, length)),
        _stretched(old.correct, length) & _stretched(new.correct, length),
        state["undefined"] & ~state["misclassified"],
        state["nonfinite_gradient"],
    )
    return result, state


def _stretched(rows: Tensor, length: int) -> Tensor:
    return torch.cat((rows, rows[-1:].expand(length - len(rows), -1)))


def random_targets(net: nn.Module, x: Tensor, y: Tensor, streams: Streams, target: int | None = None) -> Tensor:
    """(N,): `target` for every image, or a wrong class for each, drawn uniformly from its own stream.

    Raises ``ValueError`` where the network has no class `target`.
    """
    classes = num_classes(net, x)
    if target is not None:
        if target >= classes:
            raise ValueError(f"target class {target} does not exist: the network has classes 0 to {classes - 1}")
        return torch.full_like(y, target)
    return (y + 1 + streams.child("target").integers(classes - 1).to(y.device)) % classes


def is_minimum_norm(attack: Attack) -> bool:
    """Whether an attack, or the one that it is made around, looks for the smallest perturbation: it needs no eps.

    >>> from vizrobust.attacks import CW, EOT, PGD
    >>> is_minimum_norm(PGD()), is_minimum_norm(CW()), is_minimum_norm(EOT(attack=CW()))
    (False, True, True)
    """
    inner = inner_attack(attack)
    return attack.minimum_norm if inner is None else is_minimum_norm(inner)


def ball_of(attack: Attack) -> Ball | None:
    """The attack's ball; None where its radius is not a norm of the perturbation (elastic, fog, ...).

    >>> from vizrobust.attacks import EOT, PGD, Fog
    >>> ball_of(EOT(PGD(eps=0.1))), ball_of(Fog())
    (Linf(eps=0.1), None)
    """
    ball = getattr(attack, "ball", None)
    return ball if isinstance(ball, Ball) else None


def perturbation_norm(attack: Attack, delta: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,): a perturbation measured in the attack's norm, in L-inf if it has none.

    >>> from vizrobust.attacks import PGD
    >>> perturbation_norm(PGD(norm="L1"), torch.ones(2, 1, 4, 3))
    tensor([12., 12.])
    """
    return (ball_of(attack) or Linf()).norm(delta)


def is_inside(attack: Attack, largest: float) -> bool:
    """Whether the attack may use a perturbation of that size, to 1e-6; without a ball it may use every one.

    >>> from vizrobust.attacks import PGD, Fog
    >>> is_inside(PGD(eps=0.1), 0.1), is_inside(PGD(eps=0.1), 0.2), is_inside(Fog(eps=1), 0.9)
    (True, False, True)
    """
    ball = ball_of(attack)
    return ball is None or ball.eps is None or largest <= epsilon(ball) + 1e-6


def check_ball(attack: Attack, *kinds: type[object]) -> None:
    """``ValueError`` for a ball that this attack cannot work in."""
    if type(ball := getattr(attack, "ball")) not in kinds:  # noqa: B009
        *others, last = (kind.__name__ for kind in kinds)
        there = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{type(attack).__name__}: the ball must be {there}, got {type(ball).__name__}")


def check_least(spec: object, **least: float) -> None:
    """``ValueError`` where one of the named fields is below its least value."""
    for name, smallest in least.items():
        if (value := getattr(spec, name)) is not None and value < smallest:
            raise ValueError(f"{type(spec).__name__}: {name} must be at least {smallest:g}, got {value:g}")
