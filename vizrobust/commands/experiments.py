"""`first-order`, `dimension` and `calibrate`: measurements that explain the accuracies of `attack`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from vizrobust.attacks import ATTACKS, BALLS, NAMES, PGD, UNFORESEEN, Attack, Ball, configured
from vizrobust.commands.targets import drawn
from vizrobust.compute import Compute
from vizrobust.data import DataSet, head
from vizrobust.experiments.input_dimension import LECTURE_SLOPE, Growth, check_sides, dimension_study, growth
from vizrobust.experiments.uar_calibration import Plan
from vizrobust.experiments.uar_calibration import calibrate as calibrated
from vizrobust.models import Checkpoint
from vizrobust.requests import ParameterError
from vizrobust.requests.evaluation import CalibrateRequest, DimensionRequest, FirstOrderRequest
from vizrobust.results import Event, Note, Progress, Result, Row, Table, interval_text, percent
from vizrobust.robustness import BATCH_SIZE
from vizrobust.robustness.first_order import FirstOrder
from vizrobust.robustness.first_order import first_order as drops_of
from vizrobust.runs import default_folder
from vizrobust.session import Session
from vizrobust.spec import lookup, parse, vary
from vizrobust.training import TrainingRecipe, recorded_threads

HEADER = ["checkpoint", "loss", "images", "predicted", "FGSM", "PGD", "FGSM /\nlinear", "PGD /\npredicted", "rank"]
MEANING = (
    "Medians over the images that are classified correctly, in logits (margin) or nats of log p (ce).\n"
    "linear: what the gradient promises at FGSM's point; rank: of the prediction with FGSM's drop."
)
SHARES_MEANING = (
    "short: FGSM gets under half of what the gradient promises, PGD does not; the mark of overfitting to\n"
    "one-step attacks. hidden: PGD gets over twice the prediction; the gradient hides the attack. Read it\n"
    "with the margin: cross entropy is flat on images that a network is sure of, and would accuse any."
)


@dataclass(frozen=True, repr=False)
class FirstOrderReport(Result):
    """The answer to a `FirstOrderRequest`: predicted and real drops of each checkpoint and loss."""

    request: FirstOrderRequest
    found: tuple[tuple[Checkpoint, DataSet, FirstOrder], ...]

    def rows(self) -> list[Row]:
        return [_row(self.request, *one) for one in self.found]

    def tables(self) -> list[Table]:
        where = ", ".join(dict.fromkeys(f"{data.name} {self.request.split}, {drops.ball}" for _, data, drops in self.found))
        summaries = [(checkpoint.name, drops.summary()) for checkpoint, _, drops in self.found]
        medians = [
            [name, row["loss"], str(row["n"]), *(_number(row[drop]) for drop in ("predicted", "fgsm", "pgd")),
             _number(row["fgsm_over_linear"]), _number(row["pgd_over_predicted"]), _rank(row["rank_fgsm"])]
            for name, row in summaries
        ]  # fmt: skip
        shares = [[name, row["loss"], *_share(row, "short"), *_share(row, "hidden")] for name, row in summaries]
        undefined = [
            f"{name}, {row['loss']}: outputs are not finite at some point on {row['undefined']} of {row['n']} images"
            for name, row in summaries
            if row["undefined"]
        ]
        title = f"predicted and real drops: {where}, PGD with {self.request.steps} steps"
        header = ["checkpoint", "loss", "short", "95 % interval", "hidden", "95 % interval"]
        return [
            Table(title, HEADER, medians, "\n".join((MEANING, *undefined))),
            Table("images where the gradient does not tell what attacks find", header, shares, SHARES_MEANING),
        ]

    def figure(self) -> Any:
        """Each image's drops in the first of the losses, a panel for each checkpoint."""
        from vizrobust.report.measurement_figures import first_order_scatter

        loss = self.request.losses[0]
        panels = [(checkpoint.name, list(drops.rows())) for checkpoint, _, drops in self.found if drops.loss == loss]
        return first_order_scatter(panels, loss=loss)

    def __repr__(self) -> str:
        return f"FirstOrderReport({len(self.found)} rows of {self.request!r})"


def first_order(request: FirstOrderRequest, session: Session) -> Generator[Event, None, FirstOrderReport]:
    """Predict and measure the drops of every checkpoint of the request, in each of its losses."""
    compute = session.compute(request.precision)
    loaded = session.checkpoints(request.models, request.data)
    jobs = [(*pair, head(pair[1].split(request.split), request.images), _ball(request, pair[1])) for pair in loaded]
    found: list[tuple[Checkpoint, DataSet, FirstOrder]] = []
    for checkpoint, data, images, ball in jobs:
        size = request.batch_size or min(BATCH_SIZE, max(len(images), 1))
        for loss in request.losses:
            try:
                drops = drops_of(checkpoint.net(), images, ball, compute, loss, request.steps, request.seed, size)
            except ValueError as error:
                raise ValueError(f"{checkpoint.name}: {error}") from error
            found.append((checkpoint, data, drops))
            session.progress("first-order", len(found), len(jobs) * len(request.losses))
            yield _row(request, *found[-1])
    report = FirstOrderReport(request, tuple(found))
    others = "; the loss ce draws log p" if request.loss == "both" else ""
    yield from drawn(report, request, session, f" ({request.losses[0]}{others})")
    return report


def _row(request: FirstOrderRequest, checkpoint: Checkpoint, data: DataSet, drops: FirstOrder) -> Row:
    about = {"checkpoint": checkpoint.name, "data": data.name, "split": request.split}
    return {**about, **drops.summary(), "drops": list(drops.rows())}


def _ball(request: FirstOrderRequest, data: DataSet) -> Ball:
    kind = lookup(BALLS, request.norm or "Linf", "norm")
    if request.eps is None and data.eps is None:
        raise ParameterError("%s has no usual eps; give {eps}", data.name)
    if request.eps is None and kind.__name__ != "Linf":
        raise ParameterError("{norm} %s needs {eps}: the radius of %s, %g, is an L-inf one", kind.__name__, data.name, data.eps)
    return kind(eps=data.eps if request.eps is None else request.eps)


def _number(value: float | None) -> str:
    """Three digits, and more before the point: ratios can be huge where there is hardly any gradient."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _rank(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(row: Row, name: str) -> list[str]:
    return [percent(row[name]), interval_text(row[f"{name}_ci_low"], row[f"{name}_ci_high"])]


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
        from vizrobust.report.measurement_figures import equally_hard_sizes

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
        from vizrobust.report.measurement_figures import gradient_growth

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
    attack = configured(PGD(), data.eps, steps=request.steps, eps=request.eps) if request.steps else None
    recipe = TrainingRecipe(
        arch=request.arch, data=str(request.data) if isinstance(request.data, str) else data.name,
        attack=attack, epochs=request.epochs, batch_size=request.batch_size, lr=request.lr,
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
    yield from drawn(report, request, session)
    return report


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
