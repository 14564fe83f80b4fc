"""`masking`: whether gradients are masked, so that a robust accuracy cannot be believed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vizrobust.attacks import BALLS, NAMES, PGD, Attack, AutoAttack, Ball, ball_of, configured, parse_attack
from vizrobust.commands.targets import Target, open_targets
from vizrobust.data import DataSet, head
from vizrobust.intervals import share, wilson
from vizrobust.models import Checkpoint
from vizrobust.requests.evaluation import MaskingRequest
from vizrobust.results import Event, Note, Progress, Result, Row, Table, percent
from vizrobust.robustness import PartialResult
from vizrobust.robustness.evaluation_runs import evaluate_in_folder
from vizrobust.robustness.masking import (
    CHECKS,
    DECIDING,
    AttackBudget,
    Check,
    Diagnosis,
    MaskingAttacks,
    NetworkUnderTest,
    Verdict,
    claims_of,
    confidence_of,
    diagnose,
    diagnosis_of,
    extension_of,
)
from vizrobust.session import Session
from vizrobust.spec import lookup, named, parse
from vizrobust.training import attacks_seen

BATCH_SIZE = 50
# How many times as many images as asked for are taken where the verdict depends on it, and how often a check is looked at.
# Each look gets its share of the 5 % error: of three looks, none could call 0 of 200 images certainly less than 2 %.
MOST, LOOKS = 5, 2
MARKS = {True: "YES", False: "no", None: "-"}


@dataclass(frozen=True, repr=False)
class MaskingDiagnosis(Result):
    """The diagnosis of one checkpoint: its `verdict`, whose `sentence` says it all, and the `checks` with their evidence.

    `ok` is True for sound gradients (also of a network that is not robust), False for masked ones, None for undecided.
    `survives` tells by an attack's name which of the images asked for it leaves, (asked,) bool; see `MaskingAttacks`.
    Checks that those left open were done on more images, `n` at the most, with the attacks in `extended`.
    """

    target: Target
    attacks: MaskingAttacks
    diagnosis: Diagnosis
    split: str
    asked: int
    extended: Mapping[str, MaskingAttacks] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many images the check that took most of them looked at."""
        return max(attacks.n for attacks in (self.attacks, *self.extended.values()))

    @property
    def verdict(self) -> Verdict:
        return self.diagnosis.verdict

    @property
    def checks(self) -> tuple[Check, ...]:
        return self.diagnosis.checks

    @property
    def survives(self) -> Any:
        return self.attacks.survives

    @property
    def ok(self) -> bool | None:
        return None if self.verdict.undecided else not self.verdict.masked

    def rows(self) -> list[Row]:
        about = {"checkpoint": self.target.name, "data": self.target.data.name, "split": self.split, "n": self.n}
        return [{**about, "asked": self.asked, "norm": type(self.attacks.ball).__name__, **self.diagnosis.row()}]

    def tables(self) -> list[Table]:
        """The checks: those that decide the verdict first, what else was seen below a line."""
        where = f"{self.target.name} on {self.target.data.name} {self.split}"
        images = f"{self.n} images" if self.n == self.attacks.n else f"{self.attacks.n} to {self.n} images"
        return [checks_table(f"{where}, {images}, {self.attacks.ball}", self.diagnosis, self.target.remarks)]

    def figure(self) -> Any:
        """Accuracy on clean images and under each attack that was tried, as a matplotlib figure."""
        from vizrobust.report.robustness_figures import accuracy_under_attacks

        return accuracy_under_attacks([self.series()])

    def series(self) -> tuple[str, list[Row]]:
        """The checkpoint's name and its accuracies with their intervals."""
        own, found, n = self.survives.get("training attacks"), self.survives, self.attacks.n
        counts = {"clean": (int(self.attacks.clean.sum()), n)}
        counts |= {} if own is None else {"training attack": (int(own.sum()), n)}
        counts |= {"PGD": (int(found["pgd"].sum()), n), "strongest": (int(found["all"].sum()), n)}
        return self.target.name, [
            {"attack": name, "accuracy": k / n, "ci_low": wilson(k, n)[0], "ci_high": wilson(k, n)[1]}
            for name, (k, n) in counts.items()
        ]

    def __repr__(self) -> str:
        return f"{self.target.name}: {self.verdict.sentence}"


@dataclass(frozen=True, repr=False)
class MaskingReport(Result):
    """The answer to a `MaskingRequest`: one diagnosis for each checkpoint."""

    request: MaskingRequest
    found: tuple[MaskingDiagnosis, ...]

    @property
    def ok(self) -> bool | None:
        """False if any checkpoint is masked, else None if any is undecided."""
        known = [one.ok for one in self.found]
        return False if False in known else None if None in known else True

    def rows(self) -> list[Row]:
        return [row for one in self.found for row in one.rows()]

    def tables(self) -> list[Table]:
        each = [table for one in self.found for table in one.tables()]
        return [*each, self._verdicts()] if len(self.found) > 1 else each

    def figure(self) -> Any:
        """The accuracies of all checkpoints, as a matplotlib figure."""
        from vizrobust.report.robustness_figures import accuracy_under_attacks

        return accuracy_under_attacks([one.series() for one in self.found])

    def __repr__(self) -> str:
        return f"MaskingReport({'; '.join(f'{one.target.name}: {one.verdict.name}' for one in self.found)})"

    def _verdicts(self) -> Table:
        rows = []
        for one in self.found:
            own, under = one.survives.get("training attacks"), one.survives
            accuracies = [one.attacks.clean, own, under["pgd"], under["all"]]
            flagged = sum(bool(check.flagged) for check in one.checks)
            cells = [percent(None if alive is None else share(alive)) for alive in accuracies]
            rows.append([one.target.name, one.verdict.name, *cells, str(flagged)])
        header = ["checkpoint", "verdict", "clean", "training attack", "PGD", "strongest", "checks flagged"]
        return Table("verdicts", header, rows, "training attack: one step where it is not known")


def checks_table(title: str, diagnosis: Diagnosis, remarks: Sequence[str] = ()) -> Table:
    """The checks of a diagnosis with their evidence and advice, and its verdict."""
    checks = diagnosis.checks
    rows = [[check.name, _value(check), _threshold(check), MARKS[check.flagged]] for check in checks]
    details = [[check.evidence, *([f"what to do: {check.advice}"] if check.advice else [])] for check in checks]
    note = (
        "Checks above the line decide the verdict, those below it show what else was seen.\n"
        "A difference in points is flagged when even the lower bound in brackets is above its threshold."
    )
    note = "\n".join((note, *remarks))
    marked = [number for number, check in enumerate(checks) if check.flagged]
    return Table(
        title, ["check", "value", "threshold", "flagged"], rows, note, details=details, marked=marked, rule=len(DECIDING),
        conclusion=f"verdict: {diagnosis.verdict.sentence}",
    )  # fmt: skip


def masking(request: MaskingRequest, session: Session) -> Generator[Event, None, MaskingReport]:
    """Diagnose every checkpoint of the request; attacks that the run folder holds are not run again."""
    budget = budget_of(request.effort)
    if request.transfer_from is not None:
        session.checkpoint(request.transfer_from)  # a wrong name is refused before minutes of attack
    found = []
    targets = open_targets(request, session, "masking", BATCH_SIZE)
    networks = [_network(request, session, target) for target in targets]
    for target, network in zip(targets, networks, strict=True):
        diagnosed = yield from _diagnosed(request, session, target, network, budget)
        found.append(diagnosed)
        yield from diagnosed.rows()
    return MaskingReport(request, tuple(found))


def budget_of(effort: Any) -> AttackBudget:
    """The `AttackBudget` of that text, or the usual one for None; ``ValueError`` for another spec."""
    if effort is None:
        return AttackBudget()
    budget = parse(effort, {**NAMES, **named(AttackBudget)}, "effort") if isinstance(effort, str) else effort
    if not isinstance(budget, AttackBudget):
        raise ValueError(f"{effort!r} is not an effort; write AttackBudget(steps=50, restarts=3, queries=1000)")
    return budget


def trained_against(
    checkpoint: Checkpoint, told: Any = None, note: Callable[[str], None] = lambda _text: None
) -> tuple[Attack, ...] | None:
    """The attacks of training: none for standard training, None where nobody knows. `told` is what a person says."""
    if told is not None:
        if isinstance(told, str):
            return () if told.lower() == "none" else (parse_attack(told, typed=True),)
        return (told,) if isinstance(told, Attack) else tuple(told)
    info = checkpoint.info
    # torchvision publishes standardly trained classifiers only.
    if info.attack_steps == 0 or (info.arch.startswith("torchvision:") and info.training.startswith("published")):
        return ()
    try:
        attacks = attacks_seen(info.training)
    except ValueError as error:
        note(f"note: {checkpoint.name}: what it was trained against cannot be read ({error}); FGSM takes its place")
        return None
    if attacks or not info.attack_steps:
        return attacks or None
    return (PGD(steps=info.attack_steps),)


def evaluation_ball(
    checkpoint: Checkpoint, trained: Sequence[Attack], data: DataSet, eps: float | None = None, norm: str | None = None
) -> Ball:
    """The evaluation's ball: the one asked for, else that of training, else the data set's."""
    info = checkpoint.info
    balls = [ball for attack in trained if (ball := ball_of(attack)) is not None and ball.eps is not None]
    if not balls and info.eps and info.norm in BALLS:
        balls = [BALLS[info.norm](eps=info.eps)]
    wanted = type(lookup(BALLS, norm, "norm")()) if norm else None
    own = next((ball for ball in balls if wanted is None or isinstance(ball, wanted)), None)
    return configured(PGD() if own is None else PGD(ball=own), data.eps, norm, eps=eps).ball  # type: ignore[attr-defined]


Network = Callable[[int], NetworkUnderTest]


def _network(request: MaskingRequest, session: Session, target: Target) -> Network:
    """The network under test on the first n images of the split."""
    trained = trained_against(target.checkpoint, request.trained_with, session.note)
    ball = evaluation_ball(target.checkpoint, trained or (), target.data, request.eps, request.norm)
    ensemble = AutoAttack(ball=ball) if request.thorough else None
    # From itself it would be an attack by its own gradients.
    source = None if request.transfer_from == target.name else request.transfer_from
    net, split = target.checkpoint.net(), target.data.split(request.split)
    return lambda n: NetworkUnderTest(net, head(split, n), ball, trained, source, ensemble)


def _diagnosed(
    request: MaskingRequest, session: Session, target: Target, network: Network, budget: AttackBudget
) -> Generator[Event, None, MaskingDiagnosis]:
    """The diagnosis of one network on as many images as its verdict takes, within what the request allows."""
    session.remember(target.folder, target.checkpoint)
    compute, done = session.compute(request.precision), 0

    def report(text: str) -> None:
        session.report(Progress(target.name, done, len(CHECKS), note=text[-60:]))

    most = min(request.most_images or MOST * request.images, len(target.data.split(request.split)))
    confidence = confidence_of(LOOKS if most > request.images else 1)
    # How many images each look was at: those that a look adds are batched by themselves, so few of them take few slots.
    looks: list[int] = []

    def attacks_on(n: int, checks: Sequence[str]) -> MaskingAttacks:
        under_test = network(n)
        n = len(under_test.images)  # fewer where the split has no more
        blocks = list(pairwise([0, *looks, n]))

        def evaluate(attack: Attack, indices: Sequence[int] | None) -> Iterator[PartialResult]:
            asked = range(n) if indices is None else indices
            for start, end in blocks:
                yield from evaluate_in_folder(
                    target.folder, target.checkpoint, attack, under_test.images, compute, request.seed, target.batch_size,
                    net=attacks.net, indices=[index for index in asked if start <= index < end],
                )  # fmt: skip

        attacks = MaskingAttacks(
            under_test, compute, budget, request.seed, target.batch_size, report, evaluate, confidence, claims_of(checks)
        )
        looks.append(attacks.n)
        return attacks

    first, extended = attacks_on(request.images, tuple(DECIDING)), dict[str, MaskingAttacks]()
    while len(looks) < LOOKS and looks[-1] < most:
        extension = extension_of(first, extended)
        if extension is None:
            break
        n = min(extension.images, most)
        yield Note(f"note: {target.name}: {looks[-1]} images leave it undecided; {n} are taken for {_names(extension.checks)}")
        more = attacks_on(n, extension.checks)
        extended |= dict.fromkeys(extension.checks, more)
    checks = []
    for check in diagnose(first, extended=extended):
        checks.append(check)
        done += 1
        report(check.name)
    found = diagnosis_of(first, tuple(checks), extended)
    if first.constant_prediction is not None:
        target.facts["constant"] = target.data.classes[first.constant_prediction]
    return MaskingDiagnosis(target, first, found, request.split, request.images, extended)


def _names(checks: Sequence[str]) -> str:
    return ", ".join(check.replace("_", " ") for check in checks)


def _value(check: Check) -> str:
    if check.value is None:
        return "-"
    return _number(check.value, check.unit) + {"share": " %", "points": " pts", "number": ""}[check.unit]


def _threshold(check: Check) -> str:
    if check.threshold is None:
        return ""
    return f"{'>' if check.flagged_if == 'above' else '<'} {_number(check.threshold, check.unit)}"


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}" if unit == "number" else f"{100 * value:.1f}"
