"""What commands on images share: the checkpoints with their images and folders, and the attacks that a request describes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from vizrobust.attacks import Attack, configured, parse_attack, with_default_eps
from vizrobust.data import DataSet, Split, head
from vizrobust.models import Checkpoint
from vizrobust.models.folding import net_for
from vizrobust.models.forward import constant_class
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.requests.request import OnSplit
from vizrobust.results import Event, Note, Result, Row, Table
from vizrobust.robustness import BATCH_SIZE, RobustAccuracy
from vizrobust.robustness.evaluation_runs import attack_key, evaluated, identity
from vizrobust.runs import RunFolder
from vizrobust.session import Session


@dataclass(frozen=True)
class Target:
    """A checkpoint with its data set, the images that are attacked, and the run folder of the verdicts."""

    checkpoint: Checkpoint
    data: DataSet
    images: Split
    folder: RunFolder
    batch_size: int
    # What was found out about the predictions on the way.
    facts: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        return self.checkpoint.name

    def net(self) -> nn.Module:
        """A new network, as the folder's verdicts are of."""
        return net_for(self.folder, self.checkpoint)[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of any table on this checkpoint must know: that it predicts one class for every image."""
        if "constant" not in self.facts:
            return ()
        n, name = len(self.images), self.facts["constant"]
        return (f"{self.name} predicts class {name!r} for all {n} unchanged images: accuracies are the share of that class",)

    def saw(self, predicted: Tensor) -> None:
        """Remember whether the network predicts one class, of the classes (n,) that it predicts for the unchanged images."""
        constant = constant_class(predicted, predicted == self.images.labels)
        if constant is not None:
            self.facts["constant"] = self.data.classes[constant]

    def evaluated(self, request: OnSplit, session: Session, attack: Attack, **how: Any) -> RobustAccuracy:
        """The attack's outcome on the target; what the folder holds is read."""
        session.remember(self.folder, self.checkpoint)
        key = {"checkpoint": self.checkpoint.id, **attack_key(attack)}
        rows = [
            row for row in self.folder.rows() if row.get("attack") == key["attack"] and row["checkpoint"] == key["checkpoint"]
        ]
        if rows and not any(row.get("sources") == key.get("sources") for row in rows):
            session.note(
                f"note: code or files of {key['attack']} have changed: older rows in {self.folder.folder} are kept, but not used"
            )
        result = evaluated(
            self.folder, self.checkpoint, attack, self.images, session.compute(request.precision), request.seed,
            self.batch_size,
            report=lambda run, done, total: session.progress(f"{self.name}  {run}", done, total), **how,
        )  # fmt: skip
        if result.constant_prediction is not None and len(result.indices) == len(self.images):
            self.facts["constant"] = self.data.classes[result.constant_prediction]
        return result


class Answer(Protocol):
    """What one mode of `attack` found: rows, tables, a figure, and the evaluations behind them where it has any."""

    @property
    def evaluations(self) -> Sequence[tuple[Target, RobustAccuracy]]: ...
    def rows(self) -> list[Row]: ...
    def tables(self) -> list[Table]: ...
    def figure(self) -> Any: ...


def open_targets(request: OnSplit, session: Session, command: str, batch_size: int = BATCH_SIZE) -> list[Target]:
    """The checkpoints with their images and the folders of this command; `batch_size` where the request has none."""
    compute = session.compute(request.precision)
    found = []
    for checkpoint, data in session.checkpoints(request.models, request.data):
        images = head(data.split(request.split), request.images)
        # A folder may later hold more images, so only runs in memory make their batches smaller.
        size = request.batch_size or (min(batch_size, len(images)) if session.memory else batch_size)
        named = identity(data.name, request.split, request.seed, size, compute.precision)
        exact = request.exact if isinstance(request, AttackRequest) and request.suite != "corruptions" else None
        folder = session.folder(command, named, compute, data, request.split, exact=exact, request=repr(request))
        found.append(Target(checkpoint, data, images, folder, size))
    return found


def attacks_for(
    request: AttackRequest, data: DataSet, default: Sequence[str], unbounded: bool = False
) -> Generator[Event, None, list[Attack]]:
    """The attacks that the request describes, with the data set's eps where none is named; notes about them."""
    asked = [parse_attack(one, typed=True) if isinstance(one, str) else one for one in request.attacks or default]
    eps = None if unbounded else request.eps
    found = [configured(one, data.eps, request.norm, unbounded=unbounded, eps=eps, steps=request.steps) for one in asked]
    for text in dict.fromkeys(note for one in found for note in one.notes(len(data.classes))):
        yield Note(f"note: {text}")
    # An unforeseen attack has an eps in units of its own; without one it gets the medium one for images of this size.
    return [one if unbounded or one.threat_model()[1] is not None else with_default_eps(one, data.shape) for one in found]


def drawn(found: Answer | Result, request: Any, session: Session, about: str = "") -> Iterator[Note]:
    """Save the figure where the request has a `plot`; of several processes one does. The note that says so ends with `about`."""
    if request.plot and session.compute().processes.main:
        from vizrobust.report.style import save_figure

        save_figure(found.figure(), request.plot, session.argv or repr(request))
        yield Note(f"drawn: {request.plot}{about}")
