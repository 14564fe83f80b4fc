"""`vizrobust attack --suite unforeseen`: attacks that training has used beside attacks that it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vizrobust.attacks import PGD, UNFORESEEN, Attack, ball_of, configured, family, parse_attack, threat_model, with_default_eps
from vizrobust.attacks.unforeseen import source
from vizrobust.cli.attacking import Evaluations
from vizrobust.cli.output import command_line, json_row, percent, say, table
from vizrobust.intervals import share, wilson
from vizrobust.robustness.unforeseen import Calibration, calibration_for, foreseen_ratio, mean_uar
from vizrobust.spec import vary
from vizrobust.training import seen

if TYPE_CHECKING:
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint
    from vizrobust.robustness import RobustAccuracy

STEPS = 50
# Balls that training seldom uses, at the third of six calibrated sizes, which is as hard as L-inf at a medium size.
OTHER_BALLS, MEDIUM = ("L2", "L1"), 2

Row = dict[str, Any]


def unforeseen(
    checkpoints: Sequence[tuple[Checkpoint, DataSet]], images: Mapping[str, Split], open_: Callable[[DataSet], Evaluations],
    attacks: Sequence[str], plot: str | None, as_json: bool, calibrations: str | None,
    *, norm: str | None, eps: float | None, steps: int | None,
) -> None:  # fmt: skip
    """Evaluate each checkpoint under foreseen and unforeseen attacks; print them side by side, the gap and UAR."""
    found: list[tuple[Checkpoint, list[Row]]] = []
    for checkpoint, loaded in checkpoints:
        trained = seen(checkpoint.info.training)
        known = {family(attack) for attack in trained}
        evaluated = partial(open_(loaded).of, checkpoint, images=images[checkpoint.id])
        rows = []
        for attack in _attacks(attacks, trained, loaded, calibrations, norm, eps, steps):
            calibration = calibration_for(loaded.name, family(attack), calibrations)
            rows.append({
                "checkpoint": checkpoint.name, "data": loaded.name, "kind": family(attack),
                # Standard training has foreseen nothing; of a network whose training is unknown nobody can say.
                "foreseen": family(attack) in known if checkpoint.info.training else None, **_row(attack, evaluated, calibration),
            })  # fmt: skip
            if as_json:
                json_row(rows[-1])
        found.append((checkpoint, rows))
        if as_json:
            json_row({"checkpoint": checkpoint.name, "data": loaded.name, **summary(rows)})
        else:
            _print(checkpoint, loaded, rows)
    if not as_json:
        _compare(found)
    if plot:
        from vizrobust.report.robustness_figures import trained_and_unforeseen_attacks

        drawn = [(checkpoint.name, [{**row, "attack": row["kind"]} for row in rows]) for checkpoint, rows in found]
        trained_and_unforeseen_attacks(plot, drawn, command_line())
        say(f"drawn: {plot}")


def summary(rows: Sequence[Row]) -> Row:
    """Mean accuracy under the attacks of training and under the others, their gap and ratio, and the mean UAR."""
    groups = {flag: [row["accuracy"] for row in rows if row["foreseen"] is flag] for flag in (True, False)}
    means = {flag: sum(values) / len(values) if values else None for flag, values in groups.items()}
    foreseen, other = means[True], means[False]
    both = foreseen is not None and other is not None
    scores = {row["kind"]: row["uar"] for row in rows if row["uar"] is not None}
    trained = [row["kind"] for row in rows if row["foreseen"]]
    unseen = {name for name in scores if name not in trained}
    mean, names = mean_uar(scores, trained) if unseen else (None, ())
    return {
        "foreseen": foreseen,
        "unforeseen": other if any(row["foreseen"] is not None for row in rows) else _mean([row["accuracy"] for row in rows]),
        "gap": foreseen - other if both else None,  # type: ignore[operator]
        "ratio": foreseen_ratio(foreseen, other) if both else None,  # type: ignore[arg-type]
        "mean_uar": mean,
        "mean_uar_of": list(names),
    }


def _attacks(
    texts: Sequence[str], trained: Sequence[Attack], data: DataSet, calibrations: str | None,
    norm: str | None, eps: float | None, steps: int | None,
) -> Iterator[Attack]:  # fmt: skip
    """Those asked for; else PGD in the balls of training (or the data set's), then all that are unforeseen."""
    steps = STEPS if steps is None else steps
    if texts:
        for text in texts:
            attack = configured(parse_attack(text), data.eps, norm, eps=eps, steps=steps)
            yield with_default_eps(attack, data.shape) if threat_model(attack)[1] is None else attack
        return
    balls = {type(ball).__name__: ball for attack in trained if (ball := ball_of(attack)) is not None}
    if norm is not None or not balls:
        yield configured(PGD(steps=steps), data.eps, norm, eps=eps)
    else:
        yield from (configured(PGD(steps=steps, ball=ball), data.eps, eps=eps) for ball in balls.values())
    for name in OTHER_BALLS:
        calibration = calibration_for(data.name, name, calibrations)
        if name not in balls and name != norm and calibration is not None:
            yield vary(calibration.attacks()[MEDIUM], steps=steps)
    for make in UNFORESEEN.values():
        yield with_default_eps(make(steps=steps), data.shape)


def _row(attack: Attack, evaluated: Callable[..., RobustAccuracy], calibration: Calibration | None) -> Row:
    """Accuracy untargeted, by the published protocol, and UAR where there is a calibration."""
    found = evaluated(attack=attack)
    row = {**found.row(), "uar": None, "calibration": None}
    if hasattr(attack, "targeted"):
        last = evaluated(attack=vary(attack, targeted=True), stop="last")
        low, high = wilson(int(last.robust.sum()), len(last.robust))
        row |= {"published_protocol": {"accuracy": share(last.robust), "ci_low": low, "ci_high": high}}
    if calibration is not None:
        how: Row = {"stop": "last"} if calibration.published else {}
        sizes = [evaluated(attack=one, **how) for one in calibration.attacks()]
        accuracies = [share(one.robust) for one in sizes]
        row |= {
            "uar": calibration.uar(accuracies), "uar_eps": list(calibration.eps), "uar_accuracies": accuracies,
            "calibration": calibration.provenance,
        }  # fmt: skip
    return row


def _print(checkpoint: Checkpoint, data: DataSet, rows: Sequence[Row]) -> None:
    shown = []
    for row in rows:
        last = row.get("published_protocol", {}).get("accuracy")
        shown.append([
            row["kind"], {True: "foreseen", False: "unforeseen", None: "-"}[row["foreseen"]], f"{row['eps']:.3g}",
            percent(row["accuracy"]), f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}",
            percent(last), "-" if row["uar"] is None else f"{row['uar']:.2f}",
        ])  # fmt: skip
    header = ["attack", "training", "eps", "untargeted", "95 % interval", "targeted, last", "UAR"]
    n, clean = rows[0]["n"], percent(rows[0]["clean"])
    title = f"{checkpoint.name}, {n} images of {data.name}, clean {clean}"
    note = "targeted, last: the published protocol, a random wrong class, the last point decides; eps in each attack's own units"
    if any(row["uar"] is None for row in rows):
        missing = ", ".join(row["kind"] for row in rows if row["uar"] is None)
        note += f"; no UAR without a calibration ({missing}: vizrobust calibrate makes one)"
    for text in dict.fromkeys(row["calibration"] for row in rows if row["calibration"]):
        note += f". Calibration: {text}"
    table(title, header, shown, note)
    sources = dict.fromkeys(source(row["kind"], data.shape) for row in rows if row["kind"].split("-")[0] in UNFORESEEN)
    say("strengths: " + "; ".join(sources))


def _compare(found: Sequence[tuple[Checkpoint, Sequence[Row]]]) -> None:
    rows, sets = [], set()
    for checkpoint, mine in found:
        one = summary(mine)
        gap = "-" if one["gap"] is None else f"{100 * one['gap']:+.1f}"
        numbers = ["-" if one[name] is None else f"{one[name]:.2f}" for name in ("ratio", "mean_uar")]
        rows.append([checkpoint.name, percent(one["foreseen"]), percent(one["unforeseen"]), gap, *numbers])
        sets |= {", ".join(one["mean_uar_of"])} if one["mean_uar_of"] else set()
    header = ["checkpoint", "foreseen", "unforeseen", "gap", "unforeseen / foreseen", "mean UAR"]
    note = f"means over attacks; mean UAR over {' or '.join(sorted(sets))}" if sets else "means over attacks"
    table("foreseen against unforeseen attacks", header, rows, note)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
