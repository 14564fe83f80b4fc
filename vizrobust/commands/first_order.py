"""`first-order`: what the gradient at an image promises an attack, against what attacks really cause."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from vizrobust.attacks import BALLS, Ball
from vizrobust.data import DataSet, head
from vizrobust.models import Checkpoint
from vizrobust.requests import ParameterError
from vizrobust.requests.evaluation import FirstOrderRequest
from vizrobust.results import Event, Note, Result, Row, Table, interval_text, percent
from vizrobust.robustness import BATCH_SIZE
from vizrobust.robustness.first_order import FirstOrder
from vizrobust.robustness.first_order import first_order as drops_of
from vizrobust.session import Session
from vizrobust.spec import lookup

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
        from vizrobust.report.first_order_figures import first_order_scatter

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
    if request.plot:
        from vizrobust.report.style import save_figure

        save_figure(report.figure(), request.plot, session.argv or repr(request))
        others = "; the loss ce draws log p" if request.loss == "both" else ""
        yield Note(f"drawn: {request.plot} ({request.losses[0]}{others})")
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
