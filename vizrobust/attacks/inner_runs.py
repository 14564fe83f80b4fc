"""Runs around another run: what they share, and one that images leave where they make too little progress."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import AttackRun, State
from vizrobust.attacks.threat_models import per_image
from vizrobust.rng import Streams


@dataclass(frozen=True)
class InnerRun:
    """A `run` of the attack inside; its names are put into `title`, and its length and properties are those of the run."""

    run: AttackRun
    title: str

    @property
    def name(self) -> str:
        return self.title.format(self.run.name)

    @property
    def component(self) -> str:
        return self.title.format(self.run.component)

    @property
    def steps(self) -> int:
        return self.run.steps

    @property
    def minimum_norm(self) -> bool:
        return getattr(self.run, "minimum_norm", False)

    @property
    def leaves_ball(self) -> bool:
        return getattr(self.run, "leaves_ball", False)


@dataclass(frozen=True)
class PatientRun(InnerRun):
    """`run`, which an image leaves at one of the `checks`, (step, share), where it has gone less than that share of its way.

    The way is that of the loss from its value at the first point to 0, where the image would be misclassified; a run that
    keeps the distance of the ``nearest`` misclassified point, as FAB does, has gone `eps` over that distance.
    """

    checks: tuple[tuple[int, float], ...]
    eps: float

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        state = self.run.start(net, x, y, streams)
        return {**state, "first_loss": state["loss"], "done": torch.zeros_like(state["misclassified"])}

    def step(self, net: nn.Module, state: State) -> None:
        before = dict(state)
        self.run.step(net, state)
        gone = before["done"]
        if bool(gone.any()):  # where nobody takes them out, images that have left stay as they were
            for key, old in before.items():
                state[key] = old if key == "done" else torch.where(per_image(gone, old), old, state[key])
            state["step"] = before["step"] + 1
        state["first_loss"] = torch.where(state["step"] == 1, state["loss"], state["first_loss"])
        way = self._way(state)
        for step, share in self.checks:
            state["done"] = state["done"] | ((state["step"] == step) & (way < share) & ~state["misclassified"])

    def evaluate(self, net: nn.Module, state: State) -> None:
        before = dict(state)
        self.run.evaluate(net, state)
        for key in ("correct", "finite", "loss", "misclassified", "undefined", "best", "best_loss"):
            state[key] = torch.where(per_image(before["done"], state[key]), before[key], state[key])

    def _way(self, state: State) -> Tensor:
        if "nearest" in state:
            return self.eps / state["nearest"]
        return torch.where(state["first_loss"] < 0, 1 - state["best_loss"] / state["first_loss"], 1)


# When `fast` looks at an image, as a share of a run's steps, and the share of its way (`PatientRun`) that it must have gone by
# then. Chosen on 60 images of `mnist-k8` at .3: the only one that Square broke, with its 3,279th query, had gone .83, .94 and
# .98 of it at these looks, nine in ten of the others at most .61, .71 and .73. FAB broke none there, so its shares are a guess.
PATIENCE = {
    "APGD-T": ((0.1, 0.35), (0.2, 0.45), (0.4, 0.55)),
    "FAB-T": ((0.1, 0.65), (0.2, 0.8), (0.4, 0.9)),
    "Square": ((0.1, 0.5), (0.2, 0.65), (0.4, 0.8)),
}


def patient(run: AttackRun, eps: float) -> AttackRun:
    """The run, which images leave where its component has shares in `PATIENCE`."""
    shares = PATIENCE.get(run.component, ())
    checks = tuple((max(1, int(part * run.steps)), share) for part, share in shares)
    return PatientRun(run, "{}", checks, eps) if checks else run
