"""What is diagnosed, and how hard its attacks try."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vizrobust.attacks import Attack, Ball
from vizrobust.data import Split
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Effort:
    """How hard the attacks try: PGD's `steps` and `restarts`, the `queries` of Square, the `draws` of noise.

    What another attack breaks meets PGD again, with `retries` restarts, before it counts as hidden from gradients:
    another round of any attack finds a few images more. Ten are those of PGD-50-10 (Wong et al. 2020).
    `probes` images, those that are classified correctly first, serve the checks that look at gradients and losses.
    """

    steps: int = 50
    restarts: int = 3
    retries: int = 10
    queries: int = 1000
    draws: int = 100
    probes: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "retries", "draws", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"Effort: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Subject:
    """A network under diagnosis and what is known of it.

    `ball` holds the evaluation eps. `trained` are the attacks that it was trained against: none for standard
    training, None where that is not known. `source` is another checkpoint's reference, from which attacks are
    transferred; `ensemble` is one more attack that counts towards the strongest found.
    """

    net: nn.Module
    images: Split
    ball: Ball
    trained: tuple[Attack, ...] | None = None
    source: str | None = None
    ensemble: Attack | None = None
