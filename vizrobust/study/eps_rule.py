"""Which eps a study uses: the smallest at which one-step training fails, chosen on robust accuracy before any picture."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# The fgsm arm's accuracy under PGD-50 must be below this part of that of K = 8.
PART = 0.5


@dataclass(frozen=True)
class Tried:
    """What was measured at one eps; `strong` is None where K = 8 was not trained, because nothing could be twice `fgsm`."""

    eps: float
    fgsm: float
    strong: float | None
    fulfilled: bool


@dataclass(frozen=True)
class Chosen:
    """The radius, whether by the rule, and all that was tried on the way."""

    eps: float
    tried: tuple[Tried, ...]
    reason: str

    def row(self) -> dict[str, Any]:
        return {"eps": self.eps, "reason": self.reason, "tried": [asdict(one) for one in self.tried]}


# ("fgsm" or "strong", eps): whose accuracy under PGD-50 the rule wants to know next.
Question = tuple[str, float]


def questions(radii: Sequence[float], usual: float) -> Generator[Question, float, Chosen]:
    """The rule as a conversation: yields what it wants to know, is sent the accuracy, and returns its choice.

    It asks only for what can decide, because each answer is a training. Above the `usual` radius it first asks what K = 8
    keeps there, where the sweep would train it anyway: what it keeps at a larger radius is taken to be no more.
    """
    tried: list[Tried] = []
    most: float | None = None
    for eps in sorted(radii):
        fgsm, strong = (yield "fgsm", eps), None
        if fgsm < PART and eps > usual and most is None:
            most = yield "strong", usual
        if fgsm < PART * (1 if most is None else most):
            strong = yield "strong", eps
        tried.append(Tried(eps, fgsm, strong, strong is not None and fgsm < PART * strong))
        if tried[-1].fulfilled:
            return Chosen(eps, tuple(tried), "the smallest radius at which the fgsm arm keeps less than half of what K = 8 keeps")
    reason = "no radius fulfils the rule, so the data set's usual one: one-step training did not fail"
    if most is not None and any(one.eps > usual and one.strong is None for one in tried):
        reason += f" (K = 8 keeps {most:.1%} at the usual radius, and is taken to keep no more at larger ones)"
    return Chosen(usual, tuple(tried), reason)


def choose(radii: Sequence[float], usual: float, accuracy: Callable[[str, float], float]) -> Chosen:
    """The smallest of `radii` at which ``accuracy("fgsm", eps)`` is below half of ``accuracy("strong", eps)``.

    Both are accuracies under PGD-50, `strong` that of K = 8. Where no radius fulfils the rule it is the data set's
    `usual` one.

    >>> choose([0.1, 0.3], 0.3, lambda who, eps: {"fgsm": 0.8 - 2.5 * eps, "strong": 0.7}[who]).eps
    0.3
    """
    asking, answer = questions(radii, usual), None
    while True:
        try:
            answer = accuracy(*(next(asking) if answer is None else asking.send(answer)))
        except StopIteration as done:
            return done.value
