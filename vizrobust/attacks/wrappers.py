"""Attacks made of other attacks: expectation over transformation, transfer, and the ensemble AutoAttack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vizrobust.attacks.apgd import APGD
from vizrobust.attacks.attack import Attack, AttackRun, State, ball_of, initial_state, num_classes, record
from vizrobust.attacks.black_box import Square
from vizrobust.attacks.boundary_attacks import FAB
from vizrobust.attacks.gradient import PGD
from vizrobust.attacks.inner_runs import InnerRun, patient
from vizrobust.attacks.losses import margin
from vizrobust.attacks.threat_models import L1, Ball, Linf, ball_from, epsilon
from vizrobust.models import load_checkpoint
from vizrobust.models.forward import PerImageNoise
from vizrobust.models.references import CHECKPOINT_FILE
from vizrobust.plugins import builtin_names
from vizrobust.rng import Streams, seeded
from vizrobust.spec import lookup, named, spec


@spec
@dataclass(frozen=True)
class EOT(Attack):
    """`attack` on the mean logits of `samples` forward passes (expectation over transformation, Athalye et al. 2018).

    For networks that are random also in evaluation mode: the loss, its gradient and the verdict are all those of the
    mean logits, drawn anew for every iterate. With a deterministic network the images are those of `attack` itself, bit
    for bit, at `samples` times the cost and more.

    In an evaluation each image has noise of its own, so its verdict does not depend on the batch. Called by itself the
    attack repeats with the same seed, images and batch size alone, because torch's global generator serves a whole batch.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> EOT(attack=PGD(eps=0.1, steps=2), samples=5)(net, torch.rand(5, 1, 4, 4), torch.arange(5) % 3).correct.shape
    torch.Size([3, 5])
    """

    attack: Attack = PGD()
    samples: int = 20

    least: ClassVar = {"samples": 1}

    @property
    def ball(self) -> Ball | None:
        """The ball of the attack inside."""
        return ball_of(self.attack)

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return tuple(EOTRun(run, "EoT {}", self.samples) for run in self.attack.runs(Expectation(net, self.samples, 0), x))


@dataclass(frozen=True)
class EOTRun(InnerRun):
    """`run` on the expectation of the network, with other noise at every step."""

    samples: int

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        return self.run.start(self._mean(net, streams.keys, torch.zeros_like(y)), x, y, streams)

    def step(self, net: nn.Module, state: State) -> None:
        self.run.step(self._mean(net, state["keys"], state["step"]), state)

    def evaluate(self, net: nn.Module, state: State) -> None:
        self.run.evaluate(self._mean(net, state["keys"], state["step"]), state)

    def _mean(self, net: nn.Module, keys: Tensor, t: Tensor) -> Expectation:
        if isinstance(net, PerImageNoise):  # each image has noise of its own for this step
            return Expectation(net, self.samples, 0)
        # A generator serves the whole batch, so its seed stands for all the images in it and their steps.
        seed = int(Streams.of(keys.cpu(), t.cpu()).child("expectation").keys.sum())
        return Expectation(net, self.samples, seed)


class Expectation(nn.Module):
    """The mean of a random network's logits over `samples` passes, whose noise is a function of `seed`.

    The passes run one after the other and, for a gradient, a second time, so that only one of them is held in memory.
    Torch's global generators are left as they were.
    """

    def __init__(self, net: nn.Module, samples: int, seed: int) -> None:
        super().__init__()
        self.net, self.samples, self.seed = net, samples, seed

    def forward(self, x: Tensor) -> Tensor:
        return _Mean.apply(x, self)

    def mean(self, sample: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The mean of what `sample` returns with each sample's noise."""
        first = self._drawn(sample, 0, device)
        # As differences from the first: if all are equal, their mean is that value to the last bit.
        rest = torch.zeros_like(first)
        for number in range(1, self.samples):
            rest = rest + (self._drawn(sample, number, device) - first)
        return first + rest / self.samples

    def _drawn(self, sample: Callable[[], Tensor], number: int, device: torch.device) -> Tensor:
        with seeded((self.seed + number) % 2**63, device):
            return sample()


class _Mean(torch.autograd.Function):
    """`Expectation.forward` and its gradient, one sample at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, expectation: Expectation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.expectation = expectation
        kind = x.device.type
        ctx.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        return expectation.mean(lambda: expectation.net(x), x.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        enabled, dtype = ctx.autocast

        def gradient() -> Tensor:
            with torch.enable_grad(), torch.autocast(x.device.type, dtype, enabled):
                point = x.detach().requires_grad_()
                logits = ctx.expectation.net(point)
            return torch.autograd.grad(logits, point, grad)[0]

        return ctx.expectation.mean(gradient, x.device), None


Shape = tuple[int, int, int]
# The state of the source's run, inside the state of the run.
PREFIX = "source."


@spec
@dataclass(frozen=True)
class Transfer(Attack):
    """`attack` made on the checkpoint `source`, every iterate of it judged on the network under attack.

    `source` is a model reference (a built-in name, a file, a run folder, torchvision:NAME) whose classes and input
    shape are those of the network under attack, which needs one forward pass for each iterate and no gradient
    (Papernot et al. 2016). The source is loaded once per process. Raises ``ValueError`` if the two networks do not fit.

    >>> Transfer(source="mnist-k8", attack=PGD(steps=10))
    Transfer(source="mnist-k8", attack=PGD(steps=10))
    """

    source: str = "mnist-k0"
    attack: Attack = PGD()

    @property
    def ball(self) -> Ball | None:
        """The ball of the attack inside."""
        return ball_of(self.attack)

    def reads(self) -> tuple[str, ...]:
        """The hash of the source network, where it is a person's own."""
        return () if self.source in builtin_names() else (load_checkpoint(self.source).network_sha256,)

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        source, shape = _source(self.source, x)
        if tuple(x.shape[1:]) != shape:
            taken, given = ("x".join(str(size) for size in sizes) for sizes in (shape, x.shape[1:]))
            raise ValueError(f"Transfer: {self.source!r} takes images of {taken}, not {given}; name a source of the same data")
        theirs, ours = num_classes(source, x), num_classes(net, x)
        if theirs != ours:
            raise ValueError(f"Transfer: {self.source!r} has {theirs} classes, not {ours}; name a source of the same data")
        title = "{} on " + self.source.replace("{", "{{").replace("}", "}}")
        return tuple(TransferRun(run, title, self.source, self.ball) for run in self.attack.runs(source, x))


@dataclass(frozen=True)
class TransferRun(InnerRun):
    """`run` on the source network, its iterates judged by their margin on the other one."""

    source: str
    ball: Ball | None

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        inner = self.run.start(_source(self.source, x)[0], x, y, streams)
        # The source's own verdicts are not needed.
        inner.pop("best", None)
        state = {**initial_state(x, y, inner["adv"], streams), **{PREFIX + key: value for key, value in inner.items()}}
        return state | {"done": torch.zeros_like(inner["misclassified"])} if "done" in inner else state

    def step(self, net: nn.Module, state: State) -> None:
        self.evaluate(net, state)
        inner = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        if "done" in inner:
            # The point judged just now was the last one; an end reached in the step below still has to be judged.
            state["done"] = inner["done"]
        self.run.step(_source(self.source, state["x"])[0], inner)
        state.update({PREFIX + key: value for key, value in inner.items()})
        state["adv"], state["nonfinite_gradient"] = inner["adv"], inner["nonfinite_gradient"]

    def evaluate(self, net: nn.Module, state: State) -> None:
        with torch.no_grad():
            logits = net(state["adv"])
            loss, inside = margin(logits, state["y"]), None
            if self.minimum_norm and self.ball is not None:
                size = self.ball.norm(state["adv"] - state["x"])
                loss, inside = -size, None if self.ball.eps is None else size <= self.ball.eps
            record(state, logits, loss, inside)


def _source(ref: str, x: Tensor) -> tuple[nn.Module, Shape]:
    """The network that `ref` names, on the device and with the type of the images, and its input shape."""
    return _loaded(ref, _written(ref), x.device, x.dtype)


def _written(ref: str) -> int:
    """When the file behind a reference was last written, so that a network trained anew is loaded anew."""
    path = Path(ref)
    path = path / CHECKPOINT_FILE if path.is_dir() else path
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=4)
def _loaded(ref: str, written: int, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Shape]:  # noqa: ARG001
    checkpoint = load_checkpoint(ref)
    net = checkpoint.net().to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # It is this cache's own and in evaluation mode for good; only images get gradients.
    return net.requires_grad_(False), checkpoint.info.input_shape


@spec
@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020): APGD-CE, APGD-T, FAB-T and Square (``standard``), more of them (``plus``), or EoT.

    ``plus`` is APGD-CE, APGD-DLR and FAB with five restarts each, Square, APGD-T and FAB-T. ``rand``, for networks that
    are random in evaluation mode, is APGD-CE and APGD-DLR on the mean of `samples` passes. In the L1
    ball (Croce & Hein 2021) APGD-CE has five restarts and APGD-T at most five targets; FAB and Square have no L1 ball and
    are left out. ``fast`` is not published: it is ``standard``, of which in Linf and L2 balls an image leaves APGD-T, FAB-T
    and Square where it has come too little of its way for their steps (`PATIENCE`). What it breaks ``standard`` breaks too,
    at the same step; it may miss an image.
    With other `steps`, `queries` or `targets` it is not the published ensemble and cannot be compared with it.

    >>> [repr(component) for component in AutoAttack(ball=Linf(eps=0.3)).components[:2]]
    ['APGD(ball=Linf(eps=0.3))', 'APGD(ball=Linf(eps=0.3), loss="dlr", targeted=True)']
    """

    version: str = "standard"
    ball: Ball = Linf()
    steps: int = 100
    queries: int = 5000
    targets: int = 9
    samples: int = 20

    def __post_init__(self) -> None:
        lookup(ENSEMBLES, self.version, "version of AutoAttack")
        _ = self.components  # they check what they are given

    @property
    def components(self) -> tuple[Attack, ...]:
        """The attacks it is made of, in their order."""
        version, steps, ball = self.version.lower(), self.steps, self.ball
        if version == "rand":
            return tuple(EOT(APGD(steps=steps, ball=ball, loss=loss), self.samples) for loss in ("ce", "dlr"))
        sparse = isinstance(ball, L1)
        restarts = 5 if sparse or version == "plus" else 1
        targets = min(self.targets, 5) if sparse else self.targets
        ce = APGD(steps=steps, ball=ball, restarts=restarts)
        dlr = APGD(steps=steps, ball=ball, loss="dlr", restarts=restarts)
        towards = APGD(steps=steps, ball=ball, loss="dlr", targeted=True, targets=targets)
        if sparse:
            return (ce, dlr, towards) if version == "plus" else (ce, towards)
        fab = FAB(steps=steps, ball=ball, targets=self.targets)
        square = Square(queries=self.queries, ball=ball)
        if version == "plus":
            return (ce, dlr, FAB(steps=steps, ball=ball, targeted=False, restarts=restarts), square, towards, fab)
        return (ce, towards, fab, square)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The components of the published ensemble that are missing in this ball."""
        if not isinstance(self.ball, L1) or self.version.lower() == "rand":
            return ()
        return ("FAB", "Square", "FAB-T") if self.version.lower() == "plus" else ("FAB-T", "Square")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        runs = tuple(run for component in self.components for run in component.runs(net, x))
        if self.version.lower() != "fast" or isinstance(self.ball, L1):
            return runs
        return tuple(patient(run, epsilon(self.ball)) for run in runs)

    def notes(self, classes: int) -> tuple[str, ...]:
        missing = " and ".join(self.left_out)
        own = (f"AutoAttack in the L1 ball is without {missing}, which have no L1 ball here",) if missing else ()
        return tuple(dict.fromkeys((*own, *(note for component in self.components for note in component.notes(classes)))))


def standard(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """The standard AutoAttack ensemble: APGD-CE, APGD-T, FAB-T, Square.

    >>> standard(eps=8 / 255)
    AutoAttack(ball=Linf(eps=8/255))
    """
    return AutoAttack("standard", ball_from("standard", ball, eps, norm, Linf()))


def plus(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """The standard ensemble with APGD-DLR, untargeted FAB and restarts.

    >>> len(plus(eps=8 / 255).components)
    6
    """
    return AutoAttack("plus", ball_from("plus", ball, eps, norm, Linf()))


def rand(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """AutoAttack for networks that are random in evaluation mode.

    >>> len(rand(eps=8 / 255).components)
    2
    """
    return AutoAttack("rand", ball_from("rand", ball, eps, norm, Linf()))


def fast(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """The standard ensemble without the steps on images that have come too little of their way; several times as fast.

    >>> fast(eps=8 / 255)
    AutoAttack(version="fast", ball=Linf(eps=8/255))
    """
    return AutoAttack("fast", ball_from("fast", ball, eps, norm, Linf()))


# Bare names for the command line: --attack standard.
ENSEMBLES = named(standard, plus, rand, fast)
