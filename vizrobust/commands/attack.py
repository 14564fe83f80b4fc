"""`attack`: accuracy under attack with intervals; the modes of the command, and what they share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vizrobust.attacks import Attack
from vizrobust.commands.attack_modes import judged, keep, minimal_perturbations
from vizrobust.commands.suites import corruptions, unforeseen
from vizrobust.commands.targets import Answer, Target, attacks_for, drawn, open_targets
from vizrobust.intervals import per_class, wilson, worst_class
from vizrobust.requests import ParameterError
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.results import Event, Note, Result, Row, Table, interval_text, percent
from vizrobust.robustness import RobustAccuracy, examples
from vizrobust.session import Session


@dataclass(frozen=True, repr=False)
class AttackReport(Result):
    """The answer to an `AttackRequest`; in a notebook it shows its tables."""

    request: AttackRequest
    answer: Answer
    remarks: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[RobustAccuracy, ...]:
        """One evaluation for each checkpoint and attack, in the order of the request."""
        return tuple(found for _, found in self.answer.evaluations)

    def rows(self) -> list[Row]:
        return self.answer.rows()

    def tables(self) -> list[Table]:
        first, *others = self.answer.tables()
        return [replace(first, note=". ".join(filter(None, (first.note, *self.remarks)))), *others]

    def figure(self) -> Any:
        """Accuracy over steps, eps, K, corruptions or attacks, as the request asks, as a matplotlib figure."""
        return self.answer.figure()

    def __repr__(self) -> str:
        return f"AttackReport({len(self.rows())} rows of {self.request!r})"


def attack(request: AttackRequest, session: Session) -> Generator[Event, None, AttackReport]:
    """Evaluate every checkpoint of the request under every attack, in the mode that the request names."""
    targets = open_targets(request, session, "corruptions" if request.suite == "corruptions" else "attack")
    answer: Answer
    if request.suite is not None:
        answer = yield from (corruptions if request.suite == "corruptions" else unforeseen)(request, session, targets)
    elif request.from_file:
        answer = yield from judged(request, session, targets)
    elif request.minimal or request.curve == "eps":
        answer = yield from minimal_perturbations(request, session, targets)
    else:
        answer = yield from _accuracies(request, session, targets)
    yield from drawn(answer, request, session)
    if request.show and session.compute(request.precision).processes.main:
        yield from _show(request.show, request, session, answer, session.argv or repr(request))
    remarks = tuple(remark for target in targets for remark in target.remarks)
    if not answer.evaluations:  # those have warnings of their own
        yield from (Note(f"note: {remark}") for remark in remarks)
    return AttackReport(request, answer, remarks)


@dataclass(frozen=True)
class Accuracies:
    """Accuracy under each attack, with intervals, costs, curves over steps and accuracy by class."""

    request: AttackRequest
    evaluations: tuple[tuple[Target, RobustAccuracy], ...]
    # With `save_png` of the images in 8 bits how many are classified correctly, and how many there are.
    eight_bit: tuple[int, int] | None = None

    def rows(self) -> list[Row]:
        found = [row for each in self.evaluations for row in _accuracy_rows(self.request, *each, self.eight_bit)]
        for target, result in self.evaluations if self.request.per_class else ():
            about = {"checkpoint": target.name, "attack": repr(result.attack)}
            found += [{**about, **row} for row in _by_class(target, result)]
        return found

    def tables(self) -> list[Table]:
        by_class = [_class_table(*one) for one in self.evaluations] if self.request.per_class else []
        curves = [_curve_table(*one) for one in self.evaluations] if self.request.every_step else []
        return [self._accuracy_table(), *self._component_tables(), *curves, *by_class]

    def figure(self) -> Any:
        from vizrobust.report import attack_figures
        from vizrobust.report.robustness_figures import accuracy_under_attacks

        if self.request.every_step:
            for _, result in self.evaluations:
                if len(set(result.components)) > 1:
                    raise ParameterError(
                        "%s has components of different steps; {curve} steps needs one, such as pgd", result.attack
                    )
            curves = [(f"{target.name}, {result.attack}", result.curve()) for target, result in self.evaluations]
            return attack_figures.accuracy_over_attack_steps(curves)
        by_attack: dict[str, list[Row]] = {}
        by_name: dict[str, list[Row]] = {}
        for target, result in self.evaluations:
            row = {**result.row(), "steps": target.checkpoint.info.attack_steps, "name": target.name}
            by_attack.setdefault(repr(result.attack), []).append(row)
            by_name.setdefault(target.name, []).append(row)
        known = {row["steps"] for rows in by_name.values() for row in rows}
        if None in known or len(known) == 1:
            return accuracy_under_attacks(list(by_name.items()))
        return attack_figures.accuracy_over_training_steps(list(by_attack.items()))

    def _accuracy_table(self) -> Table:
        rows = []
        for target, result in self.evaluations:
            row = result.row()
            note = f"  ({row['note']}: {row['max_norm']:.3g})" if row["note"] else ""
            rows.append([
                target.name, row["attack"] + note, percent(row["clean"]), percent(row["accuracy"]),
                interval_text(row["ci_low"], row["ci_high"]), str(row["n"]), f"{row['forward_passes']:g}",
                f"{row['gradient_passes']:g}", f"{row['seconds']:.1f}", *self._after_rounding(),
            ])  # fmt: skip
        header = ["checkpoint", "attack", "clean", "accuracy", "95 % interval", "images", "forward", "gradient", "seconds"]
        header += ["after 8-bit rounding"] if self.eight_bit else []
        names = ", ".join(dict.fromkeys(f"{target.data.name} {self.request.split}" for target, _ in self.evaluations))
        note = "forward, gradient: passes per image; an image on which the attack has succeeded needs no more"
        return Table(f"accuracy under attack, first images of {names}", header, rows, note)

    def _after_rounding(self) -> list[str]:
        if self.eight_bit is None:
            return []
        return [f"{percent(self.eight_bit[0] / self.eight_bit[1])} ({interval_text(*wilson(*self.eight_bit))})"]

    def _component_tables(self) -> list[Table]:
        """For attacks of several components: on how many images each was the first to succeed."""
        found = []
        for text in dict.fromkeys(repr(result.attack) for _, result in self.evaluations):
            mine = [(target, result) for target, result in self.evaluations if repr(result.attack) == text]
            components = list(mine[0][1].successes_by_component())
            if len(components) < 2:
                continue
            rows = []
            for target, result in mine:
                counts = [str(count) for count in result.successes_by_component().values()]
                rows.append([target.name, str(int((~result.correct).sum())), *counts, str(int(result.robust.sum()))])
            header = ["checkpoint", "clean errors", *components, "robust"]
            found.append(Table(f"first component to succeed: {text}", header, rows))
        return found


def _accuracy_rows(
    request: AttackRequest, target: Target, result: RobustAccuracy, eight_bit: tuple[int, int] | None = None
) -> list[Row]:
    rows: list[Row] = [{"checkpoint": target.name, "data": target.data.name, "split": request.split, **result.row()}]
    if eight_bit is not None:
        low, high = wilson(*eight_bit)
        rows[0] |= {"eight_bit": eight_bit[0] / eight_bit[1], "eight_bit_ci_low": low, "eight_bit_ci_high": high}
    about = {"checkpoint": target.name, "attack": repr(result.attack), "curve": "steps"}
    return rows + [{**about, **row} for row in (result.curve() if request.every_step else ())]


def _by_class(target: Target, result: RobustAccuracy) -> list[Row]:
    found = per_class(result.robust, target.images.labels[result.indices], target.data.classes)
    return [one.row() for one in found]


def _curve_table(target: Target, result: RobustAccuracy) -> Table:
    rows = [[str(row["steps"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"])] for row in result.curve()]
    return Table(f"{target.name}, {result.attack}: accuracy after so many steps", ["steps", "accuracy", "95 % interval"], rows)


def _class_table(target: Target, result: RobustAccuracy) -> Table:
    found = sorted(_by_class(target, result), key=lambda row: 2 if row["accuracy"] is None else row["accuracy"])
    rows = [
        [str(row["class"]), str(row["n"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"])]
        for row in found
    ]
    worst = worst_class(result.robust, target.images.labels[result.indices], target.data.classes).row()
    interval = interval_text(worst["ci_low"], worst["ci_high"])
    note = f"worst class: {worst['class']}, {percent(worst['accuracy'])}; the lowest true accuracy is in {interval}"
    return Table(f"{target.name} by class: {result.attack}", ["class", "images", "accuracy", "95 % interval"], rows, note)


def _accuracies(request: AttackRequest, session: Session, targets: Sequence[Target]) -> Generator[Event, None, Accuracies]:
    found: list[tuple[Target, RobustAccuracy]] = []
    eight_bit: tuple[int, int] | None = None
    for target in targets:
        for one in (yield from attacks_for(request, target.data, ("pgd",))):
            if request.until_width is None:
                result = target.evaluated(request, session, one, all_runs=request.every_step)
            else:
                result = yield from _until_narrow(request.until_width, request, session, target, one)
            found.append((target, result))
            yield from (Note(f"note: {target.name}, {one!r}: {warning}") for warning in result.warnings)
            if request.save or request.save_png:
                eight_bit = yield from keep(request, session, target, result)
            yield from _accuracy_rows(request, target, result, eight_bit)
    answer = Accuracies(request, tuple(found), eight_bit)
    yield from answer.rows()[sum(len(_accuracy_rows(request, *one)) for one in found) :]
    return answer


def _until_narrow(
    width: float, request: AttackRequest, session: Session, target: Target, one: Attack
) -> Generator[Event, None, RobustAccuracy]:
    """The outcome on one batch of images more at a time, each told, until its interval is at most ± `width` points."""
    for count in range(target.batch_size, len(target.images) + target.batch_size, target.batch_size):
        result = target.evaluated(request, session, one, indices=range(min(count, len(target.images))))
        low, high = result.interval
        wide = 50 * (high - low)
        yield Note(f"{target.name}, {one!r}: {percent(result.accuracy)} ± {wide:.1f} after {len(result.indices)} images")
        if wide <= width:
            break
    else:
        if len(result.indices) == request.images:
            yield Note(
                ParameterError("the interval is wider than ± %g points on all {images} %s; give more", width, request.images)
            )
        else:
            yield Note(f"the interval is wider than ± {width:g} points on all {len(result.indices)} images of the split")
    return result


def _show(path: str, request: AttackRequest, session: Session, answer: Answer, command: str) -> Generator[Event, None, None]:
    """Draw the first images on which the attack succeeds (the first images at all, where there are none)."""
    from vizrobust.report import attack_figures

    target, result = answer.evaluations[0]
    if len(answer.evaluations) > 1:
        yield Note(f"only the first result is drawn: {target.name}, {result.attack}")
    split, compute = target.data.split(request.split), session.compute(request.precision)
    shown = examples(target.net(), result, split, compute, request.seed)
    attack_figures.adversarial_examples(
        path, shown.x, shown.adv, shown.labels, shown.clean_probs, shown.adv_probs,
        target.data.classes, repr(result.attack), target.name, command=command,
    )  # fmt: skip
    yield Note(f"drawn: {path}")
