"""How a study chooses eps: by robust accuracy alone, before any picture is rendered."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# The rule asks for a radius at which the baseline fgsm keeps less than this part of the accuracy of K = 8 under PGD-50.
PART = 0.5


@dataclass(frozen=True)
class EpsTrial:
    """Accuracies at one eps; `strong` is None where K = 8 was not trained because it could not have twice that of `fgsm`."""

    eps: float
    fgsm: float
    strong: float | None
    fulfilled: bool


@dataclass(frozen=True)
class EpsChoice:
    """The chosen radius, the reason, and all trials of the rule."""

    eps: float
    tried: tuple[EpsTrial, ...]
    reason: str

    def row(self) -> dict[str, Any]:
        return {"eps": self.eps, "reason": self.reason, "tried": [asdict(one) for one in self.tried]}


# ("fgsm" or "strong", eps): whose accuracy under PGD-50 the rule asks for next.
EpsQuestion = tuple[str, float]


def eps_rule(radii: Sequence[float], usual: float) -> Generator[EpsQuestion, float, EpsChoice]:
    """The rule as a conversation: yields what it wants to know, is sent the accuracy, and returns its choice.

    It asks only for what can decide, because each answer is a training. Above the `usual` radius it first asks what K = 8
    keeps there, where the sweep would train it anyway: what it keeps at a larger radius is taken to be no more.
    """
    tried: list[EpsTrial] = []
    most: float | None = None
    for eps in sorted(radii):
        fgsm, strong = (yield "fgsm", eps), None
        if fgsm < PART and eps > usual and most is None:
            most = yield "strong", usual
        if fgsm < PART * (1 if most is None else most):
            strong = yield "strong", eps
        tried.append(EpsTrial(eps, fgsm, strong, strong is not None and fgsm < PART * strong))
        if tried[-1].fulfilled:
            return EpsChoice(
                eps, tuple(tried), "the smallest radius at which the fgsm arm keeps less than half of what K = 8 keeps"
            )
    reason = "no radius fulfils the rule, so the data set's usual one: one-step training did not fail"
    if most is not None and any(one.eps > usual and one.strong is None for one in tried):
        reason += f" (K = 8 keeps {most:.1%} at the usual radius, and is taken to keep no more at larger ones)"
    return EpsChoice(usual, tuple(tried), reason)
