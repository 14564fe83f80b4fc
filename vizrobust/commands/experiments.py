"""`calibrate` and `dimension`: what trains networks in order to measure."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from vizrobust.attacks import ATTACKS, NAMES, PGD, UNFORESEEN, Attack, Ball, configured
from vizrobust.compute import Compute
from vizrobust.data import DataSet
from vizrobust.experiments.input_dimension import LECTURE_SLOPE, Growth, check_sides, dimension_study, growth
from vizrobust.experiments.uar_calibration import Plan
from vizrobust.experiments.uar_calibration import calibrate as calibrated
from vizrobust.requests.evaluation import CalibrateRequest, DimensionRequest
from vizrobust.results import Event, Note, Progress, Result, Row, Table, percent
from vizrobust.runs import default_folder
from vizrobust.session import Session
from vizrobust.spec import parse, vary
from vizrobust.training import TrainingRecipe, recorded_threads


@dataclass(frozen=True, repr=False)
class CalibrationReport(Result):
    """The answer to a `CalibrateRequest`: for each attack its six sizes and their ATA; the files are in `folder`."""

    request: CalibrateRequest
    data: DataSet
    folder: str
    found: tuple[Row, ...]

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

    def figure(self) -> Any:
        """Each attack's ATA at its six sizes."""
        from vizrobust.report.understanding_figures import equally_hard_sizes

        return equally_hard_sizes([(row["name"], row["eps"], row["ata"]) for row in self.found])

    def __repr__(self) -> str:
        return f"CalibrationReport({', '.join(row['name'] for row in self.found)} on {self.data.name}, in {self.folder})"


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


# Initial weights first: the figure draws sqrt(d) through the first of them, and the lecture argues for them.
WEIGHTS = {"initial": "_untrained", "trained": ""}  # and how the columns of a row end
SLOPE_MEANING = (
    "slope: of log(L1 norm) over log(d), fitted to all %s networks. Above 0, the same eps promises a\n"
    "larger drop on larger images. The lecture argues for sqrt(d), 0.50, of initial weights."
)


@dataclass(frozen=True, repr=False)
class DimensionReport(Result):
    """The answer to a `DimensionRequest`: the gradient's norm of every network, and how it grows with d."""

    request: DimensionRequest
    data: DataSet
    networks: tuple[Row, ...]

    def slopes(self) -> list[tuple[str, str, Growth]]:
        """Loss, weights and growth, for each loss of the request and for initial and trained weights."""
        pairs = [(loss, weights) for loss in self.request.losses for weights in WEIGHTS]
        return [(loss, weights, growth(self.networks, loss, weights == "trained")) for loss, weights in pairs]

    def rows(self) -> list[Row]:
        return [*self.networks, *self.slope_rows()]

    def slope_rows(self) -> list[Row]:
        about = {"lecture": LECTURE_SLOPE, "n": len(self.networks)}
        return [
            {"loss": loss, "weights": weights, "slope": one.slope, "ci_low": one.ci_low, "ci_high": one.ci_high,
             "factor": one.factor, **about}
            for loss, weights, one in self.slopes()
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        return [self._norms(), self._slopes()]

    def figure(self) -> Any:
        """The gradient's norm over the number of values of an image."""
        from vizrobust.report.first_order_figures import gradient_growth

        return gradient_growth([(f"{loss}, {weights}", one) for loss, weights, one in self.slopes()])

    def __repr__(self) -> str:
        _, weights, one = self.slopes()[0]
        return f"DimensionReport({len(self.networks)} networks; {self.request.losses[0]}, {weights} weights: {one})"

    def _norms(self) -> Table:
        networks, losses = self.networks, self.request.losses
        names = [f"l1_{loss}{end}" for loss in losses for end in WEIGHTS.values()]
        shown = []
        for side in dict.fromkeys(row["side"] for row in networks):
            mine = [row for row in networks if row["side"] == side]
            norms = (f"{_mean(mine, name):.3g}" for name in names)
            shown.append([str(side), str(mine[0]["d"]), percent(_mean(mine, "clean")), *norms])
        header = ["side, px", "d", "clean", *(f"{loss},\n{weights}" for loss in losses for weights in WEIGHTS)]
        seeds, n = len({row["seed"] for row in networks}), networks[0]["n"]
        note = f"means over {seeds} network{'s' if seeds > 1 else ''} of each size and {n} test images; d: values in an image"
        return Table(f"L1 norm of the gradient: {self.request.arch} on {self.data.name}", header, shown, note)

    def _slopes(self) -> Table:
        rows = [
            [loss, weights, f"{one.slope:.2f}", "-" if one.ci_low is None else f"{one.ci_low:.2f} to {one.ci_high:.2f}",
             f"{LECTURE_SLOPE:.2f}"]
            for loss, weights, one in self.slopes()
        ]  # fmt: skip
        header = ["loss", "weights", "slope", "95 % interval", "lecture"]
        return Table("growth with the input dimension d", header, rows, SLOPE_MEANING % len(self.networks))


def dimension(request: DimensionRequest, session: Session) -> Generator[Event, None, DimensionReport]:
    """Train a network at every size and seed, or go on with it; rows are the networks, then the slopes."""
    data = session.dataset(request.data)
    recipe = TrainingRecipe(
        arch=request.arch, data=str(request.data) if isinstance(request.data, str) else data.name,
        attack=_attack(request, data), epochs=request.epochs, batch_size=request.batch_size, lr=request.lr,
        precision=request.precision,
    )  # fmt: skip
    for text in check_sides(request.arch, data, request.sides):
        yield Note(f"note: {text}")
    folder = str(session.out or default_folder("dimension", {"training": repr(recipe), "images": request.images}))
    compute = Compute(session.device, request.precision, recorded_threads(folder) or session.threads)
    yield Note(f"{recipe}\nin {folder}")
    seeds = range(request.seed, request.seed + request.seeds)
    runs = [(side, seed) for side in request.sides for seed in seeds]
    networks: list[Row] = []
    for event in dimension_study(
        recipe, data, request.sides, compute, folder, seeds, request.images, session.argv, wait=session.wait
    ):
        done, note = len(networks) * request.epochs, ""
        if isinstance(event, dict):
            networks.append(event)
            done += request.epochs
        else:
            side, number = runs[len(networks)]
            done += event.epoch - 1
            note = f"{side} px, seed {number}, batch {event.batch} of {event.batches}"
        yield Progress("epochs", done, len(runs) * request.epochs, note)
        if isinstance(event, dict):
            yield event
    report = DimensionReport(request, data, tuple(networks))
    yield from report.slope_rows()
    if request.plot:
        from vizrobust.report.style import save_figure

        save_figure(report.figure(), request.plot, session.argv or repr(request))
        yield Note(f"drawn: {request.plot}")
    return report


def _attack(request: DimensionRequest, data: DataSet) -> Attack | None:
    return configured(PGD(), data.eps, steps=request.steps, eps=request.eps) if request.steps else None


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
