"""`calibrate`: how robust networks can become against each attack on a data set, the measure behind UAR."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from vizrobust.attacks import ATTACKS, NAMES, PGD, UNFORESEEN, Attack, Ball
from vizrobust.compute import Compute
from vizrobust.data import DataSet
from vizrobust.experiments.uar_calibration import Plan
from vizrobust.experiments.uar_calibration import calibrate as calibrated
from vizrobust.requests.evaluation import CalibrateRequest
from vizrobust.results import Event, Note, Row, Table, percent, tables_html
from vizrobust.runs import default_folder
from vizrobust.session import Session
from vizrobust.spec import parse, vary
from vizrobust.training import TrainingRecipe, recorded_threads


@dataclass(frozen=True, repr=False)
class CalibrationReport:
    """The answer to a `CalibrateRequest`: for each attack its six sizes and their ATA; the files are in `folder`."""

    request: CalibrateRequest
    data: DataSet
    folder: str
    found: tuple[Row, ...]
    ok: bool | None = True

    def rows(self) -> list[Row]:
        return list(self.found)

    def tables(self) -> list[Table]:
        rows = [
            [row["name"], *(f"{eps:.3g}: {percent(ata)}" for eps, ata in zip(row["eps"], row["ata"], strict=True))]
            for row in self.found
        ]
        header = ["attack", *(f"size {k + 1}" for k in range(len(self.found[0]["eps"])))]
        note = "ATA: the accuracy at each eps of the network that is best there, of those trained against the attack"
        return [Table(f"calibration on {self.data.name}: eps and ATA", header, rows, note)]

    def __repr__(self) -> str:
        return f"CalibrationReport({', '.join(row['name'] for row in self.found)} on {self.data.name}, in {self.folder})"

    def _repr_html_(self) -> str:
        return tables_html(self.tables())


def calibrate(request: CalibrateRequest, session: Session) -> Generator[Event, None, CalibrationReport]:
    """Train and test at every size of every attack, or go on where an earlier process stopped; rows are the attacks."""
    plan = plan_of(request)
    data = session.dataset(request.data)
    folder = str(session.out or default_folder("calibrate", {"plan": repr(plan)}))
    compute = Compute(session.device, request.precision, recorded_threads(folder) or session.threads)
    yield Note(f"{plan}\nin {folder}")
    found: list[Row] = []
    for event in calibrated(plan, data, compute, folder, session.argv, wait=session.wait):
        if isinstance(event, dict):
            found.append(event)
        yield event
    yield Note(f"written: {folder}/calibrations/*.json")
    return CalibrationReport(request, data, folder, tuple(found))


def plan_of(request: CalibrateRequest) -> Plan:
    """The calibration's plan, which names its folder: the recipe and the attack types, each an attack."""
    # Large radii often do not start to learn with the shorter ramp of `train`; UAR draws eps from (0, eps) instead.
    ramp = request.epochs // 2 if request.eps_ramp is None else request.eps_ramp
    recipe = TrainingRecipe(
        arch=request.arch, data=request.data if isinstance(request.data, str) else request.data.name, epochs=request.epochs,
        eps_ramp=ramp, batch_size=request.batch_size, lr=request.lr, precision=request.precision, seed=request.seed,
    )  # fmt: skip
    attacks = tuple(attack_type(one, request.steps) for one in request.attacks)
    anchor = attack_type(request.anchor, request.steps)
    return Plan(recipe, attacks, anchor, request.candidates, request.test_steps, request.images)


def attack_type(one: Any, steps: int) -> Attack:
    """An attack, or one from its text; a norm stands for PGD in its ball. `steps` are those of training."""
    found = parse(one, NAMES, "attack", typed=True) if isinstance(one, str) else one
    attack = PGD(ball=found) if isinstance(found, Ball) else found
    if not isinstance(attack, Attack):
        raise ValueError(f"{one!r} is not an attack; there are: {', '.join((*ATTACKS, *UNFORESEEN))}")
    return vary(attack, steps=steps)
