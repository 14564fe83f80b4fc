"""What a training method is: how one batch becomes weight steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from vizrobust.attacks import Attack
from vizrobust.rng import Streams
from vizrobust.training.mix import Mix

if TYPE_CHECKING:
    from vizrobust.training.learner import Learned, Learner


class Fields(Protocol):
    """The fields of a recipe that methods look at."""

    @property
    def attack(self) -> Attack | Mix | None: ...
    @property
    def clean_weight(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def compile(self) -> bool: ...


@runtime_checkable
class Method(Protocol):
    """A way to learn from a batch. It is frozen: what it keeps from batch to batch lives in the `Learner`.

    `replays` is how many weight steps it makes of each batch; `rounds` how often it trains all epochs, each time a new
    network with the one before as its teacher. `usual` is the attack that it is meant for.
    """

    @property
    def replays(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def usual(self) -> Attack | None: ...

    def check(self, fields: Fields) -> None:
        """``ValueError`` where the recipe's other fields and this method exclude each other."""

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        """Images (N, C, H, W), labels (N,) -> `replays` weight steps; `attack` has this epoch's eps."""


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
