"""`attack --suite`: attacks that training has not used, and common corruptions."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vizrobust.attacks import PGD, UNFORESEEN, Attack, ball_of, configured, family, parse_attack, with_default_eps
from vizrobust.attacks.unforeseen import source
from vizrobust.commands.targets import Target
from vizrobust.intervals import share, wilson
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.results import Event, Note, Row, Table, interval_text, percent
from vizrobust.robustness import RobustAccuracy
from vizrobust.robustness.accuracy import CLEAN
from vizrobust.robustness.corruptions import COMMON, SEVERITIES
from vizrobust.robustness.suites import Calibration, calibration_for, corrupted, mean_corruption_error, mean_uar, unforeseen_ratio
from vizrobust.session import Session
from vizrobust.spec import vary
from vizrobust.training import attacks_seen

STEPS = 50
# Balls that training seldom uses, at the third of six calibrated sizes, which is as hard as L-inf at a medium size.
OTHER_BALLS, MEDIUM = ("L2", "L1"), 2


@dataclass(frozen=True)
class UnforeseenAccuracies:
    """Accuracy under attacks seen in training beside attacks that are not, their gap, and UAR."""

    found: tuple[tuple[Target, tuple[Row, ...]], ...]
    evaluations: tuple[tuple[Target, RobustAccuracy], ...] = ()

    def rows(self) -> list[Row]:
        return [row for target, mine in self.found for row in (*mine, _summary_row(target, mine))]

    def tables(self) -> list[Table]:
        return [*(_table(target, mine) for target, mine in self.found), self._comparison()]

    def figure(self) -> Any:
        from vizrobust.report.robustness_figures import accuracy_under_attacks

        drawn = [(target.name, [{**row, "attack": row["kind"]} for row in mine]) for target, mine in self.found]
        return accuracy_under_attacks(drawn)

    def _comparison(self) -> Table:
        rows, sets = [], set()
        for target, mine in self.found:
            one = summary(mine)
            gap = "-" if one["gap"] is None else f"{100 * one['gap']:+.1f}"
            numbers = ["-" if one[name] is None else f"{one[name]:.2f}" for name in ("ratio", "mean_uar")]
            rows.append([target.name, percent(one["foreseen"]), percent(one["unforeseen"]), gap, *numbers])
            sets |= {", ".join(one["mean_uar_of"])} if one["mean_uar_of"] else set()
        header = ["checkpoint", "seen in training", "unforeseen", "gap", "unforeseen / seen", "mean UAR"]
        note = f"means over attacks; mean UAR over {' or '.join(sorted(sets))}" if sets else "means over attacks"
        return Table("attacks seen in training against unforeseen attacks", header, rows, note)


def unforeseen(
    request: AttackRequest, session: Session, targets: Sequence[Target]
) -> Generator[Event, None, UnforeseenAccuracies]:
    """Evaluate each checkpoint under the attacks of its training and under unforeseen ones."""
    found = []
    for target in targets:
        info = target.checkpoint.info
        trained = attacks_seen(info.training)
        known = {family(attack) for attack in trained}
        mine: list[Row] = []
        for attack in _attacks(request, trained, target):
            calibration = calibration_for(target.data.name, family(attack), request.calibration)
            mine.append({
                "checkpoint": target.name, "data": target.data.name, "kind": family(attack),
                # Standard training has seen no attack; of a network whose training is unknown nobody can say.
                "foreseen": family(attack) in known if info.training else None,
                **_row(request, session, target, attack, calibration),
            })  # fmt: skip
            yield mine[-1]
        yield _summary_row(target, mine)
        sources = dict.fromkeys(source(row["kind"], target.data.shape) for row in mine if row["kind"].split("-")[0] in UNFORESEEN)
        yield Note("strengths: " + "; ".join(sources))
        found.append((target, tuple(mine)))
    return UnforeseenAccuracies(tuple(found))


def summary(rows: Sequence[Row]) -> Row:
    """Mean accuracy under the attacks of training and under the others, their gap and ratio, and the mean UAR."""
    groups = {flag: [row["accuracy"] for row in rows if row["foreseen"] is flag] for flag in (True, False)}
    seen, other = (_mean(groups[flag]) for flag in (True, False))
    both = seen is not None and other is not None
    scores = {row["kind"]: row["uar"] for row in rows if row["uar"] is not None}
    trained = [row["kind"] for row in rows if row["foreseen"]]
    unseen = {name for name in scores if name not in trained}
    mean, names = mean_uar(scores, trained) if unseen else (None, ())
    return {
        "foreseen": seen,
        "unforeseen": other if any(row["foreseen"] is not None for row in rows) else _mean([row["accuracy"] for row in rows]),
        "gap": seen - other if both else None,  # type: ignore[operator]
        "ratio": unforeseen_ratio(seen, other) if both else None,  # type: ignore[arg-type]
        "mean_uar": mean,
        "mean_uar_of": list(names),
    }


def _summary_row(target: Target, rows: Sequence[Row]) -> Row:
    return {"checkpoint": target.name, "data": target.data.name, **summary(rows)}


def _attacks(request: AttackRequest, trained: Sequence[Attack], target: Target) -> Iterator[Attack]:
    """Those asked for; else PGD in the balls of training (or the data set's), then all unforeseen ones."""
    steps = STEPS if request.steps is None else request.steps
    data, norm, eps = target.data, request.norm, request.eps
    if request.attacks:
        for one in request.attacks:
            attack = configured(
                parse_attack(one, typed=True) if isinstance(one, str) else one, data.eps, norm, eps=eps, steps=steps
            )
            yield with_default_eps(attack, data.shape) if attack.threat_model()[1] is None else attack
        return
    balls = {type(ball).__name__: ball for attack in trained if (ball := ball_of(attack)) is not None}
    if norm is not None or not balls:
        yield configured(PGD(steps=steps), data.eps, norm, eps=eps)
    else:
        yield from (configured(PGD(steps=steps, ball=ball), data.eps, eps=eps) for ball in balls.values())
    for name in OTHER_BALLS:
        calibration = calibration_for(data.name, name, request.calibration)
        if name not in balls and name != norm and calibration is not None:
            yield vary(calibration.attacks()[MEDIUM], steps=steps)
    for make in UNFORESEEN.values():
        yield with_default_eps(make(steps=steps), data.shape)


def _row(request: AttackRequest, session: Session, target: Target, attack: Attack, calibration: Calibration | None) -> Row:
    """Accuracy untargeted, by the published protocol, and UAR where there is a calibration."""
    row = {**target.evaluated(request, session, attack).row(), "uar": None, "calibration": None}
    if hasattr(attack, "targeted"):
        last = target.evaluated(request, session, vary(attack, targeted=True), stop="last")
        low, high = wilson(int(last.robust.sum()), len(last.robust))
        row |= {"published_protocol": {"accuracy": share(last.robust), "ci_low": low, "ci_high": high}}
    if calibration is not None:
        how: Row = {"stop": "last"} if calibration.published else {}
        accuracies = [share(target.evaluated(request, session, one, **how).robust) for one in calibration.attacks()]
        row |= {
            "uar": calibration.uar(accuracies), "uar_eps": list(calibration.eps), "uar_accuracies": accuracies,
            "calibration": calibration.provenance,
        }  # fmt: skip
    return row


def _table(target: Target, rows: Sequence[Row]) -> Table:
    shown = []
    for row in rows:
        last = row.get("published_protocol", {}).get("accuracy")
        shown.append([
            row["kind"], {True: "seen", False: "unforeseen", None: "-"}[row["foreseen"]], f"{row['eps']:.3g}",
            percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"]),
            percent(last), "-" if row["uar"] is None else f"{row['uar']:.2f}",
        ])  # fmt: skip
    header = ["attack", "training", "eps", "untargeted", "95 % interval", "UAR protocol", "UAR"]
    title = f"{target.name}, {rows[0]['n']} images of {target.data.name}, clean {percent(rows[0]['clean'])}"
    note = "UAR protocol: towards a random wrong class, judged at the last step; eps in each attack's own units"
    if any(row["uar"] is None for row in rows):
        missing = ", ".join(row["kind"] for row in rows if row["uar"] is None)
        note += f"; no UAR without a calibration ({missing}: vizrobust calibrate makes one)"
    for text in dict.fromkeys(row["calibration"] for row in rows if row["calibration"]):
        note += f". Calibration: {text}"
    return Table(title, header, shown, note)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class CorruptionAccuracies:
    """Accuracy by corruption and severity, and the mean corruption error; the first checkpoint is the baseline."""

    found: tuple[tuple[Target, tuple[Row, ...]], ...]
    evaluations: tuple[tuple[Target, RobustAccuracy], ...] = ()

    def errors(self) -> list[tuple[Target, Any]]:
        base = self.found[0][1] if len(self.found) > 1 else None
        return [(target, mean_corruption_error(rows, base)) for target, rows in self.found]

    def rows(self) -> list[Row]:
        rows = [_named(target, row) for target, mine in self.found for row in mine]
        baseline = self.found[0][0].name if len(self.found) > 1 else None
        return rows + [{"checkpoint": target.name, "baseline": baseline, **vars(error)} for target, error in self.errors()]

    def tables(self) -> list[Table]:
        return [*(self._accuracies(*one) for one in self.found), self._errors()]

    def figure(self) -> Any:
        from vizrobust.report.robustness_figures import corruption_curves

        curves = [(target.name, [row for row in rows if row["severity"]]) for target, rows in self.found]
        clean = {target.name: 1 - error.clean for target, error in self.errors()}
        return corruption_curves(curves, clean=clean)

    def _accuracies(self, target: Target, rows: Sequence[Row]) -> Table:
        accuracy = {(row["corruption"], row["severity"]): row["accuracy"] for row in rows}
        notes = {row["corruption"]: row["note"] for row in rows if row["note"]}
        shown = []
        for name in COMMON:
            values = [accuracy[name, severity] for severity in SEVERITIES]
            mean = percent(sum(values) / len(values))
            shown.append([name + (" *" if name in notes else ""), *(percent(value) for value in values), mean])
        clean = percent(accuracy[CLEAN, 0])
        title = f"{target.name}: accuracy by corruption and severity, {rows[0]['n']} images, clean {clean}"
        note = "; ".join(f"* {text}" for text in dict.fromkeys(notes.values()))
        return Table(title, ["corruption", *(str(severity) for severity in SEVERITIES), "mean"], shown, note)

    def _errors(self) -> Table:
        errors = self.errors()
        rows = [
            [target.name, percent(error.clean), percent(error.mean), percent(error.mce), percent(error.relative_mce)]
            for target, error in errors
        ]
        header = ["checkpoint", "clean error", "mean error", "mCE", "relative mCE"]
        note = (
            f"mCE: relative to {errors[0][0].name}"
            if len(errors) > 1
            else "mCE needs a second checkpoint to relate to: the first one is the baseline"
        )
        return Table("mean corruption error", header, rows, "; ".join(filter(None, [note, errors[0][1].note])))


def corruptions(
    request: AttackRequest, session: Session, targets: Sequence[Target]
) -> Generator[Event, None, CorruptionAccuracies]:
    """Evaluate every checkpoint on every common corruption; rows that are in the folder are not computed again."""
    found = []
    compute = session.compute(request.precision)
    total = 1 + len(COMMON) * len(SEVERITIES)
    for target in targets:
        own, n = target.checkpoint.id, len(target.images)
        mine = [row for row in target.folder.rows() if row["checkpoint"] == own and row["n"] == n]
        yield from (_named(target, row) for row in mine)
        done = {(row["corruption"], row["severity"]) for row in mine}
        for row in corrupted(
            target.checkpoint.net(), target.images, compute, seed=request.seed, batch_size=target.batch_size, done=done
        ):
            mine.append(target.folder.add({"checkpoint": own, **row}))
            session.progress(f"{target.name}  corruptions", len(mine), total)
            yield _named(target, mine[-1])
        constant = next((row["constant_prediction"] for row in mine if "constant_prediction" in row), None)
        if constant is not None:
            target.facts["constant"] = target.data.classes[constant]
        found.append((target, tuple(mine)))
    answer = CorruptionAccuracies(tuple(found))
    yield from answer.rows()[sum(len(mine) for _, mine in found) :]
    return answer


def _named(target: Target, row: Row) -> Row:
    return {"data": target.data.name, **row, "checkpoint": target.name}
