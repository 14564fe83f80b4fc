"""What an attack is: its runs, the state that each image has in a run, and the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vizrobust.attacks.threat_models import Ball, Linf, epsilon, per_image
from vizrobust.models import evaluating
from vizrobust.rng import Streams

# Everything an attack knows of N images: each tensor's row i belongs to image i alone. `initial_state` lists what all share.
State = dict[str, Tensor]


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for N images.

    `x` (N, C, H, W) is the K-th iterate, what training uses; `best` a wrong iterate if one was met, else the one
    of highest loss. `loss` (K + 1, N) and `correct` (K + 1, N, bool) follow the iterates from the start point on;
    with restarts they are the worst over them. All three are None when the attack was asked not to judge.
    """

    x: Tensor
    best: Tensor | None = None
    loss: Tensor | None = None
    correct: Tensor | None = None


@runtime_checkable
class AttackRun(Protocol):
    """One run of an attack from one start point, e.g. one restart, or one target class.

    Two attributes are optional: ``minimum_norm = True`` where it looks for the smallest perturbation, ``leaves_ball = True``
    where it does not stay in its ball (then it is always walked to its end, to say how far it went).

    The three methods change the state they are given and see batches of one size; nothing in them may mix images,
    and every random number comes from `step_streams` (or, in `start`, from `streams`).
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
        """Judge the current iterate with `record`, then leave it for the next."""

    def evaluate(self, net: nn.Module, state: State) -> None:
        """Judge the current iterate alone, without a gradient."""


@runtime_checkable
class Attack(Protocol):
    """``attack(net, x, y, streams)``: images (N, C, H, W) in [0, 1], true labels (N,) -> `AttackResult`.

    ``evaluate=False`` skips the last forward pass and all bookkeeping, for training. `runs` are the same work as
    walks, one after the other, for whoever wants to stop early or go on later. An attack has a `ball`, or an `eps`
    in units of its own (see `threat_model`).
    """

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]: ...
    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, evaluate: bool = True) -> AttackResult: ...


def initial_state(x: Tensor, y: Tensor, start: Tensor, streams: Streams) -> State:
    """The part of a state that all walks share.

    ``x`` the clean images, ``y`` their labels, ``adv`` the current iterates, ``t`` (N,) how many points were judged,
    ``keys`` (N,) the names of the random streams; of the last point judged its ``correct`` and ``loss``; of all so
    far whether one was ``wrong``, the ``best`` of them and its loss ``top``.
    """
    n = len(x)
    return {
        "x": x,
        "y": y,
        "adv": start,
        "step": torch.zeros(n, dtype=torch.int64, device=x.device),
        "keys": streams.keys.to(x.device),
        "correct": torch.ones(n, dtype=torch.bool, device=x.device),
        "loss": torch.full((n,), -torch.inf, device=x.device, dtype=x.dtype),
        "misclassified": torch.zeros(n, dtype=torch.bool, device=x.device),
        "best": start,
        "best_loss": torch.full((n,), -torch.inf, device=x.device, dtype=x.dtype),
    }


def step_streams(state: State, purpose: str) -> Streams:
    """Random streams for this step of a walk: a function of the image, the step and the purpose alone."""
    return Streams.of(state["keys"].cpu(), state["step"].cpu()).child(purpose)


def record(state: State, logits: Tensor, loss: Tensor, inside: Tensor | None = None, point: Tensor | None = None) -> None:
    """Enter a point's verdict and loss (N,), larger = better for the attacker; a point not `inside` breaks nothing.

    `point` is the iterate unless the walk judges another one. In training nobody asks, and nothing is kept.
    """
    state["step"] = state["step"] + 1
    if "best" not in state:
        return
    point = state["adv"] if point is None else point
    correct = logits.argmax(1) == state["y"]
    if inside is not None:
        correct = correct | ~inside
    loss = loss.detach().to(state["best_loss"].dtype)
    better = is_better(~correct, loss, state["misclassified"], state["best_loss"])
    state["correct"], state["loss"] = correct, loss
    state["best"] = torch.where(per_image(better, point), point, state["best"])
    state["best_loss"] = torch.where(better, loss, state["best_loss"])
    state["misclassified"] = state["misclassified"] | ~correct


def is_better(wrong: Tensor, loss: Tensor, than_wrong: Tensor, than_loss: Tensor) -> Tensor:
    """Whether a point is the better example: a wrong one before a right one, then the higher loss. All (N,)."""
    return (wrong & ~than_wrong) | ((wrong == than_wrong) & (loss > than_loss))


def run(runs: Iterable[AttackRun], net: nn.Module, x: Tensor, y: Tensor, streams: Streams, evaluate: bool = True) -> AttackResult:
    """Walk every stage to its end on all the images; of several the worst counts for each image."""
    runs = tuple(runs)
    found: tuple[AttackResult, State] | None = None
    for walk in runs:
        # Only verdicts tell which of several stages is the worst, so they are needed there in any case.
        new = _walked(walk, net, x, y, streams, evaluate or len(runs) > 1)
        found = new if found is None else _worse(found, new)
    if found is None:
        raise ValueError("an attack needs at least one stage")
    attacked, _ = found
    return attacked if evaluate else AttackResult(attacked.x)


def num_classes(net: nn.Module, x: Tensor) -> int:
    """How many classes the network tells apart."""
    with evaluating(net), torch.no_grad():
        return net(x[:1]).shape[1]


def _walked(
    walk: AttackRun, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, evaluate: bool
) -> tuple[AttackResult, State]:
    losses, corrects = [], []
    with evaluating(net):
        state = walk.start(net, x.detach(), y, streams)
        if not evaluate:
            del state["best"]
        for _ in range(walk.steps):
            walk.step(net, state)
            losses.append(state["loss"])
            corrects.append(state["correct"])
        if not evaluate:
            return AttackResult(state["adv"]), state
        with torch.no_grad():
            walk.evaluate(net, state)
    losses.append(state["loss"])
    corrects.append(state["correct"])
    return AttackResult(state["adv"], state["best"], torch.stack(losses), torch.stack(corrects)), state


def _worse(a: tuple[AttackResult, State], b: tuple[AttackResult, State]) -> tuple[AttackResult, State]:
    """Two stages as one; the shorter one's last verdicts stand for the steps it did not take."""
    (old, before), (new, after) = a, b
    last = is_better(~after["correct"], after["loss"], ~before["correct"], before["loss"])
    best = is_better(after["misclassified"], after["best_loss"], before["misclassified"], before["best_loss"])
    state = {key: torch.where(last, after[key], before[key]) for key in ("correct", "loss")}
    state["misclassified"] = before["misclassified"] | after["misclassified"]
    state["best_loss"] = torch.where(best, after["best_loss"], before["best_loss"])
    assert old.best is not None and new.best is not None and old.loss is not None and new.loss is not None  # noqa: PT018
    assert old.correct is not None and new.correct is not None  # noqa: PT018
    length = max(len(old.loss), len(new.loss))
    attacked = AttackResult(
        torch.where(per_image(last, old.x), new.x, old.x),
        torch.where(per_image(best, old.best), new.best, old.best),
        torch.maximum(_stretched(old.loss, length), _stretched(new.loss, length)),
        _stretched(old.correct, length) & _stretched(new.correct, length),
    )
    return attacked, state


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


def ball_of(attack: Attack) -> Ball | None:
    """The attack's ball; None where its radius is not a norm of the perturbation (elastic, fog, ...)."""
    ball = getattr(attack, "ball", None)
    return ball if isinstance(ball, Ball) else None


def threat_model(attack: Attack) -> tuple[str, float | None]:
    """The threat model's name and radius, such as ``("Linf", 0.3)``, or the attack's own: ``("Elastic", 2.0)``."""
    if ball := ball_of(attack):
        return type(ball).__name__, ball.eps
    # A wrapper (transfer, expectation over transformation) may do what the attack within may do.
    inner = getattr(attack, "attack", None)
    return threat_model(inner) if isinstance(inner, Attack) else (type(attack).__name__, getattr(attack, "eps", None))


def perturbation_norm(attack: Attack, delta: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,): a perturbation measured in the attack's norm, in L-inf where it has none."""
    return (ball_of(attack) or Linf()).norm(delta)


def is_inside(attack: Attack, largest: float) -> bool:
    """Whether a perturbation of that size is one the attack may use; where there is no ball every one is."""
    ball = ball_of(attack)
    return ball is None or ball.eps is None or largest <= epsilon(ball) + 1e-6
